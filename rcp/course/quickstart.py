"""Checks of notebook 00; its figures are those of `rcp.plots`, which the command line draws as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rcp.comparison import NAMES, Row, summary
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
            (coreset_size(rows, 0.1) + 1, "the share is rounded *down*."),
            (rows, "this is all of them."),
        ],
        tolerance=0.5 / rows,
        hint="count the rows of the training features: `len(train.rows)`.",
    )  # fmt: skip


def check_3(given: str, result: Result) -> Outcome:
    """Return what is to be said of the defect that is missed most often.

    Args:
        given: its name, or "none".
        result: of the detector, with a verdict.
    """
    counts = _missed(result)
    most = max(counts.values())
    worst = [defect for defect, count in counts.items() if count == most] if most else ["none"]
    if given in worst:
        return answer("0.3", given, given, f"Missed: {missed(result)}.")
    wrong = [(defect, f"{defect} is missed {count} times, another one more often: count again.") for defect, count in counts.items()]
    found = "`good` is no defect: a good image above the limit is a false alarm."
    none = "some are missed: their image score is not above the limit."
    return answer("0.3", given, worst[0], "", [*wrong, ("good", found), ("none", none)], hint=f"one of {', '.join(counts)}.")


def missed(result: Result) -> str:
    """Return how many images of each defect score at or below the limit, as words: "crack 3 of 9, swarf 2 of 9"."""
    total = Counter(result.defects)
    return ", ".join(f"{defect.replace('_', ' ')} {count} of {total[defect]}" for defect, count in _missed(result).items())


def _missed(result: Result) -> dict[str, int]:
    scores = result.scores.image_scores.tolist()
    below = Counter(d for d, s in zip(result.defects, scores, strict=True) if s <= result.verdict.threshold.value)
    return {defect: below[defect] for defect in sorted(set(result.defects) - {"good"})}


def finding(rows: Sequence[Row]) -> str:
    """Return in words whether ReConPatch is ahead of both controls by more than the spread over seeds, as Markdown.

    Args:
        rows: from `rcp.comparison.compare`, at least two seeds.
    """
    table = summary(rows, "image_auroc")
    categories = list(dict.fromkeys(category for category, _ in table))
    ahead, behind = [], []
    for category in categories:
        (mean, std), *controls = (table[category, name] for name in reversed(NAMES))
        gaps = [(mean - other) / max(std, spread, 1e-9) for other, spread in controls]
        if min(gaps) > 1:
            ahead.append(category)
        if max(gaps) < -1:
            behind.append(category)
    means = "; ".join(f"{name} {100 * table[categories[-1], name][0]:.2f} ± {100 * table[categories[-1], name][1]:.2f}" for name in NAMES)
    return (
        f"**This run, image AUROC in %, {categories[-1]}:** {means}. ReConPatch is ahead of *both* controls by more than the spread "
        f"in {', '.join(ahead) or 'no line'}, and behind both by more than the spread in {', '.join(behind) or 'none'}."
    )
