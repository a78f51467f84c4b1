"""What an edit did: measured on pictures and on texts, told in a table and in a report."""

from clipproj.audit.evaluate import (
    Comparison,
    CurvePoint,
    Scores,
    compare,
    nearest,
    score,
    strength_curve,
)
from clipproj.audit.pictures import Pictures, image_features, load_pictures, open_picture
from clipproj.audit.probe import probe_recall
from clipproj.audit.report import write_report
from clipproj.audit.samples import Samples
from clipproj.audit.texttable import TextRow, TextTable, text_table

__all__ = [
    "Comparison",
    "CurvePoint",
    "Pictures",
    "Samples",
    "Scores",
    "TextRow",
    "TextTable",
    "compare",
    "image_features",
    "load_pictures",
    "nearest",
    "open_picture",
    "probe_recall",
    "score",
    "strength_curve",
    "text_table",
    "write_report",
]
