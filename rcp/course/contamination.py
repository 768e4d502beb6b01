"""Measurements of notebook 11: what do bad images among the good ones do?

The pictures stand in `rcp.course.contamination_figures`, good images alone in `rcp.course.learning_runs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rcp import metrics
from rcp.course.learning_measured import TRIALS
from rcp.course.learning_runs import PERCENT as SYSTEM
from rcp.course.learning_runs import detector, shuffled, subset
from rcp.data import Category
from rcp.detectors import PatchCore
from rcp.features import PatchExtractor, PatchFeatures
from rcp.images import read_image, read_mask
from rcp.memory import MemoryBank
from rcp.scoring import pixel_maps, score_images, threshold

IMAGES, SHARES, RATE = 40, (0.0, 0.05, 0.1, 0.2), 0.05
DROPPED = 0.1  # of the training images, by the remedy
NORMAL_TAIL = 1.6449  # standard deviations that 5 % of a normal distribution exceed: of the robust limit
SAME, OTHER = "kinds that are among the training images", "kinds that are not"
VALUES = (
    "auroc_same", "auroc_other", "random_same", "random_other", "dropped_same", "dropped_other",
    "found_same", "found_other", "alarms", "robust_found_same", "robust_found_other", "robust_alarms",
    "dropped_found_same", "dropped_found_other", "dropped_alarms", "caught", "bad_rows", "limit",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Who trains and who tests, in one draw.

    Attributes:
        good: positions of good training images.
        bad: positions, in the test split, of the defective images that may replace good ones, in the order of replacing.
        test: positions of the test images that are judged: all but `bad`, for every share.
        kinds: the kinds of defect among `bad`.
    """

    good: list[int]
    bad: list[int]
    test: list[int]
    kinds: list[str]


@dataclass(frozen=True)
class Trial:
    """One share of bad images in one draw; `values` are shares by the names of `VALUES`, `limit` in L2 distance."""

    category: str
    share: float
    draw: int
    values: dict[str, float]


def plan(category: Category, seed: int, images: int = IMAGES, most: float = SHARES[-1]) -> Plan:
    """Return who trains and who tests: half of the kinds of defect, chosen at random, lend images to the training.

    Args:
        category: with kinds of defect in its test split.
        seed: of all choices.
        images: training images, good and bad together; fewer if there are not so many.
        most: the largest share of bad ones.
    """
    defects = category.test.defects
    kinds = sorted(set(defects) - {"good"})
    kinds = [kinds[i] for i in shuffled(len(kinds), seed)][: max(1, len(kinds) // 2)]
    images = min(images, len(category.train))
    pools = []
    for kind in kinds:
        own = [i for i, defect in enumerate(defects) if defect == kind]
        least = min(math.ceil(most * images / len(kinds)), len(own) - 1)  # one stays to be found
        pools.append([own[i] for i in shuffled(len(own), seed)][:least])
    bad = [pool[i] for i in range(max(map(len, pools))) for pool in pools if i < len(pool)]
    good = shuffled(len(category.train), seed)[:images]
    return Plan(good, bad, [i for i in range(len(defects)) if i not in bad], kinds)


def mixed(train: PatchFeatures, test: PatchFeatures, chosen: Plan, bad: int) -> PatchFeatures:
    """Return the features to train on: the plan's images, of which the last are replaced by this many bad ones."""
    if bad > len(chosen.bad):
        raise ValueError(f"there are only {len(chosen.bad)} defective images to spare, {bad} are asked for")
    own = subset(train, chosen.good[: len(chosen.good) - bad])
    if bad == 0:
        return own
    theirs = subset(test, chosen.bad[:bad])
    return replace(
        own, values=torch.cat([own.values, theirs.values]), paths=own.paths + theirs.paths, sizes=own.sizes + theirs.sizes,
        indices=list(range(len(own) + len(theirs))),
    )  # fmt: skip


def trials(
    category: Category,
    train: PatchFeatures,
    test: PatchFeatures,
    extractor: PatchExtractor,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    shares: Sequence[float] = SHARES,
) -> list[Trial]:
    """Return one `Trial` a share and seed: PatchCore on partly bad images, with its remedies.

    Args:
        category: with kinds of defect in its test split.
        train, test: its features.
        extractor: that made them.
        seeds: one `Plan` each.
        shares: of the training images that are bad.
    """
    found = []
    for seed in seeds:
        chosen = plan(category, seed)
        judged = subset(test, chosen.test)
        defects = np.array(category.test.defects)[chosen.test]
        normal, same = defects == "good", np.isin(defects, chosen.kinds)
        for share in shares:
            bad = round(share * len(chosen.good))
            values = _trial(mixed(train, test, chosen, bad), bad, judged, normal, same, extractor, seed)
            found.append(Trial(category.name, share, seed, values))
    return found


def _trial(
    training: PatchFeatures, bad: int, judged: PatchFeatures, normal: np.ndarray, same: np.ndarray, extractor: PatchExtractor, seed: int
) -> dict[str, float]:
    """All of `VALUES`; the last `bad` of the training images are bad ones."""
    images, per_image = len(training), training.values.shape[1] * training.values.shape[2]
    fitted = _fitted(training, extractor, seed)
    scores = fitted.score(judged).image_scores
    held_out = fitted.normal_scores()
    limit = threshold(held_out.image_scores, RATE).value
    robust = held_out.image_median + NORMAL_TAIL * 1.4826 * held_out.image_mad
    chosen = torch.randperm(len(training.rows), generator=torch.Generator().manual_seed(seed))[: len(fitted.memory)]
    bank = MemoryBank(training.rows[chosen])
    at_random = torch.cat([score_images(part, bank)[0] for part in judged.values.split(8)])
    keep = kept(held_out.image_scores)
    cleaned = _fitted(subset(training, keep), extractor, seed)
    later = cleaned.score(judged).image_scores
    values = _aurocs("auroc", scores, normal, same) | _aurocs("random", at_random, normal, same) | _aurocs("dropped", later, normal, same)
    values |= _found("", scores, limit, normal, same) | _found("robust_", scores, robust, normal, same)
    values |= _found("dropped_", later, cleaned.threshold(RATE).value, normal, same)
    caught = bad - sum(i >= images - bad for i in keep)
    from_bad = (fitted.coreset.indices >= (images - bad) * per_image).float().mean()
    return values | {"caught": caught / bad if bad else math.nan, "bad_rows": float(from_bad), "limit": limit}


def kept(held_out: Tensor, dropped: float = DROPPED) -> list[int]:
    """Return the positions of the training images that stay when those with the highest held-out scores are dropped.

    Args:
        held_out: (n,) image scores of training images, each under a memory without it.
        dropped: share to drop.
    """
    order = held_out.argsort(descending=True, stable=True)
    return sorted(order[round(dropped * len(held_out)) :].tolist())


def _fitted(training: PatchFeatures, extractor: PatchExtractor, seed: int) -> PatchCore:
    fitted = detector(SYSTEM, training, len(training), seed, folds=5)
    fitted.extractor = extractor
    return fitted.fit(training)


def _aurocs(name: str, scores: Tensor, normal: np.ndarray, same: np.ndarray) -> dict[str, float]:
    found = {}
    for group, chosen in (("same", same), ("other", ~normal & ~same)):
        own = normal | chosen
        found[f"{name}_{group}"] = metrics.auroc(~normal[own], scores.numpy()[own]) if chosen.any() else math.nan
    return found


def _found(name: str, scores: Tensor, limit: float, normal: np.ndarray, same: np.ndarray) -> dict[str, float]:
    above = scores.numpy() > limit
    groups = {"found_same": same, "found_other": ~normal & ~same, "alarms": normal}
    return {name + group: float(above[chosen].mean()) if chosen.any() else math.nan for group, chosen in groups.items()}


def line(trial: Trial) -> str:
    """Return a trial as a line of `learning_measured`."""
    values = ";".join(f"{trial.values[name]:.4f}" for name in VALUES)
    return f"{trial.category};{trial.share};{trial.draw};{values}"


def measured() -> list[Trial]:
    """Return the trials that were measured on all four embedded categories when the notebook was written."""
    found = []
    for text in TRIALS.strip().splitlines():
        category, share, draw, *values = text.split(";")
        found.append(Trial(category, float(share), int(draw), dict(zip(VALUES, map(float, values), strict=True))))
    return found


def mean(found: Sequence[Trial], name: str, share: float) -> tuple[float, float]:
    """Return the mean, in %, of one of `VALUES` over all trials of a share, and the deviation of its *change* against no bad images.

    The change is taken within each category and draw, so that it does not count how much easier one category is than another.
    Where there is nothing to compare with (no trial without bad images, or nan), it is the deviation of the values themselves.

    Args:
        found: trials.
        name: of the value; nan is left out.
        share: of bad images.
    """
    clean = {(trial.category, trial.draw): trial.values[name] for trial in found if trial.share == 0}
    own = [trial for trial in found if trial.share == share and not math.isnan(trial.values[name])]
    if not own:
        return math.nan, math.nan
    before = [clean.get((trial.category, trial.draw), math.nan) for trial in own]
    values = 100 * np.array([trial.values[name] for trial in own])
    changes = values if np.isnan(before).any() else values - 100 * np.array(before)
    return float(values.mean()), float(changes.std(ddof=1)) if len(own) > 1 else 0.0


def markdown(found: Sequence[Trial], names: Mapping[str, str]) -> str:
    """Return a table, a line a value, a column a share of bad images: mean in %, ± deviation of the change against no bad images.

    Args:
        found: trials.
        names: of `VALUES` → what the table calls them.
    """
    shares = sorted({trial.share for trial in found})
    lines = ["| bad images: | " + " | ".join(f"{100 * share:g} %" for share in shares) + " |", "|---|" + "---:|" * len(shares)]
    for name, title in names.items():
        cells = [mean(found, name, share) for share in shares]
        lines.append(f"| {title} | " + " | ".join("–" if math.isnan(m) else f"{m:.1f}" + (f" ± {s:.1f}" if s else "") for m, s in cells) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Fade:
    """One defect under memories of more and more good and bad images.

    Attributes:
        image: (h, w, 3) uint8, the crop; mask: (h, w) bool or None.
        defect: its kind.
        counts: numbers of good images.
        steps: for every step the number of other images of the kind in the memory; the last step adds the image itself.
        maps: (counts, steps, h, w) float32.
        scores: (counts, steps) of the image; normal: (counts, steps) the median of the good test images.
        limits: of the colour scale.
    """

    image: np.ndarray
    mask: np.ndarray | None
    defect: str
    counts: list[int]
    steps: list[int]
    maps: Tensor
    scores: Tensor
    normal: Tensor
    limits: tuple[float, float]

    def word(self, step: int) -> str:
        """What a step adds to the good images."""
        others = f"{self.steps[step]} of its kind"
        return f"{others} and itself" if step == len(self.steps) - 1 else others


def fade(category: Category, train: PatchFeatures, test: PatchFeatures, extractor: PatchExtractor, *, counts: Sequence[int]) -> Fade:
    """Return what becomes of the easiest kind's median image while images of its kind enter the memory.

    Args:
        category: with kinds of defect in its test split.
        train, test: its features.
        extractor: that made them.
        counts: numbers of good images, rising.
    """
    defects, order = np.array(category.test.defects), shuffled(len(train), 0)
    clean = _fitted(subset(train, order[: counts[-1]]), extractor, 0)
    scores = clean.score(test).image_scores.numpy()
    kinds = sorted(set(defects) - {"good"}, key=lambda kind: float(np.median(scores[defects == kind])))
    own = np.flatnonzero(defects == kinds[-1])
    own = own[np.argsort(scores[own], kind="stable")]
    example = int(own[len(own) // 2])
    others = [int(i) for i in own if i != example]
    others = [others[i] for i in shuffled(len(others), 0)]
    steps = [0, *(2**i for i in range(4) if 2**i <= len(others))]
    steps.append(steps[-1])  # and the image itself
    judged = subset(test, [example, *np.flatnonzero(defects == "good")])
    rows = []
    for count in counts:
        for step, bad in enumerate(steps):
            lent = others[:bad] + ([example] if step == len(steps) - 1 else [])
            training = mixed(train, test, Plan(order[:count] + [0] * len(lent), lent, [], []), len(lent))
            fitted = detector(SYSTEM, training, len(training), 0)
            fitted.extractor = extractor
            rows.append(fitted.fit(training).score(judged))
    shape = (len(counts), len(steps))
    sample, geometry = category.test[example], clean.features.geometry
    image = read_image(sample.path)
    grids = torch.stack([row.patch_scores[0] for row in rows])
    maps = pixel_maps(grids, geometry.output_size(*image.shape[:2]), clean.bank.smoothing)
    mask = None if sample.mask is None else geometry.apply_mask(read_mask(sample.mask, image.shape[:2]))
    return Fade(
        geometry.apply(image), mask, sample.defect.replace("_", " "), list(counts), steps, maps.unflatten(0, shape),
        torch.stack([row.image_scores[0] for row in rows]).view(shape),
        torch.tensor([float(np.median(row.image_scores[1:])) for row in rows]).view(shape), clean.colour_limits(),
    )  # fmt: skip
