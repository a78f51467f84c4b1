"""What the numbers of an edit look like to a reader: pages, tables, charts, words."""
