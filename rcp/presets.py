"""The paper's settings by name, each with what the paper states of it and what is ours, and twins for machines without its weights.

    detector = presets.get("single-480").detector(seed=0)
    presets.twin(presets.get("single-480"))  # "single-480-embedded": the same on a backbone that comes along

A twin has another backbone, so its numbers say nothing about the paper's: it is for trying the path, and for comparisons
within itself.

Source: Hyun et al., ReConPatch (arXiv 2305.16713), and for "patchcore-…" Roth et al., PatchCore (arXiv 2106.08265).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rcp.backbones import EMBEDDED
from rcp.backbones import PRESETS as BACKBONES
from rcp.detectors import BankDetector, BankSettings, Ensemble, PatchCore, ReConPatch
from rcp.features import FeatureSettings
from rcp.head import PAPER_ENSEMBLE, PAPER_SINGLE, TrainSettings
from rcp.store import MemoryLimit

NAMES = {  # how tables call a backbone
    "wide_resnet50_2": "WRN-50", "wide_resnet101_2": "WRN-101", "resnext101": "ResNeXt-101", "densenet201": "DenseNet-201",
    "efficientnet_lite0": "Lite0", "efficientnet_lite1": "Lite1", "efficientnet_lite2": "Lite2",
}  # fmt: skip
RESIZE = {224: 256, 320: 366, 480: 512}  # crop → short side before it
TRAINING = (
    "batch (784 random patches), width of g (512), sigma (1, on z of length 1), gamma (0.999), b (9), initialisation and seeds; "
    "k = 5, m = 1, alpha = 0.5 are second-hand, the defaults of the method's ancestor"
)
HALF = "features are kept as float16, for half the bytes"


@dataclass(frozen=True)
class Preset:
    """A setting of the paper, ready for use.

    Attributes:
        name: by which `get` finds it.
        features: one entry, or one a member of an ensemble.
        training: of f; None for PatchCore, which does not train.
        bank: coreset and the rest of the memory.
        stated: what the paper says of it.
        ours: what it does not say, and is chosen here.
        twin: whether it has an embedded backbone in the place of the paper's.
    """

    name: str
    features: tuple[FeatureSettings, ...]
    training: TrainSettings | None
    bank: BankSettings
    stated: str
    ours: str
    twin: bool = False

    @property
    def size(self) -> int:
        """The side of the crop in pixels."""
        return self.features[0].crop

    @property
    def backbones(self) -> tuple[str, ...]:
        """How tables call its backbones."""
        return tuple(NAMES.get(one.backbone, one.backbone) for one in self.features)

    def detector(
        self, *, seed: int = 0, device: str = "auto", limit: MemoryLimit = MemoryLimit()
    ) -> BankDetector | Ensemble:
        """Return the detector, not fitted; nothing is loaded before it is needed.

        Args:
            seed: of f, the batches and the coreset.
            device: "auto", or torch's name of one.
            limit: a bound on memory; features beyond it wait in a mapped file.
        """
        common = {"bank": self.bank, "seed": seed, "device": device, "limit": limit}
        if self.training is None:
            return PatchCore(self.features[0], **common)
        members = [ReConPatch(one, training=self.training, **common) for one in self.features]
        return members[0] if len(members) == 1 else Ensemble(members)


def get(name: str) -> Preset:
    """Return the preset of this name.

    Raises:
        ValueError: if there is none; the message lists them.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def twin(preset: Preset) -> Preset:
    """Return the preset on embedded backbones: Lite0, or Lite0, 1 and 2 for an ensemble; a twin is its own."""
    if preset.twin:
        return preset
    instead = on_backbones(preset, EMBEDDED[: len(preset.features)])
    own, theirs = " + ".join(instead.backbones), " + ".join(preset.backbones)
    ours = f"{own} in the place of {theirs}, so no number compares with the paper's; {preset.ours}"
    return replace(instead, name=f"{preset.name}-embedded", ours=ours, twin=True)


def on_backbones(preset: Preset, backbones: Sequence[str], weights: Mapping[str, str] | None = None) -> Preset:
    """Return the preset on other backbones, everything else as it is.

    Args:
        preset: which.
        backbones: as many names as it has members; presets of `rcp.backbones`, or timm's names with their weight tags.
        weights: name → a local weight file.

    Raises:
        ValueError: if there are more or fewer names than members.
    """
    if len(backbones) != len(preset.features):
        raise ValueError(f"{preset.name} has {len(preset.features)} backbones, got {', '.join(backbones) or 'none'}")
    files = weights or {}
    pairs = zip(preset.features, backbones, strict=True)
    return replace(preset, features=tuple(replace(one, backbone=name, weights=files.get(name)) for one, name in pairs))


def _preset(
    name: str, size: int, backbones: tuple[str, ...], training: TrainSettings | None, stated: str, ours: str,
    *, coreset: float = 0.01, patch_size: int = 3, levels: tuple[int, ...] = (2, 3), half: bool = False,
) -> Preset:  # fmt: skip
    if unknown := [one for one in backbones if one not in BACKBONES]:
        raise ValueError(f"preset {name}: unknown backbone {unknown[0]}")
    common = {"resize": RESIZE[size], "crop": size, "patch_size": patch_size, "levels": levels}
    features = tuple(FeatureSettings(one, stored="float16" if half else "float32", **common) for one in backbones)
    kept = f"{HALF}; " if half else ""
    return Preset(name, features, training, BankSettings(coreset=coreset), stated, kept + ours)


def _all() -> dict[str, Preset]:
    usual = "s = 3, levels 2+3"
    single = "f 512 wide, 120 epochs, lr 1e-5 on a cosine, AdamP, weight decay 1e-2, coreset 1 %"
    joined = "f 384 wide, 60 epochs, lr 1e-6 on a cosine, AdamP, weight decay 1e-2, coreset 1 %, mean of modified z-scores"
    normals = f"median and MAD from held-out training images, in five folds; {TRAINING}"
    three = ("wide_resnet101_2", "resnext101", "densenet201")
    found = [
        _preset("single-224", 224, ("wide_resnet50_2",), PAPER_SINGLE, f"WRN-50 at 224 px, {usual}, {single}", TRAINING),
        _preset(
            "single-224-pixel", 224, ("wide_resnet50_2",), PAPER_SINGLE,
            f"WRN-50 at 224 px, s = 5, levels 1+2+3 (the pixel AUROC of the headline), {single}", TRAINING,
            patch_size=5, levels=(1, 2, 3), half=True,
        ),
        _preset("single-480", 480, ("wide_resnet101_2",), PAPER_SINGLE, f"WRN-101 at 480 px, {usual}, {single}", TRAINING, half=True),
        _preset(
            "btad", 480, ("wide_resnet101_2",), PAPER_SINGLE, "WRN-101 at 480 px, for BTAD",
            f"that the rest is that of the single models ({usual}, {single}) is our reading; {TRAINING}", half=True,
        ),
    ]  # fmt: skip
    for size in (480, 320):
        stated = f"WRN-101 + ResNeXt-101 + DenseNet-201 at {size} px, {usual}, {joined}"
        found.append(_preset(f"ensemble-{size}", size, three, PAPER_ENSEMBLE, stated, normals, half=True))
    for percent in (25, 10, 1):
        stated = f"PatchCore: WRN-50 at 224 px, {usual}, coreset {percent} %"
        ours = "levels joined as ReConPatch's f gets them (variant concat), no Eq. 10; PatchCore's code pools to 1024 numbers"
        found.append(_preset(f"patchcore-{percent}", 224, ("wide_resnet50_2",), None, stated, ours, coreset=percent / 100))
    found += [twin(preset) for preset in found]
    return {preset.name: preset for preset in found}


PRESETS = _all()
