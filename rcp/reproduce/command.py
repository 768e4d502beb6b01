"""The command `rcp reproduce`: its options, and what it does."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

import timm

from rcp import data as datasets
from rcp import miniatures
from rcp.backbones import PRESETS as BACKBONES
from rcp.data import Category
from rcp.experiments import Results, plan
from rcp.experiments.collection import collect, read_rows
from rcp.experiments.command import FAILURES, add_machine_options, machine, report, run
from rcp.experiments.runner import Known, Machine
from rcp.experiments.watch import Group
from rcp.features import STORED, choose_device
from rcp.reproduce import copies, pictures, render, systems, words
from rcp.reproduce.compare import Failure, Table, compare
from rcp.reproduce.cost import check_images, grid_of, predict
from rcp.reproduce.figures import FIGURES
from rcp.reproduce.pace import Pace, told
from rcp.reproduce.setup import DATA, QUICK, QUICK_SEEDS, SEEDS, TITLES, Setup, check_named
from rcp.reproduce.sheet import SYSTEMS, Sheet, name_of
from rcp.reproduce.tables import misfit, sheet

TABLES = (*(name_of(number) for number in range(1, 8)), name_of(SYSTEMS))
DRAWN = tuple(FIGURES)
CELLS = "cells"  # below --out: a result file a cell
ABOUT = f"""\
Measure the tables and figures of the ReConPatch paper and write each table with the published numbers beside the measured ones: mean and standard
deviation over seeds, the difference, and the reason where it is known, as Markdown, CSV and LaTeX. A second run does only
what is missing; a killed one loses at most the cell in flight. A cell that fails is a dash in the table, and the exit status
is {FAILURES}. ReConPatch always stands beside PatchCore and an untrained f on the same features.
"""
EXAMPLES = """\
systems: all systems side by side, each with its own paper's numbers, and what each costs
tables: 1 coreset, 2 width of f, 3 patch size and levels, 4 image quality, 5 categories, 6 ensembles (MVTec AD), 7 BTAD
figures: 3 UMAP over the epochs, 4 histogram of image scores with d', 5 contours of maps; each drawn from its result file

examples:
  rcp reproduce table5 --data mvtec DIR                       the paper's Table 5, on its backbones
  rcp reproduce table7 --data btad DIR --backbone embedded    without fetching weights
  rcp reproduce systems --data mvtec DIR --backbone embedded  all systems in their teaching presets
  rcp reproduce all --data synthetic DIR --quick              the whole path, on drawn pictures
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of the command."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.add_argument("what", nargs="+", metavar="WHAT", choices=(*TABLES, *DRAWN, "all"), help=f"{', '.join((*TABLES, *DRAWN))}, or all")
    parser.add_argument(
        "--data", nargs=2, metavar=("NAME", "DIR"), required=True,
        help=f"one of {', '.join(DATA)}, and where it lies; synthetic is drawn there if it is not",
    )  # fmt: skip
    parser.add_argument("--category", metavar="NAME", action="append", help="only this one; repeatable; default all that are found")
    parser.add_argument("--backbone", metavar="NAME", help="paper, embedded, or a backbone's name; default paper, with --quick embedded")
    parser.add_argument(
        "--weights", metavar="[NAME=]FILE", action="append", default=[],
        help="a local weight file, of backbone NAME where a table has several; repeatable",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, metavar="N", help=f"seeds 0 … N-1, default {SEEDS}, with --quick {QUICK_SEEDS}")
    parser.add_argument(
        "--stored", choices=tuple(STORED), help="how features are kept; default float32 at 224 px with s = 3, else float16"
    )
    parser.add_argument(
        "--quick", action="store_true",
        help=f"{QUICK['epochs']} epochs of {QUICK['steps']} steps: tries the path, and its tables say so",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", default="runs/reproduce", help="for tables and results, default runs/reproduce")
    add_machine_options(parser)


def reproduce(given: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    where = machine(given)  # a wrong number is told before the work
    figures = _figures(given.what)
    setup, root = _setup(given)
    out = Path(given.out)
    sheets = _sheets(given.what, setup)
    check_named(setup, _used(sheets, figures, setup))
    categories = [datasets.find(root, name) for name in setup.categories]
    here = Pace(where) if figures or not given.scheduler else None  # figures are always computed on this machine
    _say_costs(sheets, figures, setup, categories, here, Pace(where, given.jobs) if not given.scheduler else None)
    if any((out / CELLS).glob("*.json")):
        _say(f"counted as if nothing were there yet: what lies in {out / CELLS} is not measured again")
    copies.write(sheets, categories, root, out / CELLS, _say)
    known = Known()  # tables share images and backbones: they are hashed once
    plans = [plan(one.grid, {setup.data: root}, out / CELLS, known) for one in sheets]
    outcome = run(merged(plans), out / CELLS, given) if sheets else None
    for one, groups in zip(sheets, plans, strict=True):
        table = finish(one, groups, setup, root, out)
        paths = render.write(table, out)
        if table.number == SYSTEMS:
            paths += systems.write_costs(read_rows(out / f"{name_of(SYSTEMS)}.json"), _this_machine(where), out)
        print(f"{name_of(table.number)}: {', '.join(path.as_posix() for path in paths)}")
    status = report(outcome, out / CELLS) if sheets else 0
    drawn = pictures.draw(figures, setup, root, out, machine=where, say=_say)
    for path in drawn.paths:
        print(path.as_posix())
    for name, error in drawn.failures.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return FAILURES if drawn.failures else status


def _this_machine(where: Machine) -> str:
    return f"{os.cpu_count()} cores, device {choose_device(where.device)}"


def _used(sheets: list[Sheet], figures: list[str], setup: Setup) -> dict[str, set[str]]:
    """Table or figure → the backbones that it uses."""
    found = {name_of(one.number): {features.backbone for features in one.grid.backbones.values()} for one in sheets}
    return found | {name: {one.backbone for one in setup.preset(pictures.PRESET).features} for name in figures}


def _figures(what: list[str]) -> list[str]:
    """Those asked for; with "all", the ones that this installation can measure."""
    found = [one for one in DRAWN if one in what or "all" in what]
    if "figure3" in found and importlib.util.find_spec("umap") is None:
        way = "figure3 needs umap-learn: pip install 'rcp[notebooks]'"
        if "figure3" in what:
            raise ValueError(way)
        print(f"left out: {way}", file=sys.stderr)
        found.remove("figure3")
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def finish(one: Sheet, groups: list[Group], setup: Setup, root: Path, out: Path) -> Table:
    """Return the table of what has been measured so far; its cells are collected into out/table<n>.json.

    Args:
        one, groups: the sheet and its plan.
        setup: what was asked for.
        root: the data.
        out: where the cells lie in `cells`.
    """
    results = Results(out / CELLS)
    rows = read_rows(collect(one.grid, groups, out / CELLS, out / f"{name_of(one.number)}.json"))
    every = [(cell, name) for group in groups for cell, name in zip(group.cells, group.names, strict=True)]
    lost = results.failed(name for _, name in every) - results.done(name for _, name in every)
    failures = [Failure(cell.names(), results.error(name)) for cell, name in every if name in lost]
    drawn = setup.data == "synthetic" or words.is_miniature(root)
    caption = words.caption(one, setup, miniature=drawn)
    return compare(one, setup, rows, failures, caption, words.reasons(one, setup, root, miniature=drawn))


def merged(plans: list[list[Group]]) -> list[Group]:
    """Return the groups of several tables as one list: what they share is computed once.

    Args:
        plans: of each table, from `rcp.experiments.plan`.
    """
    found: dict[tuple, dict] = {}
    for group in (group for groups in plans for group in groups):
        first = group.cells[0]
        cells = found.setdefault((group.root, first.data, first.category, first.features, first.looks_at_pixels), {})
        for cell, name in zip(group.cells, group.names, strict=True):
            cells.setdefault(name, cell)
    return [Group(root, tuple(cells.values()), tuple(cells)) for (root, *_), cells in found.items()]


def _setup(given: argparse.Namespace) -> tuple[Setup, Path]:
    name, root = given.data[0], Path(given.data[1])
    if name not in DATA:
        raise ValueError(f"--data: {name!r} is none of {', '.join(DATA)}; say the name and then the folder: --data mvtec DIR")
    if given.seeds is not None and given.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {given.seeds}")
    if name == "synthetic":
        miniatures.mvtec(root)
    seeds = given.seeds or (QUICK_SEEDS if given.quick else SEEDS)
    backbone = given.backbone or ("embedded" if given.quick else "paper")
    setup = Setup(
        name, _categories(name, root, given.category), backbone, _weights(given.weights), tuple(range(seeds)), given.quick, given.stored
    )
    return setup, root


def _categories(name: str, root: Path, wanted: list[str] | None) -> tuple[str, ...]:
    """Those to measure, in the order of the release."""
    found = datasets.categories(root)
    for one in wanted or ():
        if one not in found:
            raise ValueError(f"--category: there is no {one!r} in {root}; it has {', '.join(found) or 'no category'}")
        if one not in DATA[name]:
            raise ValueError(f"--category: {one!r} is no category of {TITLES[name]}; for other data take `rcp experiments`")
    own = tuple(one for one in DATA[name] if one in (wanted or found))
    if not own:
        raise ValueError(
            f"--data {name}: none of {root}'s categories ({', '.join(found) or 'none'}) is one of {TITLES[name]}: "
            "check the folder, or take `rcp experiments` for other data"
        )
    if wanted is None and (others := [one for one in found if one not in own]):
        print(f"left out, as {TITLES[name]} has no such category: {', '.join(others)}", file=sys.stderr)
    return own


def _weights(texts: list[str]) -> dict[str, str]:
    """Backbone → file; "" for one that is given without a name."""
    found: dict[str, str] = {}
    for text in texts:
        name, sign, file = text.partition("=")
        name, file = (name, file) if sign and name.partition(".")[0] in _models() else ("", text)
        if name in found or (found and "" in (name, *found)):
            raise ValueError(f"--weights {text}: given several times, each must name another backbone: --weights NAME=FILE")
        if not Path(file).is_file():
            hint = f", and {text.partition('=')[0]} is no backbone's name" if sign and file == text else ""
            raise FileNotFoundError(f"--weights: there is no file {file}{hint}")
        found[name] = file
    return found


def _models() -> set[str]:
    return {*BACKBONES, *timm.list_models()}


def _sheets(what: list[str], setup: Setup) -> list[Sheet]:
    numbers = [SYSTEMS if one == name_of(SYSTEMS) else int(one.removeprefix("table")) for one in dict.fromkeys(what) if one in TABLES]
    if "all" not in what:
        return [systems.sheet(setup) if number == SYSTEMS else sheet(number, setup) for number in numbers]
    found = [systems.sheet(setup)] if SYSTEMS in numbers else []
    for number in range(1, 8):
        why = None if number in numbers else misfit(number, setup)
        if why:
            print(f"left out: {why}", file=sys.stderr)
        else:
            found.append(sheet(number, setup))
    return found


def _say_costs(
    sheets: list[Sheet], figures: list[str], setup: Setup, categories: list[Category], here: Pace | None, pace: Pace | None
) -> None:
    images = {one.name: (len(one.train), len(one.test)) for one in categories}
    check_images(setup.data, images)
    loaded: dict = {}
    every: dict = {}
    for one in sheets:
        cost = predict(one, images, loaded)
        _say(f"{cost}\n  {told(cost.trainings, pace)}")
        every |= cost.trainings
    if figures:
        grid = grid_of(setup.preset(pictures.PRESET).features[0], loaded)  # weights that cannot be had are told now
        own = pictures.trainings(figures, setup, images, grid)
        _say(f"{', '.join(figures)}: {told(own, here)}")
        every |= own
    if len(sheets) + bool(figures) > 1:
        _say(f"all of it, with what is shared counted once: {told(every, pace)}")
