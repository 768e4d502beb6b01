"""Patch-based anomaly detection, opened up: PatchCore and ReConPatch, from image files to figures.

Three lines do the job:

    detector = rcp.ReConPatch(backbone="efficientnet_lite0")
    detector.fit(rcp.mvtec(DIR, "bottle").train)
    result = rcp.evaluate(detector, rcp.mvtec(DIR, "bottle").test)

One room per stage, in the order in which the data walks: `data`, `images`, `features`, `similarity`, `loss`, `head`,
`coreset`, `memory`, `scoring`, `detectors`, `evaluation`, `metrics`.
"""

import os

# Waiting threads look for work for some ten microseconds, then sleep, unless the user wishes otherwise. Spinning for longer
# made the coreset fifteen times slower beside another busy process (a browser, a second notebook) on two cores; sleeping at
# once made a training step a tenth slower. Both must be set before torch is imported.
_waiting = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
SET_HERE = _waiting.keys() - os.environ.keys()  # names that other programs, started from here, are not meant to inherit
os.environ.update({name: _waiting[name] for name in SET_HERE})

from rcp.allocator import keep_freed_memory  # noqa: E402

keep_freed_memory()

from rcp import coreset, loss, metrics, scoring, similarity, synthetic  # noqa: E402
from rcp.data import btad, find, folder, mvtec, visa  # noqa: E402
from rcp.detectors import BankSettings, Ensemble, PatchCore, ReConPatch, Scores, load  # noqa: E402
from rcp.detectors.fyd import FocusYourDistribution, FocusYourDistributionOptions  # noqa: E402
from rcp.detectors.histogram import BrightnessHistogram, BrightnessHistogramOptions  # noqa: E402
from rcp.detectors.inctrl import InCTRL, InCTRLOptions  # noqa: E402
from rcp.detectors.mkd import MKD, MKDOptions  # noqa: E402
from rcp.detectors.padim import PaDiM, PaDiMOptions  # noqa: E402
from rcp.detectors.rd4ad import RD4AD, RD4ADOptions  # noqa: E402
from rcp.detectors.recontrast import ReContrast, ReContrastOptions  # noqa: E402
from rcp.detectors.spade import SPADE, SPADEOptions  # noqa: E402
from rcp.detectors.students import UninformedStudents, UninformedStudentsOptions  # noqa: E402
from rcp.evaluation import Result, evaluate  # noqa: E402
from rcp.features import FeatureSettings, PatchExtractor, PatchFeatures  # noqa: E402
from rcp.head import TrainSettings  # noqa: E402
from rcp.store import MemoryLimit  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "MKD",
    "RD4AD",
    "SPADE",
    "BankSettings",
    "BrightnessHistogram",
    "BrightnessHistogramOptions",
    "Ensemble",
    "FeatureSettings",
    "FocusYourDistribution",
    "FocusYourDistributionOptions",
    "InCTRL",
    "InCTRLOptions",
    "MKDOptions",
    "MemoryLimit",
    "PaDiM",
    "PaDiMOptions",
    "PatchCore",
    "PatchExtractor",
    "PatchFeatures",
    "RD4ADOptions",
    "ReConPatch",
    "ReContrast",
    "ReContrastOptions",
    "Result",
    "SPADEOptions",
    "Scores",
    "TrainSettings",
    "UninformedStudents",
    "UninformedStudentsOptions",
    "btad",
    "coreset",
    "evaluate",
    "find",
    "folder",
    "load",
    "loss",
    "metrics",
    "mvtec",
    "scoring",
    "similarity",
    "synthetic",
    "visa",
]
