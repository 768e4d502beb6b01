"""Checks of notebook 00; its figures are those of `rcp.plots`, which the command line draws as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from rcp.coreset import coreset_size
from rcp.course.checks import Outcome, answer, function
from rcp.evaluation import Result
from rcp.memory import nearest_neighbours


def check_1(given: Callable[[Tensor, Tensor], Tensor]) -> Outcome:
    """Return what is to be said of a function for Eq. 9: (Q, D) queries, (M, D) memory → (Q,) distances."""
    generator = torch.Generator().manual_seed(0)
    cases = [(torch.randn(5, 3, generator=generator), torch.randn(7, 3, generator=generator)) for _ in range(3)]
    return function(
        "0.1", given, lambda q, m: nearest_neighbours(q, m)[0][:, 0], cases,
        "The smallest of all distances to the memory, one number for each query.",
        [
            (lambda q, m: torch.cdist(q, m).amin(1).square(), "this is the *squared* distance: take the root."),
            (lambda q, m: torch.cdist(q, m).mean(1), "this is the mean distance to the memory. One near row is enough to be normal: take the smallest."),
            (lambda q, m: torch.cdist(q, m).amax(1), "this is the farthest row of the memory; Eq. 9 asks for the nearest."),
            (lambda q, m: torch.cdist(q, m).amin(0), "this is the nearest query of each row of the memory: the other way round."),
        ],
        hint="compare with the loop of section 2.",
    )  # fmt: skip


def check_2(given: int, rows: int, images: int) -> Outcome:
    """Return what is to be said of the size of a memory that keeps 10 %.

    Args:
        given: the answer.
        rows: patches of all training images.
        images: training images.
    """
    return answer(
        "0.2", given, coreset_size(rows, 0.1), f"10 % of {rows:,} rows, rounded down; scoring costs ten times as much.",
        [
            (coreset_size(rows, 0.01), "this is 1 %."),
            (coreset_size(images, 0.1), "a row is a *patch*, not an image: an image gives hundreds of them."),
            (rows, "this is all of them."),
        ],
        tolerance=0.5 / rows,
        hint="count the rows of the training features: `len(train.rows)`.",
    )  # fmt: skip


def check_3(given: str, result: Result) -> Outcome:
    """Return what is to be said of the defect that is missed most often.

    Args:
        given: its name.
        result: of the detector, with a verdict.
    """
    limit = result.verdict.threshold.value
    scores = result.scores.image_scores.tolist()
    missed = Counter(d for d, s in zip(result.defects, scores, strict=True) if d != "good" and s <= limit)
    counts = {defect: missed[defect] for defect in sorted(set(result.defects) - {"good"})}
    told = ", ".join(f"{defect} {count}" for defect, count in counts.items())
    most = max(counts.values())
    worst = [defect for defect, count in counts.items() if count == most]
    if given in worst:
        return answer("0.3", given, given, f"Missed: {told}.")
    wrong = [(defect, f"{defect} is missed {count} times, another one more often: count again.") for defect, count in counts.items()]
    found = "`good` is no defect: a good image above the limit is a false alarm."
    return answer("0.3", given, worst[0], "", [*wrong, ("good", found)], hint=f"one of {', '.join(counts)}.")
