"""The options that say where and how cells are computed: what is wrong is told before the work, in one sentence."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from small_grid import METHODS, dataset, grid, toml

from rcp.cli import main
from rcp.experiments import Data, Machine, Outcome, Results, plan, run_grid, runner
from rcp.experiments.command import add_machine_options, machine, report


def given(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_machine_options(parser)
    return parser.parse_args(options)


@pytest.mark.parametrize("where", [(), ("--scheduler", "tcp://127.0.0.1:1")])
@pytest.mark.parametrize("name", ["gpu0", "", "cuda:x", "0"])
def test_a_device_that_cannot_be_is_told_before_the_work(tmp_path, capsys, monkeypatch, name, where):
    monkeypatch.setattr("rcp.experiments.command.plan", lambda *_: pytest.fail("too late"))
    command = ["experiments", str(toml(tmp_path / "g.toml")), "--out", str(tmp_path / "out"), "--device", name, *where]
    assert main(command) == 1
    assert capsys.readouterr().err == f"rcp: --device must be auto, cpu, cuda, cuda:1 or the like, or mps, got {name!r}\n"
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_here_is_told_unless_the_work_is_done_elsewhere():
    with pytest.raises(ValueError, match="device 'cuda:77' cannot be used here"):
        machine(given("--device", "cuda:77"))
    assert machine(given("--device", "cuda:77", "--scheduler", "file")).device == "cuda:77"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("--threads", "0"), "--threads must be at least 1, got 0"),
        (("--max-memory", "0"), r"--max-memory must be positive, got 0\.0"),
        (("--scratch", "there"), "--scratch has no effect without --max-memory"),
        (("--jobs", "2", "--scheduler", "file"), "--jobs has no effect with --scheduler"),
    ],
)
def test_options_without_effect_or_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        machine(given(*options))


def test_options_arrive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = machine(given("--device", "cpu", "--threads", "3", "--max-memory", "2", "--scratch", "there"))
    assert found == Machine("cpu", 3, 2 * 10**9, str(tmp_path / "there")) and machine(given()) == Machine()


@pytest.mark.parametrize(("failed", "missing", "status"), [([], [], 0), (["a"], [], 3), ([], ["b"], 3), (["a"], ["b"], 3)])
def test_the_exit_status_tells_whether_a_cell_has_no_result(tmp_path, capsys, failed, missing, status):
    cell = grid(METHODS[:1]).cells(lambda data: ["thing"])[0]
    for name in failed:
        Results(tmp_path).write_failure(name, cell, {}, "ValueError: so", "")
    assert report(Outcome(["c"], failed, missing), tmp_path) == status
    out, err = capsys.readouterr()
    assert out == f"1 results in {tmp_path}\n"
    assert ("ValueError: so" in err) == bool(failed) and ("1 cells have no result yet" in err) == bool(missing)


@pytest.mark.parametrize("scratch", [None, "own"])
def test_features_beyond_the_bound_lie_where_it_is_said(category, tmp_path, monkeypatch, scratch):
    root, out = dataset(category, tmp_path / "data", ("thing",)), tmp_path / "out"
    groups = plan(grid(METHODS[:1], data=(Data("painted", ("thing",)),), seeds=(0,)), {"painted": root}, out)
    limits, measure = [], runner.measure
    monkeypatch.setattr(runner, "measure", lambda cell, material: limits.append(material.limit) or measure(cell, material))
    own = str(tmp_path / "new" / scratch) if scratch else None
    assert run_grid(groups, out, machine=Machine("cpu", 1, 64 * 10**9, own)).complete
    assert [Path(limit.folder) for limit in limits] == [Path(own) if own else out] and limits[0].max_bytes == 64 * 10**9
    assert run_grid(groups, out, machine=Machine("cpu", 1)).complete


def test_a_scratch_folder_that_takes_no_files_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match=r"features cannot be kept in .*file.*name another folder for them"):
        run_grid([], tmp_path, machine=Machine("cpu", 1, 10**9, str(tmp_path / "file")))
