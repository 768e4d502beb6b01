"""Notebook 09: the checks of its exercises."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from rcp.course import checks
from rcp.distances import distances
from rcp.metrics import dprime
from rcp.positions import agreement_of

MEMBERSHIP_CASES = (  # sorted distances, the point itself first; σ
    (torch.tensor([0.0, 1.0, 2.0, 4.0]), 2.0),
    (torch.tensor([0.0, 10.0, 20.0, 40.0]), 8.0),
    (torch.tensor([0.0, 0.0, 3.0, 5.0]), 1.5),  # another point at the same place
)
AGREEMENT_CASES = (  # distances, groups, k
    (distances(torch.tensor([[0.0], [1.0], [2.5], [7.0], [8.0]])), torch.tensor([0, 0, 1, 1, 1]), 1),
    (distances(torch.tensor([[0.0], [1.0], [2.5], [7.0], [8.0]])), torch.tensor([0, 0, 1, 1, 1]), 2),
)
DPRIME_NORMAL, DPRIME_ABNORMAL = np.array([2.0, 4.0, 6.0, 4.0]), np.array([10.0, 16.0, 10.0, 12.0])


def _memberships(d: Tensor, sigma: float) -> Tensor:
    return torch.exp(-(d[1:] - d[d > 0].min()).clamp_min(0) / sigma)


def check_1(given: Callable[[Tensor, float], Tensor]) -> checks.Outcome:
    """Check exercise 1.1: memberships of a point's neighbours."""
    return checks.function(
        "9.1", given, _memberships, MEMBERSHIP_CASES,
        "The nearest neighbour has membership 1 whatever its distance: here the scale of the data is forgotten.",
        [
            (lambda d, s: torch.exp(-d[1:] / s), "ρ is missing: the nearest neighbour must come out as 1, not less."),
            (lambda d, s: torch.exp(-(d[1:] - d[d > 0].min()) / s),
             "a neighbour at distance 0 lies nearer than ρ and gets more than 1: cut d − ρ off at 0."),
            (lambda d, s: torch.exp(-(d[1:] - d[1]) / s),
             "ρ is the smallest distance *above 0*; d[1] is 0 where two points coincide."),
            (lambda d, s: torch.exp(-(((d[1:] - d[d > 0].min()).clamp_min(0) / s) ** 2)),
             "that is a Gaussian: UMAP takes exp of minus the distance, not of its square."),
            (lambda d, s: torch.exp(-(d - d[d > 0].min()).clamp_min(0) / s),
             "the point itself, d[0], is no neighbour of its own: leave it out."),
        ],
        hint="Return exp(−max(0, d − ρ) / σ) for d[1:], with ρ the smallest distance above 0.",
    )  # fmt: skip


def check_2(given: str) -> checks.Outcome:
    """Check exercise 2.1: what the picture of three clouds says."""
    return checks.choice("9.2", given, {
        "a": "sizes are not kept: every cloud is drawn so that near neighbours lie about equally far; C, four "
             "times as wide in truth, is drawn about as wide as A.",
        "b": "distances between groups are not kept: C is five times as far from A as B is; the picture hides it.",
        "c": "who is whose neighbour is what UMAP tries to keep, though even that only in part (`kept_neighbours`).",
        "d": "an empty gap is no proof: the single cloud above has none, and few neighbours tear gaps into it.",
    }, right="c")  # fmt: skip


def check_3(given: Callable[[Tensor, Tensor, int], float]) -> checks.Outcome:
    """Check exercise 3.1: the share of nearest neighbours of the same group."""

    def same_share(near: Tensor, groups: Tensor) -> float:
        return float((groups[near] == groups[:, None]).double().mean())

    return checks.function(
        "9.3", given, agreement_of, AGREEMENT_CASES,
        "It is a number of the feature space, not of the picture, and has no unit: 1 is 'only my own kind'.",
        [
            (lambda d, g, k: same_share(d.topk(k, largest=False).indices, g),
             "every row is its own nearest neighbour, at distance 0, and counts as agreement: put infinity there."),
            (lambda d, g, k: same_share(d.topk(k).indices, g), "these are the k *farthest* rows: say largest=False."),
            (lambda d, g, k: 1 - agreement_of(d, g, k), "that is the share that does *not* agree."),
            (lambda d, g, k: k * agreement_of(d, g, k), "that is the number of agreeing neighbours: divide by k."),
        ],
        hint="Set the diagonal to infinity, take topk(k, largest=False), compare groups[nearest] with groups[:, None].",
    )  # fmt: skip


def check_4(given: float) -> checks.Outcome:
    """Check exercise 5.1: d' of eight scores."""
    n, a = DPRIME_NORMAL, DPRIME_ABNORMAL
    gap = a.mean() - n.mean()
    return checks.answer(
        "9.4", given, dprime(np.repeat([0, 1], 4), np.concatenate([n, a])),
        "The means are 8 apart, the mean of the two variances is 4, its root 2.",
        [
            (gap / sqrt((a.var(ddof=1) + n.var(ddof=1)) / 2),
             "these are sample variances (divided by n − 1); we divide by n. With few images it matters: say which."),
            (gap / ((a.var() + n.var()) / 2), "the root is missing: below the line stands a standard deviation."),
            (gap / sqrt(a.var() + n.var()), "under the root stands the *mean* of the variances, not their sum."),
            (gap / ((a.std() + n.std()) / 2), "that is the mean of the deviations; average the variances, then root."),
            (gap / np.concatenate([n, a]).std(),
             "that is the deviation of all eight scores: the gap itself is in it, so it can never be beaten by much."),
            (gap, "that is the gap between the means: it still has the unit of the scores."),
            (-4.0, "d' has no sign here: take the absolute difference."),
        ],
        hint="|mean difference| / sqrt(mean of the two population variances).",
    )  # fmt: skip
