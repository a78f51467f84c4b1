"""What the numbers of an edit look like to a reader: pages, tables, charts, words."""

from clipproj.report.sections import kept, page_of, section

__all__ = ["kept", "page_of", "section"]
