"""The command `rcp reproduce`: to the end on a miniature, again without doing anything twice, and each mistake told."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from small_grid import TINY
from small_reproduce import make_small, parsed

from rcp import miniatures, published
from rcp.backbones import WeightsError
from rcp.detectors import SYSTEMS
from rcp.experiments import runner
from rcp.experiments.watch import Group
from rcp.reproduce import command, systems
from rcp.reproduce.setup import DATA, Setup, published_name
from rcp.reproduce.tables import FITS, misfit, sheet

NUMBERS = range(1, 8)


def setup(**changes) -> Setup:
    categories = changes.pop("categories", tuple(DATA["mvtec"]))
    return Setup("mvtec", categories, **changes)


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    """The names of MVTec AD, two of them, in small."""
    return miniatures.mvtec(tmp_path_factory.mktemp("mini") / "mvtec", categories=("bottle", "carpet"), train=3, good=2)


@pytest.fixture
def little(monkeypatch):
    """Small networks, small pictures, one step."""
    make_small(monkeypatch)


def test_a_table_is_measured_to_the_end_and_a_second_run_does_nothing_twice(little, mini, tmp_path, monkeypatch, capsys):
    line = ("table3", "--data", "mvtec", str(mini), "--quick", "--backbone", "paper", "--seeds", "1", "--threads", "1", "--out", str(tmp_path))
    assert command.reproduce(parsed(*line)) == 0
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.json")}
    assert len(first) == 2 * 3 * 2  # categories, features, methods
    texts = {name: (tmp_path / f"table3{name}").read_text(encoding="utf-8") for name in (".md", ".csv", ".tex", ".json")}
    assert "a drawn miniature of MVTec AD, 2 of 15 categories (bottle, carpet)" in texts[".md"]
    told = capsys.readouterr().err
    assert "12 cells that share 6 sets of features" in told and "counted as if" not in told

    def never(*_, **__):
        raise AssertionError("a cell was measured twice")

    monkeypatch.setattr("rcp.experiments.runner.measure", never)
    assert command.reproduce(parsed(*line)) == 0
    assert "counted as if nothing were there yet: what lies in " in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.json")} == first
    assert all((tmp_path / f"table3{name}").read_text(encoding="utf-8") == text for name, text in texts.items())


def test_a_failing_cell_gives_a_dash_and_exit_status_3_and_the_next_run_mends_it(little, mini, tmp_path, monkeypatch, capsys):
    whole = runner.measure

    def broken(cell, material):
        if cell.detector == "patchcore":
            raise ValueError("no luck today")
        return whole(cell, material)

    monkeypatch.setattr(runner, "measure", broken)
    line = ("table3", "--data", "mvtec", str(mini), "--category", "bottle", "--quick", "--backbone", "paper", "--seeds", "1", "--threads", "1", "--out", str(tmp_path))
    assert command.reproduce(parsed(*line)) == 3
    text = (tmp_path / "table3.md").read_text(encoding="utf-8")
    assert "bottle, seed 0: failed, ValueError: no luck today" in text
    [row] = [one for one in text.splitlines() if one.startswith("| bottle | PatchCore, s=3")]
    assert row.split("|")[4].strip().startswith("–")
    assert "no luck today" in capsys.readouterr().err
    monkeypatch.setattr(runner, "measure", whole)
    assert command.reproduce(parsed(*line)) == 0
    assert "failed" not in (tmp_path / "table3.md").read_text(encoding="utf-8")


def test_tables_1_2_3_4_and_6_come_to_their_end_with_every_line_measured(little, mini, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rcp.experiments.measure._probes", lambda *_: {})  # half of the time, and no table shows them
    monkeypatch.setattr("rcp.reproduce.tables.WIDTHS", (128, 64))
    tables = ("table1", "table2", "table3", "table4", "table6")
    line = ("--data", "mvtec", str(mini), "--category", "bottle", "--quick", "--backbone", "paper", "--seeds", "1", "--threads", "1", "--out", str(tmp_path))
    assert command.reproduce(parsed(*tables, *line)) == 0
    told = capsys.readouterr().err
    asked = Setup("mvtec", ("bottle",), seeds=(0,), quick=True)
    for name in tables:
        one = sheet(int(name[-1]), asked)
        wanted = {line.label for line in one.lines if line.cells}
        with (tmp_path / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["category"] == "bottle"]
        assert {row["method"] for row in rows} == wanted
        for row in rows:
            assert row["seeds"] == "1" and 0 <= float(row["measured"]) <= 100, row
        assert f"{name}: " in told
        text = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        assert "not run" not in text and "failed" not in text
    assert "16 degraded copies of images, about" in told and "[3/3] bottle, both: 8 images" in told
    assert "all of it, with what is shared counted once: " in told
    assert "one draw (seed 0), the same for all seeds" in (tmp_path / "table4.md").read_text(encoding="utf-8")


def test_the_systems_stand_side_by_side_each_with_its_own_papers_numbers_and_its_cost(mini, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(systems, "_backbones", lambda setup: {"tiny": replace(TINY, crop=64)})
    monkeypatch.setattr("rcp.reproduce.setup.QUICK", {"epochs": 1, "steps": 1, "batch_size": 32})
    monkeypatch.setattr(systems, "TITLES", {kind: systems.TITLES[kind] for kind in ("histogram", "spade", "padim", "rd4ad")})
    line = ("systems", "--data", "mvtec", str(mini), "--quick", "--seeds", "1", "--category", "bottle", "--out", str(tmp_path / "out"))
    assert command.reproduce(parsed(*line)) == 0
    text, out = (tmp_path / "out" / "systems.md").read_text(encoding="utf-8"), capsys.readouterr().out
    assert "image AUROC: published" in text and "AUPRO: published" in text and "--quick: 4 steps of every training" in text
    printed = published.find(method="SPADE", category="bottle", metric="pixel_auroc", file="other_systems_per_category").value
    assert f"| {printed:.2f} |" in next(row for row in text.splitlines() if row.startswith("| bottle | SPADE |"))
    assert "systems.md" in out and "systems_cost.md" in out
    with (tmp_path / "out" / "systems_cost.csv").open(encoding="utf-8") as file:
        costs = {row["system"]: row for row in csv.DictReader(file)}
    assert set(costs) == {"PatchCore", "ReConPatch", *systems.TITLES.values()} and float(costs["PaDiM"]["state_bytes"]) > 1e5


def test_quick_shortens_every_training_a_teachers_as_well():
    cells = systems.sheet(setup(quick=True, backbone="embedded")).grid.cells(lambda data: ["bottle"])
    steps = {(cell.method, name): value for cell in cells for name, value in cell.options.items() if name.endswith("steps")}
    assert set(steps.values()) == {4} and ("Uninformed Students", "teacher_steps") in steps and ("Focus Your Distribution", "coarse_steps") in steps


def test_with_the_papers_backbone_every_system_has_its_own():
    whole = systems.sheet(setup())
    assert whole.grid.backbones["MKD"].backbone.startswith("vgg16") and whole.grid.backbones["PaDiM"].backbone == "wide_resnet50_2"
    cells = [cell for cell in whole.grid.cells(lambda data: ["bottle"]) if cell.seed == 0 and cell.category == "bottle"]
    assert {cell.method: dict(cell.options) for cell in cells}["PaDiM"]["dimension"] == 550
    assert len(cells) == 2 + len(systems.TITLES) and set(systems.TITLES) == set(SYSTEMS)
    with pytest.raises(ValueError, match="systems needs the weights of .*: give each with --weights NAME=FILE"):
        systems.sheet(setup(weights={"": "file"}))


def test_figures_are_counted_on_this_machine_even_if_a_cluster_does_the_tables(mini, tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(command, "Pace", lambda where, jobs=1: made.append(where.device))
    monkeypatch.setattr(command.pictures, "draw", lambda *given, **more: command.pictures.Drawn((), {}))
    line = ("figure4", "--data", "mvtec", str(mini), "--quick", "--out", str(tmp_path), "--device", "cpu")
    assert command.reproduce(parsed(*line, "--scheduler", "tcp://host:8786")) == 0
    assert made == ["cpu"]


def test_all_takes_what_fits_and_says_what_it_left_out(capsys):
    for data, numbers in FITS.items():
        found = command._sheets(["all"], Setup(data, tuple(DATA[data])))
        assert tuple(one.number for one in found) == numbers
        told = capsys.readouterr().err
        assert all((f"table{n} is about" in told) == (n not in numbers) for n in NUMBERS)
    assert misfit(6, setup(backbone="resnet18")) and not misfit(6, setup())


def test_what_two_tables_share_is_computed_once():
    cells = {n: sheet(n, setup(categories=("pill",), seeds=(0,))).grid.cells(lambda data: []) for n in (1, 2)}
    named = {n: tuple(str(hash(repr(cell.settings()))) for cell in own) for n, own in cells.items()}
    shared = set(named[1]) & set(named[2])
    assert shared  # f 1024 wide with 1 %
    plans = []
    for n in (1, 2):
        groups = {}
        for cell, name in zip(cells[n], named[n], strict=True):
            groups.setdefault(cell.features, []).append((cell, name))
        plans.append([Group("there", tuple(c for c, _ in own), tuple(name for _, name in own)) for own in groups.values()])
    merged = command.merged(plans)
    names = [name for group in merged for name in group.names]
    assert sorted(names) == sorted({*named[1], *named[2]}) and len(names) == len(set(names))
    assert len(merged) == len({group.cells[0].features for group in merged})


def test_weights_that_cannot_be_had_are_told_in_one_sentence_with_the_ways_out(mini, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise WeightsError("no net")

    monkeypatch.setattr("rcp.reproduce.cost.load_backbone", offline)
    with pytest.raises(WeightsError, match=r"wide_resnet50_2 cannot be had .* --weights wide_resnet50_2=FILE, or take --backbone embedded"):
        command.reproduce(parsed("table5", "--data", "mvtec", str(mini), "--out", str(tmp_path)))
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("table7", "--data", "mvtec", "{mini}"), "table7 is about BTAD; --data mvtec fits table1"),
        (("table5", "--data", "btad", "{mini}"), "none of .* is one of BTAD"),
        (("table5", "--data", "mvtek", "{mini}"), "--data: 'mvtek' is none of mvtec, btad"),
        (("table5", "--data", "mvtec", "{mini}", "--category", "pill"), "no 'pill' in .*; it has bottle, carpet"),
        (("table5", "--data", "mvtec", "{mini}", "--seeds", "0"), "--seeds must be at least 1"),
        (("table5", "--data", "mvtec", "{mini}", "--jobs", "0"), "--jobs must be at least 1"),
        (("table6", "--data", "mvtec", "{mini}", "--backbone", "resnet18"), "three backbones, so --backbone resnet18 does not do"),
        (("table5", "--data", "mvtec", "{mini}", "--weights", "nowhere.pth"), "there is no file nowhere.pth"),
        (("table5", "--data", "mvtec", "{mini}", "--weights", "wide_resnet5=a.pth"), "no file wide_resnet5=a.pth, and wide_resnet5 is no backbone"),
        (("table5", "--data", "mvtec", "{mini}", "--weights", "resnet18=a.pth"), "there is no file a.pth$"),
        (("table5", "--data", "mvtec", "{mini}", "--weights", __file__), "needs the weights of wide_resnet101_2, wide_resnet50_2"),
        (("table1", "--data", "mvtec", "{mini}", "--weights", f"vit_base_patch16_224={__file__}"), "table1 takes wide_resnet50_2, and no vit_base"),
        (("table1", "--data", "mvtec", "{mini}", "--weights", f"resnext101={__file__}"), "resnext101=…: table1 takes wide_resnet50_2, and no resnext101"),
        (("table5", "figure4", "--data", "mvtec", "{mini}", "--weights", f"resnext101={__file__}"), "table5, figure4 take wide_resnet101_2, wide_resnet50_2, and no"),
        (("figure4", "--data", "mvtec", "{mini}", "--weights", f"resnet18={__file__}"), "figure4 takes wide_resnet50_2, and no resnet18"),
        (("table1", "--data", "mvtec", "{mini}", "--weights", __file__, "--weights", __file__), "each must name another backbone"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_one_sentence(mini, tmp_path, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        command.reproduce(parsed(*(a.format(mini=mini) for a in arguments), "--out", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_one_weight_file_serves_a_table_of_one_backbone_and_named_ones_a_table_of_several():
    assert sheet(1, setup(weights={"": "a.pth"})).presets[0].features[0].weights == "a.pth"
    found = sheet(5, setup(weights={"wide_resnet50_2": "a.pth", "wide_resnet101_2": "b.pth"})).presets
    assert [one.features[0].weights for one in found] == ["a.pth", "a.pth", "b.pth"]


def test_quick_takes_the_embedded_backbone_unless_another_is_named(mini):
    asked, root = command._setup(parsed("table5", "--data", "mvtec", str(mini), "--quick"))
    assert asked.backbone == "embedded" and len(asked.seeds) == 2 and root == mini and asked.categories == ("bottle", "carpet")
    assert command._setup(parsed("table5", "--data", "mvtec", str(mini), "--quick", "--backbone", "paper"))[0].backbone == "paper"
    assert command._setup(parsed("table5", "--data", "mvtec", str(mini)))[0] == Setup("mvtec", ("bottle", "carpet"))


def test_btads_folders_are_called_as_the_paper_calls_its_classes():
    assert [published_name("btad", name) for name in DATA["btad"]] == ["class_01", "class_02", "class_03"]
