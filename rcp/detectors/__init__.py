"""The detectors: one file a system, one face: `fit`, `score`, `threshold`, `save`, `load`."""

from __future__ import annotations

import sys
from pathlib import Path

from rcp.detectors.bank import BankDetector, BankSettings
from rcp.detectors.ensemble import Ensemble
from rcp.detectors.face import Detector
from rcp.detectors.fyd import FocusYourDistribution
from rcp.detectors.histogram import BrightnessHistogram
from rcp.detectors.inctrl import InCTRL
from rcp.detectors.mkd import MKD
from rcp.detectors.padim import PaDiM
from rcp.detectors.patchcore import PatchCore
from rcp.detectors.pixel import PixelDetector
from rcp.detectors.rd4ad import RD4AD
from rcp.detectors.reconpatch import ReConPatch
from rcp.detectors.recontrast import ReContrast
from rcp.detectors.reduced import ReducedPatchCore
from rcp.detectors.spade import SPADE
from rcp.detectors.students import UninformedStudents
from rcp.modelfile import ENSEMBLE, read_model
from rcp.scoring import Scores

KINDS = {cls.kind: cls for cls in (
    PatchCore, ReConPatch, ReducedPatchCore, BrightnessHistogram, SPADE, PaDiM, MKD, RD4AD, ReContrast, UninformedStudents, InCTRL,
    FocusYourDistribution,
)}  # fmt: skip
SYSTEMS = {kind: cls for kind, cls in KINDS.items() if issubclass(cls, PixelDetector)}  # the other systems: one `Options` each
PAPERS = {kind: (module.PAPER, module.PAPER_FEATURES) for kind, module in ((k, sys.modules[c.__module__]) for k, c in SYSTEMS.items())}


def load(path: str | Path, *, device: str = "auto", weights: str | None = None) -> Detector | Ensemble:
    """Return whatever detector a folder holds.

    Args:
        path: the folder that `save` wrote.
        device: where to compute.
        weights: the backbone's local weight file, if it lies elsewhere now (not for ensembles).

    Returns:
        The detector, ready to score.

    Raises:
        FileNotFoundError, ValueError, WeightsError: as the detectors' own `load`.
    """
    if (Path(path) / ENSEMBLE).is_file():
        if weights is not None:
            raise ValueError(f"{path} is an ensemble: one weight file cannot serve all its members")
        return Ensemble.load(path, device=device)
    kind = read_model(path).kind
    if kind not in KINDS:
        raise ValueError(f"{path}: unknown detector {kind!r}; this version of rcp knows {', '.join(KINDS)}")
    return KINDS[kind].load(path, device=device, weights=weights)


__all__ = ["MKD", "RD4AD", "SPADE", "BankDetector", "BankSettings", "BrightnessHistogram", "Detector", "Ensemble",
           "FocusYourDistribution", "InCTRL", "PaDiM", "PatchCore", "PixelDetector", "ReConPatch", "ReContrast",
           "ReducedPatchCore", "Scores", "UninformedStudents", "load"]  # fmt: skip
