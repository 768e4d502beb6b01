"""Checks of the exercises of notebook 06."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rcp.course.checks import Outcome, answer, function
from rcp.course.ensemble_gains import BIG, MEAN_Z, ONE, SEEDS, SYSTEMS, backbone_means, mean_over_categories
from rcp.scoring import modified_z_score

SEVEN = torch.tensor([10.0, 11.0, 9.0, 10.5, 9.5, 10.2, 30.0])  # seven normal scores; the last photograph is blurred


def check_1(given: object) -> Outcome:
    """Say whether the modified z-score of 12 under `SEVEN` is right."""
    numbers = SEVEN.numpy()
    centre, mad = float(np.median(numbers)), robust(numbers)[1] / 1.4826
    mean_deviation = float(np.abs(numbers - centre).mean())
    return answer(
        "6.1", given, float(modified_z_score(torch.tensor(12.0), centre, mad)),
        "12 lies well above the median; the usual z would even call it lower than average.",
        [
            ((12 - numbers.mean()) / numbers.std(ddof=1),
                "these are mean and standard deviation, which one outlier has pulled up: 12 even seems low."),
            ((12 - numbers.mean()) / numbers.std(),
                "these are mean and standard deviation, which one outlier has pulled up: 12 even seems low."),
            ((12 - centre) / mad,
                "1.4826 is missing: the MAD of a normal distribution is only 0.6745 of its standard deviation."),
            ((12 - centre) / (1.4826 * mean_deviation),
                ("this is the *mean* absolute deviation; one outlier has inflated it. The constant 1.4826 belongs to "
                "the median.")),
        ],
        hint="median of the seven, median of the distances from it, times 1.4826.",
    )  # fmt: skip


def check_2(given: object) -> Outcome:
    """Say whether a function that turns test scores into modified z-scores is right; its cases have even counts."""
    cases = [
        (torch.tensor([3.0, 10.0, 2.5]), torch.tensor([1.0, 2.0, 3.0, 5.0])),
        (torch.tensor([40.0, 41.5]), torch.tensor([30.0, 31.0, 29.5, 30.2, 50.0, 30.9])),
    ]

    def right(scores: Tensor, normal: Tensor) -> Tensor:
        centre, wide = robust(normal.numpy())
        return modified_z_score(scores, centre, wide / 1.4826)

    def lower_middle(scores: Tensor, normal: Tensor) -> Tensor:
        return (scores - normal.median()) / (1.4826 * (normal - normal.median()).abs().median())

    def from_mean(scores: Tensor, normal: Tensor) -> Tensor:
        centre = float(np.median(normal))
        return (scores - centre) / (1.4826 * (normal - centre).abs().mean())

    return function(
        "6.2", given, right, cases, "Only `normal` sets centre and width; the scores that are judged have no say in it.",
        [
            (lambda scores, normal: right(scores, scores),
                ("median and MAD come from the very scores that are judged. Half of them then lie below 0 whatever "
                "they are: a batch of defects looks normal. Take `normal`.")),
            (lower_middle,
                ("torch's median of an even number of values is the *lower* of the two in the middle; numpy takes "
                "their mean, as rcp does.")),
            (from_mean, "this is the mean absolute deviation; use the median of the deviations."),
            (lambda scores, normal: 1.4826 * right(scores, normal),
                "1.4826 is missing: without it the unit is not a standard deviation."),
            (lambda scores, normal: (scores - normal.mean()) / normal.std(), "mean and standard deviation follow a single outlier."),
        ],
    )  # fmt: skip


def check_3(given: object) -> Outcome:
    """Say whether the share of the gain that seeds alone bring is right."""
    found = {system: mean_over_categories(system) for system in SYSTEMS}
    best = max(backbone_means())
    return answer(
        "6.3", given, (found[SEEDS] - found[ONE]) / (found[MEAN_Z] - found[ONE]),
        "Much of what looks like a gain by different backbones comes with any averaging: the coreset is drawn "
        "at random, and its noise averages out.",
        [
            (found[SEEDS] / found[MEAN_Z], "this compares the AUROCs themselves. A gain is counted from what one member has."),
            ((found[MEAN_Z] - found[SEEDS]) / (found[MEAN_Z] - found[ONE]),
                "this is the other part: what different backbones add to three seeds."),
            ((found[BIG] - found[ONE]) / (found[MEAN_Z] - found[ONE]),
                "this is the single backbone with a larger coreset, not the three seeds."),
            ((found[SEEDS] - best) / (found[MEAN_Z] - best),
                "counted from the best backbone; the question asks for the mean of the single members."),
        ],
        hint="(seeds - one) / (mean z - one), with means over the four categories.",
    )  # fmt: skip


def robust(values: np.ndarray) -> tuple[float, float]:
    """Return the median of (n,) values, and 1.4826 MAD."""
    centre = float(np.median(values))
    return centre, 1.4826 * float(np.median(np.abs(values - centre)))
