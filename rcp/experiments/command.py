"""The command `rcp experiments`: its options, and what it does."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from rcp.experiments.collection import collect
from rcp.experiments.gridfile import read_grid
from rcp.experiments.results import Results
from rcp.experiments.runner import Machine, plan, run_grid
from rcp.features import choose_device

GRIDS = Path(__file__).parent / "grids"
FAILURES = 3  # the exit status if a cell has no result
ABOUT = f"""\
Measure a grid of data × categories × backbones × methods × seeds, from a short TOML file, and write one result file a cell
into --out. A second run does only what is missing; a killed one loses at most the cell in flight. A cell that fails is
recorded with its error, the rest goes on, and the exit status is {FAILURES}.

grids that come along: {', '.join(sorted(path.stem for path in GRIDS.glob('*.toml')))}
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of the command."""
    parser.description = ABOUT
    parser.add_argument("grid", metavar="GRID", help="a TOML file, or the name of a grid that comes along")
    parser.add_argument("--out", metavar="DIR", default="runs/experiments", help="for the results, default runs/experiments")
    parser.add_argument("--collect", metavar="FILE", help="write all results that are there into one JSON file, too")
    parser.add_argument("--dry-run", action="store_true", help="only tell what is there and what is missing (degraded copies are made, as cells are named after their images)")
    add_place_options(parser)


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options that say where data lie and where cells are computed."""
    parser.add_argument(
        "--data", metavar="NAME=DIR", action="append", default=[], type=_pair, help="where a data set lies; repeatable"
    )
    add_machine_options(parser)


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options that say where and how cells are computed."""
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side, default 1")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of each worker")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that sees DIR: tcp://host:8786, or its file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--max-memory", type=float, metavar="GB", help="of each worker; features beyond it wait in a file")
    parser.add_argument(
        "--scratch", metavar="DIR",
        help="for that file: a disk of the worker's own; default the folder of the results, on a cluster the worker's --local-directory",
    )  # fmt: skip


def machine(given: argparse.Namespace) -> Machine:
    """Return how cells are computed, by the options."""
    for name in ("jobs", "threads"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(given, name)}")
    if given.max_memory is not None and given.max_memory <= 0:
        raise ValueError(f"--max-memory must be positive, got {given.max_memory}")
    if given.scratch and given.max_memory is None:
        raise ValueError("--scratch has no effect without --max-memory: features stay in memory")
    if given.scheduler and given.jobs > 1:
        raise ValueError("--jobs has no effect with --scheduler, whose workers are as many as the cluster has: leave one out")
    _check_device(given.device, here=not given.scheduler)
    bound = int(given.max_memory * 1e9) if given.max_memory else None
    scratch = str(Path(given.scratch).expanduser().absolute()) if given.scratch else None  # workers may have another working folder
    return Machine(given.device, given.threads, bound, scratch)


def _check_device(name: str, *, here: bool) -> None:
    """A device that cannot be used is told now, not once for every cell; on a cluster, only whether there can be such a one."""
    try:
        if name != "auto":
            torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must be auto, cpu, cuda, cuda:1 or the like, or mps, got {name!r}") from error
    if here:
        choose_device(name)


def experiments(given: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    path = Path(given.grid)
    if not path.is_file() and (GRIDS / f"{given.grid}.toml").is_file():
        path = GRIDS / f"{given.grid}.toml"
    grid, out = read_grid(path), Path(given.out)
    machine(given)
    groups = plan(grid, dict(given.data), out)
    total = len({name for group in groups for name in group.names})  # two methods may ask for one and the same
    print(f"{grid.title}: {total} cells that share {len(groups)} sets of features", file=sys.stderr)
    if given.dry_run:
        names = {name for group in groups for name in group.names}
        done, failed = Results(out).done(names), Results(out).failed(names)
        print(f"{len(done)} are there, {len(failed - done)} failed the last time, {total - len(done | failed)} were never tried")
        status = 0
    else:
        status = report(run(groups, out, given), out)
    if given.collect:
        print(f"collected in {collect(grid, groups, out, given.collect)}")
    return status


def run(groups, out: Path, given: argparse.Namespace):
    """Have the cells measured, here or on a cluster."""
    if given.scheduler:
        from rcp.experiments.cluster import run_on_cluster  # Dask is an extra

        return run_on_cluster(groups, out, given.scheduler, machine=machine(given), say=_say)
    return run_grid(groups, out, machine=machine(given), jobs=given.jobs, say=_say)


def report(outcome, out: Path) -> int:
    """Say how it ended; return the exit status."""
    print(f"{len(outcome.done)} results in {out}")
    for name in outcome.failed:
        print(f"failed: {out / name}.failed.json: {Results(out).error(name)}", file=sys.stderr)
    if outcome.missing:
        print(f"{len(outcome.missing)} cells have no result yet: give the same command again", file=sys.stderr)
    return 0 if outcome.complete else FAILURES


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _pair(text: str) -> tuple[str, str]:
    name, sign, folder = text.partition("=")
    if not (name and sign and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=DIR, got {text!r}")
    return name, folder
