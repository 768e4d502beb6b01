"""Patch-based anomaly detection, opened up: PatchCore and ReConPatch, from image files to figures.

Three lines do the job:

    detector = rcp.ReConPatch(backbone="efficientnet_lite0")
    detector.fit(rcp.mvtec(DIR, "bottle").train)
    result = rcp.evaluate(detector, rcp.mvtec(DIR, "bottle").test)

One room per stage, in the order in which the data walks: `data`, `images`, `features`, `similarity`, `loss`, `head`,
`coreset`, `memory`, `scoring`, `detectors`, `evaluation`, `metrics`.
"""

from rcp.data import btad, find, folder, mvtec, visa
from rcp.detectors import BankSettings, Ensemble, PatchCore, ReConPatch, Scores, load
from rcp.evaluation import Result, evaluate
from rcp.features import FeatureSettings, PatchExtractor, PatchFeatures
from rcp.head import TrainSettings

__version__ = "0.1.0"

__all__ = [
    "BankSettings",
    "Ensemble",
    "FeatureSettings",
    "PatchCore",
    "PatchExtractor",
    "PatchFeatures",
    "ReConPatch",
    "Result",
    "Scores",
    "TrainSettings",
    "btad",
    "evaluate",
    "find",
    "folder",
    "load",
    "mvtec",
    "visa",
]
