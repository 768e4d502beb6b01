"""Several detectors as one: scores of different feature spaces, made comparable, then averaged.

Distances in different feature spaces have different units; a plain mean would let the widest space decide. So each
detector's scores are counted in robust standard deviations above what held-out normal images score under it.

Taught in notebook 06. Source: ReConPatch, section 3.4. Where we differ: median and MAD come from training images that were
*held out* from the memory that scored them, as scores of images inside the memory are too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from rcp.data import Split
from rcp.detectors.bank import BankDetector
from rcp.features import Images, PatchFeatures
from rcp.modelfile import read_ensemble, write_ensemble
from rcp.scoring import Scores, Threshold, modified_z_score, threshold
from rcp.timing import Stopwatch


class Ensemble:
    """The mean of several detectors' modified z-scores."""

    def __init__(self, members: Sequence[BankDetector]):
        """Take the members, fitted or not; all must look at images with the same resize and crop."""
        if not members:
            raise ValueError("an ensemble needs at least one detector")
        if len({member.features.geometry for member in members}) > 1:
            raise ValueError("all members of an ensemble must have the same resize and crop, or their maps do not fit")
        if any(member.bank.folds == 0 for member in members):
            raise ValueError("every member of an ensemble needs folds >= 2: its scores are counted from held-out normals")
        self.members = list(members)
        self.stopwatch = Stopwatch()

    def fit(self, images: Images, *, on_error: str = "raise") -> Self:
        """Fit every member on the same good images; they need folds >= 2 for their normal scores."""
        for member in self.members:
            member.fit(images, on_error=on_error).normal_scores()
        return self

    def score(self, images: Images | Sequence[PatchFeatures], *, on_error: str = "raise") -> Scores:
        """Return the mean modified z-scores, of images and of patches (at the finest member's grid).

        Args:
            images: a split, or paths; or the images' `PatchFeatures`, one for each member in their order.
            on_error: "raise", or "skip".

        Returns:
            `Scores`, in robust standard deviations above normal.
        """
        with self.stopwatch("scoring"):
            parts = [
                member.score(given, on_error=on_error)
                for member, given in zip(self.members, self._for_members(images), strict=True)
            ]
        grid = max((part.patch_scores.shape[1:] for part in parts), key=lambda shape: shape[0] * shape[1])
        image, patch = [], []
        for member, part in zip(self.members, parts, strict=True):
            normal = member.normal_scores()
            image.append(modified_z_score(part.image_scores, normal.image_median, normal.image_mad))
            z = modified_z_score(part.patch_scores, normal.patch_median, float(normal.patch_mad))
            patch.append(torch.nn.functional.interpolate(z[None], tuple(grid), mode="bilinear")[0])
        first = parts[0]
        return Scores(
            torch.stack(image).mean(0), torch.stack(patch).mean(0), first.indices, first.sizes, first.skipped,
            first.geometry, first.smoothing, "robust deviations above normal",
        )  # fmt: skip

    def _for_members(self, images: Images | Sequence[PatchFeatures]) -> Sequence[Images | PatchFeatures]:
        """What each member looks at: the same files, or features of its own."""
        ready = [isinstance(one, PatchFeatures) for one in images] if not isinstance(images, Split) else []
        if not any(ready):
            return [images] * len(self.members)
        if not all(ready) or len(ready) != len(self.members):
            raise ValueError(f"an ensemble of {len(self.members)} needs as many PatchFeatures, got {sum(ready)}")
        return images

    def threshold(self, false_alarm_rate: float = 0.05) -> Threshold:
        """Return the limit on the ensemble's image scores, from the members' held-out normal scores.

        Each training image was held out from every member's memory in turn, so the mean of its z-scores is a held-out score
        of the ensemble.
        """
        scores = []
        for member in self.members:
            normal = member.normal_scores()
            scores.append(modified_z_score(normal.image_scores, normal.image_median, normal.image_mad))
        return threshold(torch.stack(scores).mean(0), false_alarm_rate)

    def colour_limits(self) -> tuple[float, float]:
        """Return the ends of a colour scale in robust deviations: 0 to twice the members' mean normal 99.9 % quantile."""
        tops = []
        for member in self.members:
            normal = member.normal_scores()
            top = normal.patch_quantiles[999:]
            tops.append(float(modified_z_score(top, normal.patch_median, float(normal.patch_mad))[0]))
        return 0.0, 2 * sum(tops) / len(tops)

    def save(self, path: str | Path) -> Path:
        """Write every member into a subfolder, and a JSON file that lists them."""
        folder = Path(path)
        names = [f"member-{i}-{member.kind}" for i, member in enumerate(self.members)]
        for name, member in zip(names, self.members, strict=True):
            member.save(folder / name)
        return write_ensemble(folder, names)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Self:
        """Return the ensemble that `save` wrote."""
        from rcp.detectors import load  # the package lists the kinds, this one among them

        return cls([load(folder, device=device) for folder in read_ensemble(path)])
