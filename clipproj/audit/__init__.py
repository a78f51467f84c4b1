"""What an edit did and what it did not, in numbers; their words are in `clipproj.report`."""

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
from clipproj.audit.images import Images, image_features, load_images, open_image
from clipproj.audit.leak import leak
from clipproj.audit.paraphrase import paraphrase
from clipproj.audit.probe import probe_recall
from clipproj.audit.ranpac import RanPAC
from clipproj.audit.recover import recover
from clipproj.audit.registry import Audit, AuditInput, audits
from clipproj.audit.relearn import relearn
from clipproj.audit.relevance import relevance
from clipproj.audit.retrieval import retrieval, wrong_side
from clipproj.audit.samples import Samples
from clipproj.audit.standins import stand_ins
from clipproj.audit.stats import Measured
from clipproj.audit.suite import AuditResult, audit
from clipproj.audit.tagging import tagging
from clipproj.audit.tradeoff import area
from clipproj.audit.tune import Tuned, text_proxies, tune

__all__ = [
    "Audit",
    "AuditInput",
    "AuditResult",
    "Comparison",
    "CurvePoint",
    "Images",
    "Judgement",
    "Limits",
    "Measured",
    "RanPAC",
    "Samples",
    "Scores",
    "Tuned",
    "area",
    "audit",
    "audits",
    "calibration",
    "compare",
    "domains",
    "drift",
    "image_features",
    "judge",
    "leak",
    "load_images",
    "nearest",
    "open_image",
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
    "wrong_side",
]
