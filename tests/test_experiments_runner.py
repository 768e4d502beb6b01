"""Running a grid: what is measured, kept, skipped, recorded and found again."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_grid import BANK, METHODS, TINY, TRAINING, dataset, grid, toml, without_times

import rcp
from rcp.cli import main
from rcp.evaluation import METRICS, evaluate
from rcp.experiments import Data, Machine, Method, Results, plan, run_grid, runner, watch
from rcp.experiments.collection import collect, read_rows
from rcp.experiments.results import address
from rcp.experiments.watch import Group, Watcher, spread
from rcp.features import PatchExtractor
from rcp.head import train_head
from rcp.quality import BLUR

ONE = Machine("cpu", 1)


@pytest.fixture(scope="module")
def root(category, tmp_path_factory) -> Path:
    return dataset(category, tmp_path_factory.mktemp("painted") / "data")


@pytest.fixture(scope="module")
def reference(root, tmp_path_factory):
    """The small grid, measured without any incident: folder and groups."""
    folder = tmp_path_factory.mktemp("reference")
    groups = plan(grid(), {"painted": root}, folder)
    assert run_grid(groups, folder, machine=ONE).complete
    return folder, groups


def names_of(groups) -> list[str]:
    return [name for group in groups for name in group.names]


def a_group(folder, root, *methods, **changes) -> tuple[list[Group], list[str]]:
    """The groups of a grid of one category and seed, and their addresses."""
    changes = {"data": (Data("painted", ("thing",)),), "seeds": (0,)} | changes
    groups = plan(grid(methods, **changes), {"painted": root}, folder)
    return groups, names_of(groups)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The cells that are measured."""
    seen, original = [], runner.measure

    def counted(cell, material):
        seen.append(str(cell))
        return original(cell, material)

    monkeypatch.setattr(runner, "measure", counted)
    return seen


# What a result is, and where it lies


def test_every_cell_has_a_file_that_tells_what_it_is(reference):
    folder, groups = reference
    assert {path.name for path in folder.iterdir()} == {f"{name}.json" for name in names_of(groups)}
    for group in groups:
        for cell, name in zip(group.cells, group.names, strict=True):
            record = Results(folder).read(name)
            assert {key: record[key] for key in cell.names()} == cell.names()
            assert record["address"] == name and record["settings"] == json.loads(json.dumps(cell.settings()))
            assert address(cell, record["dataset"], [one["sha256"] for one in record["backbones"]]) == name
            assert set(record["metrics"]) == {*METRICS, "d_prime"} and len(record["images"]) == 7
            assert record["device"] == "cpu" and record["threads"] == 1 and record["versions"]["torch"]
            assert (len(record.get("history", [])), list(record.get("snapshots", {}))) == ((2, ["0", "1"]) if cell.training else (0, []))


def test_addresses_change_with_settings_data_and_weights_and_with_no_name(root, tmp_path, monkeypatch):
    _, (name,) = a_group(tmp_path, root, METHODS[1])
    others = [
        a_group(tmp_path, root, METHODS[1], seeds=(1,)),
        a_group(tmp_path, root, METHODS[1], training=TRAINING | {"alpha": 0.25}),
        a_group(tmp_path, root, replace(METHODS[1], snapshots=())),
        a_group(tmp_path, root, replace(METHODS[1], bank={"neighbours": 5})),
        a_group(tmp_path, root, replace(METHODS[1], options={"reweight": "off"})),
        a_group(tmp_path, root, METHODS[1], backbones={"tiny": replace(TINY, patch_size=5)}),
        a_group(tmp_path, root, METHODS[1], data=(Data("painted", ("other",)),)),
    ]
    assert len({name, *(one for _, names in others for one in names)}) == 1 + len(others)
    renamed = grid([replace(METHODS[1], name="B")], data=(Data("drawn", ("thing",)),), seeds=(0,), backbones={"small": TINY})
    assert names_of(plan(renamed, {"drawn": root}, tmp_path)) == [name]
    monkeypatch.setattr(runner, "_weights", lambda features: "others")
    assert a_group(tmp_path, root, METHODS[1])[1] != [name]


def test_a_byte_of_an_image_changes_the_addresses_of_its_category_only(category, tmp_path):
    root = dataset(category, tmp_path / "data")
    before = plan(grid(), {"painted": root}, tmp_path)
    image = next((root / "thing" / "test" / "good").iterdir())
    image.write_bytes(image.read_bytes() + b"\0")
    after = plan(grid(), {"painted": root}, tmp_path)
    kept = {group.cells[0].category: before[i].names == group.names for i, group in enumerate(after)}
    assert kept == {"other": True, "thing": False}
    assert not set(before[1].names) & set(after[1].names)


def test_plans_that_share_images_and_weights_hash_them_once(root, tmp_path, monkeypatch):
    looked, hashed = [], runner.fingerprints
    monkeypatch.setattr(runner, "fingerprints", lambda category: looked.append(category.name) or hashed(category))
    known, roots = runner.Known(), {"painted": root}
    first = plan(grid(), roots, tmp_path, known)
    count = len(looked)
    assert count == len(set(looked)) > 0 and known.weights
    monkeypatch.setattr(runner, "load_backbone", None)  # would fail if it were called
    assert plan(grid(), roots, tmp_path, known) == first and len(looked) == count


def test_data_that_change_after_the_plan_are_not_taken_for_those_of_the_plan(category, tmp_path):
    root = dataset(category, tmp_path / "data", ("thing",))
    groups, (name,) = a_group(tmp_path / "out", root, METHODS[0])
    image = next((root / "thing" / "test" / "good").iterdir())
    image.write_bytes(image.read_bytes() + b"\0")
    outcome = run_grid(groups, tmp_path / "out", machine=ONE)
    assert outcome.failed == [name] and not outcome.done
    assert "has changed since it began" in Results(tmp_path / "out").error(name)


# What is measured


def test_a_second_run_does_nothing(reference, calls, monkeypatch):
    monkeypatch.setattr(PatchExtractor, "extract", lambda *_, **__: pytest.fail("features were computed"))
    folder, groups = reference
    said, before = [], {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    outcome = run_grid(groups, folder, machine=ONE, say=said.append)
    assert outcome.complete and sorted(outcome.done) == sorted(names_of(groups)) and calls == []
    assert said == ["8 of 8 cells are there already"]
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_larger_grid_measures_only_what_is_new_and_features_once_a_group(reference, root, tmp_path, calls, monkeypatch):
    folder = shutil.copytree(reference[0], tmp_path / "out")
    extracted, original = [], PatchExtractor.extract
    monkeypatch.setattr(PatchExtractor, "extract", lambda *a, **k: extracted.append(1) or original(*a, **k))
    groups = plan(grid((*METHODS, Method("random", "reduced", options={"method": "random", "dimension": 8}))), {"painted": root}, folder)
    assert run_grid(groups, folder, machine=ONE).complete
    assert len(calls) == 4 and all("random" in call for call in calls)
    assert len(extracted) == 2 * 2  # two splits of two categories, whatever the number of cells


def test_two_names_for_one_thing_are_measured_once_and_shown_twice(root, tmp_path, calls):
    methods = (METHODS[0], Method("share", "patchcore", vary={"bank.coreset": (0.1, 0.2)}))
    groups, names = a_group(tmp_path, root, *methods)
    assert len(names) == 3 and len(set(names)) == 2
    again = [replace(groups[0], cells=tuple(replace(cell, data=Data("copy", ("thing",))) for cell in groups[0].cells))]
    said = []
    assert run_grid(groups + again, tmp_path, machine=ONE, say=said.append).complete
    assert len(calls) == 2 and said[-1].startswith("[2/2]") and said[-1].endswith("all done")
    rows = read_rows(collect(grid(methods), groups, tmp_path, tmp_path / "all.json"))
    assert [(row.method, row.varied.get("bank.coreset")) for row in rows] == [("PatchCore", None), ("share", 0.1), ("share", 0.2)]
    assert rows[0].metrics == rows[1].metrics


def test_a_snapshot_is_the_training_as_if_it_had_been_stopped_there(reference, root):
    folder, groups = reference
    group = next(group for group in groups if group.cells[0].category == "thing")
    cell, name = next((c, n) for c, n in zip(group.cells, group.names, strict=True) if c.training and c.seed == 1)
    record = Results(folder).read(name)
    data, kept = rcp.mvtec(root, "thing"), {}
    train = PatchExtractor(TINY, device="cpu").extract(data.train)
    head, _ = train_head(
        train.rows, cell.training, seed=1, patches_per_image=8 * 12, device="cpu",
        callbacks=[lambda event: kept.update({event.epoch: event.head.f.weight.detach().clone()})],
    )  # fmt: skip
    assert torch.equal(kept[2], head.f.weight) and not torch.equal(kept[0], kept[1]) and not torch.equal(kept[1], kept[2])

    class Given(rcp.ReConPatch):
        def _learn(self, features):
            self.weight = kept[self.epoch]

    for epoch, state in {0: record["snapshots"]["0"], 1: record["snapshots"]["1"], 2: record}.items():
        detector = Given(TINY, training=cell.training, bank=cell.bank, seed=1, device="cpu")
        detector.epoch = epoch
        result = evaluate(detector.fit(train), data.test)
        assert [score for _, score in state["images"]] == pytest.approx(result.scores.image_scores.tolist(), rel=1e-5)
        assert state["metrics"]["image_auroc"] == pytest.approx(result.metrics["image_auroc"])
    scores = [[s for _, s in state["images"]] for state in (*record["snapshots"].values(), record)]
    assert scores[0] != scores[1] != scores[2]


def test_epoch_0_is_the_untrained_f_of_a_cell_without_epochs(reference, root, tmp_path):
    folder, groups = reference
    trained = next(n for g in groups for c, n in zip(g.cells, g.names, strict=True) if c.training and c.seed == 0 and c.category == "thing")
    untrained, (name,) = a_group(tmp_path, root, METHODS[1], training=TRAINING | {"epochs": 0})
    assert run_grid(untrained, tmp_path, machine=ONE).complete
    early, whole = Results(folder).read(trained)["snapshots"]["0"], Results(tmp_path).read(name)
    assert {key: whole[key] for key in early} == early and whole["history"] == [] and whole["snapshots"] == {}


def test_an_ensemble_is_that_of_the_library(root, tmp_path):
    both = {"tiny": TINY, "fine": replace(TINY, levels=(2,))}
    method = Method("both", "ensemble", members=("tiny", "fine"), options={"member": "patchcore"})
    groups, (name,) = a_group(tmp_path, root, method, backbones=both)
    assert run_grid(groups, tmp_path, machine=ONE).complete
    data, record = rcp.mvtec(root, "thing"), Results(tmp_path).read(name)
    bank = rcp.BankSettings(**BANK)
    ensemble = rcp.Ensemble([rcp.PatchCore(f, bank=bank, device="cpu") for f in both.values()]).fit(data.train)
    result = evaluate(ensemble, data.test)
    assert {key: record["metrics"][key] for key in METRICS} == {key: pytest.approx(result.metrics[key], rel=1e-5) for key in METRICS}
    assert [s for _, s in record["images"]] == pytest.approx(result.scores.image_scores.tolist(), rel=1e-4)
    assert record["backbone"] == "tiny+fine" and len(record["backbones"]) == 2


def test_degraded_data_are_other_data_on_one_side(root, tmp_path):
    data = (Data("painted", ("thing",)), Data("painted", ("thing",), BLUR))
    groups, names = a_group(tmp_path, root, METHODS[0], data=data)
    assert run_grid(groups, tmp_path, machine=ONE).complete
    plain, blurred = (Results(tmp_path).read(name) for name in names)
    assert (plain["data"], blurred["data"]) == ("painted", "painted, blur on test")
    assert plain["dataset"]["train"] == blurred["dataset"]["train"] and plain["dataset"]["test"] != blurred["dataset"]["test"]
    assert plain["images"] != blurred["images"]
    assert (tmp_path / "degraded" / "painted-blur-on-test" / "thing" / "test" / "good").is_dir()


# What goes wrong


def test_a_cell_that_fails_is_recorded_the_rest_goes_on_and_it_is_tried_again(root, tmp_path, capsys, calls):
    extra = '[[methods]]\nname = "fails"\ndetector = "reconpatch"\ntraining = { k = 1000 }\n'
    path = toml(tmp_path / "g.toml", extra + '[[methods]]\nname = "PatchCore"\ndetector = "patchcore"\n', head="seeds = [0]\n")
    command = ["experiments", str(path), "--data", f"painted={root}", "--out", str(tmp_path / "out"), "--device", "cpu", "--threads", "1"]
    assert main(command) == 3
    out, err = capsys.readouterr()
    assert "2 results in" in out and err.count("FAILED: ") == 2 and err.count("failed: ") == 2 and "k = 1000" in err
    failures = sorted((tmp_path / "out").glob("*.failed.json"))
    assert len(failures) == 2 and len(calls) == 4
    record = json.loads(failures[0].read_text(encoding="utf-8"))
    assert record["method"] == "fails" and "k = 1000" in record["error"] and any("Traceback" in line for line in record["trace"])
    assert main(command) == 3 and len(calls) == 6 and all("fails" in call for call in calls[-2:])
    assert main([*command, "--dry-run"]) == 0 and len(calls) == 6
    assert "2 are there, 2 failed the last time, 0 were never tried" in capsys.readouterr().out


def test_a_failure_is_gone_when_the_cell_succeeds(root, tmp_path, monkeypatch):
    groups, (name,) = a_group(tmp_path, root, METHODS[0])
    monkeypatch.setattr(runner, "measure", lambda *_: 1 / 0)
    assert run_grid(groups, tmp_path, machine=ONE).failed == [name]
    assert Results(tmp_path).error(name) == "ZeroDivisionError: division by zero"
    monkeypatch.undo()
    assert run_grid(groups, tmp_path, machine=ONE).complete
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.json"]


def test_what_all_cells_of_a_group_need_fails_for_all_of_them(root, tmp_path, monkeypatch):
    groups = plan(grid(), {"painted": root}, tmp_path)
    original = PatchExtractor.extract

    def unlucky(self, images, **settings):
        if "other" in images.root.as_posix():
            raise MemoryError("no room")
        return original(self, images, **settings)

    monkeypatch.setattr(PatchExtractor, "extract", unlucky)
    said = []
    outcome = run_grid(groups, tmp_path, machine=ONE, say=said.append)
    assert (len(outcome.done), len(outcome.failed)) == (4, 4) and not outcome.complete
    assert all(Results(tmp_path).error(name) == "MemoryError: no room" for name in outcome.failed)
    assert sum("FAILED" in line for line in said) == 4 and said[-1].startswith("[8/8]")


def test_an_interrupted_training_leaves_no_result_and_no_failure(root, tmp_path, monkeypatch):
    original = rcp.head._Run.epoch

    def interrupted(self, number, shown):
        if number == 2:
            raise KeyboardInterrupt
        return original(self, number, shown)

    groups, _ = a_group(tmp_path, root, METHODS[1])
    monkeypatch.setattr(rcp.head._Run, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="interrupted"):
        run_grid(groups, tmp_path, machine=ONE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", '{"schema": 1', '{"schema": 0, "metrics": {}, "seconds": 1}', "[]", '{"schema": 1}'])
def test_a_result_that_is_damaged_is_named_before_anything_is_measured(reference, tmp_path, calls, content):
    folder, groups = shutil.copytree(reference[0], tmp_path / "out"), reference[1]
    path = folder / f"{groups[0].names[0]}.json"
    path.write_text(content, encoding="utf-8")
    (folder / f"{groups[1].names[0]}.json").unlink()
    with pytest.raises(ValueError, match=f"{path.name} .*delete it, and it is measured anew"):
        run_grid(groups, folder, machine=ONE)
    assert calls == []
    path.unlink()
    assert run_grid(groups, folder, machine=ONE).complete and len(calls) == 2


def test_a_folder_that_takes_no_results_is_found_before_the_work(root, tmp_path, calls):
    groups, _ = a_group(tmp_path, root, METHODS[0])
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"results cannot be written into .*file.*name another folder"):
            run_grid(groups, folder, machine=ONE)
    assert calls == []


def test_missing_data_are_told_in_one_sentence(root, tmp_path, capsys):
    path = toml(tmp_path / "g.toml")
    assert main(["experiments", str(path)]) == 1
    assert capsys.readouterr().err == "rcp: the grid measures on 'painted': say where it lies, --data painted=DIR\n"
    with pytest.raises(ValueError, match="no category 'x'"):
        a_group(tmp_path, root, METHODS[0], data=(Data("painted", ("x",)),))


def test_what_a_killed_writer_left_is_taken_away_an_hour_later(tmp_path):
    old, new = tmp_path / ".a.json.x1.json", tmp_path / ".b.json.x2.json"
    for path in (old, new):
        path.write_text("{", encoding="utf-8")
    os.utime(old, (time.time() - 2 * 3600,) * 2)
    Results(tmp_path).prepare()
    assert [path.name for path in tmp_path.iterdir()] == [new.name]


# What is told


def records(group: Group, *, seconds: float = 2.0) -> dict[str, dict]:
    return {name: {"schema": 1, "metrics": {"image_auroc": 0.5}, "seconds": seconds} for name in group.names}


def made_group(cells: int, root, tmp_path) -> Group:
    return plan(grid(METHODS[:1], data=(Data("painted", ("thing",)),), seeds=tuple(range(cells))), {"painted": root}, tmp_path)[0]


def test_time_left_is_what_the_rest_takes_at_the_rate_so_far(root, tmp_path, monkeypatch):
    group, clock, said = made_group(10, root, tmp_path), [1000.0], []
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    with Watcher([group], Results(tmp_path), said.append) as watcher:
        assert watcher.left() == "time left unknown"
        clock[0] += 500  # loading is no measure of cells
        for number, name in enumerate(group.names[:4]):
            if number % 2 == 0:
                clock[0] += 20 if number else 0
            (tmp_path / f"{name}.json").write_text(json.dumps(records(group, seconds=20)[name]), encoding="utf-8")
            watcher.look()
        assert said[0].endswith("20.0 s; about 3 min left")  # 9 x 20 s, one after the other as far as one can tell
        assert said[-1].startswith("[4/10]") and said[-1].endswith("about 60 s left")  # two side by side
        for name in group.names[4:]:
            (tmp_path / f"{name}.json").write_text(json.dumps(records(group)[name]), encoding="utf-8")
    assert said[-1].endswith("all done") and watcher.outcome().complete


def test_earlier_results_tell_the_time_left_from_the_start(root, tmp_path):
    group = made_group(4, root, tmp_path)
    (tmp_path / f"{group.names[0]}.json").write_text(json.dumps(records(group, seconds=10)[group.names[0]]), encoding="utf-8")
    with Watcher([group], Results(tmp_path)) as watcher:
        assert watcher.left() == "about 30 s left"


def test_failures_of_earlier_runs_are_not_told_again_and_luck_on_the_second_try_counts_once(root, tmp_path):
    group, said = made_group(3, root, tmp_path), []
    results = Results(tmp_path)
    first, second, third = group.names
    results.write_failure(first, group.cells[0], {}, "OldError: then\nand more", "")
    with Watcher([group], results, said.append) as watcher:
        watcher.look()
        assert said == [] and len(watcher.open_groups()[0].cells) == 3
        results.write_failure(second, group.cells[1], {}, "NewError: now\nand more", "")
        watcher.look()
        assert len(said) == 1 and "FAILED: NewError: now; " in said[0] and said[0].startswith("[1/3]")
        for name in (second, third):
            (tmp_path / f"{name}.json").write_text(json.dumps(records(group)[name]), encoding="utf-8")
        watcher.look()
        assert said[-1].startswith("[2/3]") and watcher.bar.n in (0, 2)  # a silent bar does not count
        os.utime(results.folder / f"{first}.failed.json", ns=(1, 1))  # failed again, on a machine with a slow clock
        watcher.look()
        assert said[-1].startswith("[3/3]") and "OldError" in said[-1]
    assert watcher.outcome().failed == [first] and sorted(watcher.outcome().done) == sorted([second, third])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 20))
def test_parts_of_groups_hold_every_cell_once_and_none_is_larger_than_half_a_share(sizes, workers):
    made = grid(METHODS[:1], seeds=tuple(range(max(sizes)))).cells(lambda data: ["a"])
    groups = [Group(None, tuple(made[:size]), tuple(f"{n}-{i}" for i in range(size))) for n, size in enumerate(sizes)]
    parts = spread(groups, workers)
    assert sorted(name for part in parts for name in part.names) == sorted(name for group in groups for name in group.names)
    if workers == 1:
        assert parts == groups
    else:
        assert max(len(part.cells) for part in parts) <= -(-sum(sizes) // (2 * workers))


# The collected file


def test_a_collected_file_gives_back_every_state(reference, root, tmp_path, capsys):
    folder, groups = reference
    path, out = toml(tmp_path / "g.toml"), shutil.copytree(folder, tmp_path / "out")
    options = ["--data", f"painted={root}", "--out", str(out), "--collect", str(tmp_path / "all.json"), "--device", "cpu"]
    assert main(["experiments", str(path), *options]) == 0
    assert "8 results in" in capsys.readouterr().out
    rows = read_rows(tmp_path / "all.json")
    assert len(rows) == 4 + 4 * 3
    content = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert content["missing"] == 0 and content["title"] == "a small grid" and "images" not in content["rows"][0]
    by_name = {name: Results(folder).read(name) for name in names_of(groups)}
    for name, record in by_name.items():
        key = {k: record[k] for k in ("data", "category", "backbone", "method", "varied", "seed")}
        mine = [row for row in rows if all(getattr(row, k) == value for k, value in key.items())]
        states = {None if record["settings"]["training"] is None else 2: record} | {
            int(epoch): state for epoch, state in record.get("snapshots", {}).items()
        }
        assert {row.epoch: (row.metrics, row.probes) for row in mine} == {e: (s["metrics"], s["probes"]) for e, s in states.items()}
        assert [row.epoch for row in mine if row.last] == [2 if record["settings"]["training"] else None], name


def test_what_is_missing_is_counted_and_other_files_are_no_collections(reference, tmp_path):
    folder, groups = shutil.copytree(reference[0], tmp_path / "out"), reference[1]
    (folder / f"{groups[0].names[0]}.json").unlink()
    path = collect(grid(), groups, folder, tmp_path / "all.json", images=True)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["missing"] == 1 and len(content["rows"]) == 7 and len(content["rows"][0]["images"]) == 7
    for wrong in ("[]", '{"schema": 0, "rows": []}', '{"schema": 1}', '{"schema": 1, "rows": [{}]}', "{"):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match=r"all\.json"):
            read_rows(path)
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / "absent.json")


def test_times_are_no_part_of_what_is_compared(reference):
    folder, groups = reference
    record = Results(folder).read(groups[0].names[0])
    assert without_times(record).keys() == record.keys() - {"seconds", "threads", "cost"}
