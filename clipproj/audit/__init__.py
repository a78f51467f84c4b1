"""What an edit did and what it did not: audits of one edit, and methods side by side."""

from clipproj.audit.calibration import calibration
from clipproj.audit.domains import domains
from clipproj.audit.drift import drift
from clipproj.audit.evaluate import (
    Comparison,
    CurvePoint,
    Scores,
    compare,
    nearest,
    score,
    strength_curve,
)
from clipproj.audit.gate import Judgement, Limits, judge
from clipproj.audit.images import Pictures, image_features, load_pictures, open_picture
from clipproj.audit.leak import leak
from clipproj.audit.paraphrase import paraphrase
from clipproj.audit.probe import probe_recall
from clipproj.audit.ranpac import RanPAC
from clipproj.audit.recover import recover
from clipproj.audit.relearn import relearn
from clipproj.audit.relevance import relevance
from clipproj.audit.retrieval import retrieval, wrong_side
from clipproj.audit.samples import Samples
from clipproj.audit.standins import stand_ins
from clipproj.audit.stats import Measured
from clipproj.audit.suite import AUDITS, Subject, audit
from clipproj.audit.tagging import tagging
from clipproj.audit.tradeoff import area
from clipproj.audit.tune import Tuned, text_proxies, tune
from clipproj.compare.comparison import known_classes
from clipproj.compare.task import Contender, Task
from clipproj.compare.trial import Field
from clipproj.report.page import Page
from clipproj.report.report import write_report

__all__ = [
    "AUDITS",
    "Comparison",
    "Contender",
    "CurvePoint",
    "Field",
    "Judgement",
    "Limits",
    "Measured",
    "Page",
    "Pictures",
    "RanPAC",
    "Samples",
    "Scores",
    "Subject",
    "Task",
    "Tuned",
    "area",
    "audit",
    "calibration",
    "compare",
    "domains",
    "drift",
    "image_features",
    "judge",
    "known_classes",
    "leak",
    "load_pictures",
    "nearest",
    "open_picture",
    "paraphrase",
    "probe_recall",
    "recover",
    "relearn",
    "relevance",
    "retrieval",
    "score",
    "stand_ins",
    "strength_curve",
    "tagging",
    "text_proxies",
    "tune",
    "write_report",
    "wrong_side",
]
