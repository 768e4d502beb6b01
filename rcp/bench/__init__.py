"""`rcp bench`: how long the stages take, how much memory, how it grows, and how peers compare.

A single figure says little, because machines differ and are noisy. So whatever is compared is measured in turn in one run,
and the ratio stands with its spread. Everything runs on the CPU. Each suite answers one question and returns plain data;
BENCHMARKS.md tells what came of them, beside the floors that were computed beforehand; of `repeat`, REPRODUCIBILITY.md.

==========  ============================================================================  ====================
suite       question                                                                      takes, on 2 cores
==========  ============================================================================  ====================
stages      How far is each stage from what the machine can do?                           2 minutes
growth      How do seconds grow with images, image size, feature width, coreset?          2 minutes
search      What do approximate searches gain and lose on a memory of a million rows?     5 minutes
memory      Does a fit on 1.4 million rows keep to a bound of 3 GiB?                      5 minutes
peers       How does anomalib compare, on the same files, rows and maps?                  10 minutes a repeat
repeat      What is bit-equal, what is close, what varies? (not seconds: numbers)         2 minutes
systems     What does each of the systems cost on one category?                           8 minutes a repeat
==========  ============================================================================  ====================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcp.bench.measure import machine, rates
from rcp.data import Category

SUITES = ("stages", "growth", "search", "memory", "peers", "repeat", "systems")


@dataclass(frozen=True)
class Choice:
    """What the suites need to know.

    Attributes:
        repeats: measurements a line.
        category: of the images for peers, repeat and systems; None: an embedded one, but for peers.
        peer: a Python that can import anomalib, for the peers.
        folder: for temporary files; None: the system's.
    """

    repeats: int = 5
    category: Category | None = None
    peer: Path | None = None
    folder: Path | None = None


def bench(suites: Sequence[str], choice: Choice = Choice(), say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run suites and return their numbers.

    Args:
        suites: names out of `SUITES`.
        choice: `Choice`.
        say: receives the tables, line by line.

    Returns:
        Plain data: the machine, its rates, and one entry a suite.

    Raises:
        ValueError: if a suite is unknown, or needs a category or a peer that was not named.
    """
    from rcp.bench import growth, memory, peers, repeat, search, stages, systems  # here: each suite imports what it measures

    known = {"stages": stages, "growth": growth, "search": search, "memory": memory, "peers": peers, "repeat": repeat,
             "systems": systems}  # fmt: skip
    for name in suites:
        if name not in known:
            raise ValueError(f"bench knows no suite {name!r}; there are {', '.join(SUITES)}")
        if name == "peers" and (choice.peer is None or choice.category is None):
            raise ValueError(
                "bench peers needs --peer PYTHON, of an environment with anomalib, and --data DIR --category NAME"
            )
    report: dict[str, Any] = {"machine": machine(), "rates": rates(choice.repeats)}
    say("{processor}, {cores} cores, {threads} threads, torch {torch}".format(**report["machine"]))
    for name, value in report["rates"].items():
        say(f"  {name:58} {value:8.1f}")
    for name in suites:
        say(f"\n{name}")
        report[name] = known[name].measure(choice, say)
    return report
