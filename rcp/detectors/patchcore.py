"""PatchCore: remember normal patches, score by the distance to the nearest of them. One pass; it does not train.

"PatchCore" in the wild is several algorithms. Three of them are named here, so that a table says which one it shows:

=========  =============================================  ==========  =======================
variant    a patch feature is                             distance    Eq. 10
=========  =============================================  ==========  =======================
concat     3×3 average of each level, levels joined       L2          off
paper      3×3 flattened, two adaptive poolings to 1024   L2          on the image score
amazon     as "paper"                                     squared L2  off
=========  =============================================  ==========  =======================

"concat" is what ReConPatch's f is trained on, hence its fair opponent and the default.

Source: Roth et al., *Towards Total Recall in Industrial Anomaly Detection*, CVPR 2022 (arXiv 2106.08265).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from torch import Tensor

from rcp.detectors.bank import BankDetector, BankSettings
from rcp.features import FeatureSettings
from rcp.store import MemoryLimit

VARIANTS = {  # merge of the features, Eq. 10, squared distance
    "concat": ("concat", "off", False),
    "paper": ("pool", "image", False),
    "amazon": ("pool", "off", True),
}


class PatchCore(BankDetector):
    """PatchCore in one of its three named variants."""

    kind = "patchcore"

    def __init__(
        self,
        backbone: str | FeatureSettings = "efficientnet_lite0",
        *,
        variant: str = "concat",
        bank: BankSettings = BankSettings(),
        seed: int = 0,
        device: str = "auto",
        limit: MemoryLimit = MemoryLimit(),
    ):
        """Choose the settings; nothing is loaded before it is needed.

        Args:
            backbone: a backbone's name, or `FeatureSettings` for all there is to choose; its `merge` is the variant's.
            variant: "concat", "paper" or "amazon", see the module's table.
            bank: `BankSettings`: coreset, re-weighting neighbours, smoothing, calibration.
            seed: of the coreset's projection and start, and of the calibration's folds.
            device: "auto", or torch's name of one.
            limit: a bound on memory; features beyond it wait in a mapped file.

        Raises:
            ValueError: if the variant is unknown.
        """
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        merge, reweight, squared = VARIANTS[variant]
        features = FeatureSettings(backbone) if isinstance(backbone, str) else backbone
        super().__init__(
            replace(features, merge=merge), bank, reweight=reweight, squared=squared, seed=seed, device=device, limit=limit
        )
        self.variant = variant

    def embed(self, rows: Tensor) -> Tensor:
        """Return the rows themselves, in float32: (n, C) → (n, C)."""
        return rows.to(self.extractor.device).float()

    @property
    def output_width(self) -> int:
        """Width of the memory's rows: that of the patch features."""
        return self.extractor.width

    def _settings(self) -> dict:
        return {"variant": self.variant}

    @classmethod
    def _from_settings(cls, settings: dict, features: FeatureSettings, bank: BankSettings, device: str) -> Self:
        return cls(features, variant=settings["variant"], bank=bank, seed=settings["seed"], device=device)
