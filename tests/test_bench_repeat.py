"""What repeats: the comparison sees a planted difference and nothing else, and another process has the same numbers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

import rcp
from rcp.bench import Choice, repeat
from rcp.files import read_json, write_json

TRAINING = rcp.TrainSettings(dimension=32, projection=32, epochs=1, steps=2, batch_size=64)
BANK = rcp.BankSettings(coreset=0.05, folds=0)


@pytest.fixture(scope="module")
def recipe(category, tiny) -> repeat.Recipe:
    return repeat.Recipe(str(category.root.parent), category.name, tiny, TRAINING, BANK)


@pytest.fixture(scope="module")
def first(recipe) -> repeat.Tensors:
    return repeat.run(recipe)


def changed(run: repeat.Tensors, stage: str, values: torch.Tensor) -> list[repeat.Row]:
    return repeat.compare("a pair", run, run | {stage: values})


def test_a_run_has_every_stage_and_every_metric_that_is_defined(first, recipe):
    fitted_too = repeat.run(recipe, first)
    assert set(repeat.STAGES) <= set(fitted_too) and "memory" in fitted_too
    assert first["features"].shape == (8 + 7, 8, 12, 240)  # H != W; images of training, then of testing
    assert first["f"].shape == (32, 240) and first["maps"].shape == (7, 64, 96)
    assert len(first["picks"]) == len(first["memory"]) == int(0.05 * 8 * 8 * 12)
    assert 0 <= float(first["AUPRO"]) <= 1 and first["AUPRO"].dtype == torch.float64


def test_a_run_is_bit_equal_to_itself_in_every_stage(first, recipe):
    rows = repeat.compare("twice", first, repeat.run(recipe, first))
    assert [row["stage"] for row in rows] == list(repeat.STAGES)
    assert all(row["equal"] and row["largest_difference"] == 0 and row["note"] == "" for row in rows)


@pytest.mark.parametrize("stage", ["features", "f", "image scores", "maps"])
def test_one_planted_bit_is_found_in_its_stage_alone(stage, first):
    values = first[stage].clone()
    values.view(torch.int32).flatten()[-1] ^= 1
    rows = changed(first, stage, values)
    assert [row["stage"] for row in rows if not row["equal"]] == [stage]
    found = next(row for row in rows if row["stage"] == stage)
    assert 0 < found["largest_difference"] < 1e-6 and found["unit"] == repeat.RELATIVE
    assert found["note"] == "the first stage that differs"


def test_only_the_first_of_all_differences_is_noted_as_the_first(first):
    rows = repeat.compare("a pair", first, first | {"features": first["features"] + 1, "maps": first["maps"] + 1})
    assert [row["stage"] for row in rows if not row["equal"]] == ["features", "maps"]
    assert [row["stage"] for row in rows if row["note"]] == ["features"]


def test_differences_are_largest_over_largest_and_metrics_count_in_points():
    a, b = torch.tensor([1.0, -4.0]), torch.tensor([1.5, -4.0])
    assert repeat.difference("maps", a, b) == (0.125, repeat.RELATIVE)
    assert repeat.difference("maps", torch.zeros(2), torch.zeros(2)) == (0, repeat.RELATIVE)
    points, unit = repeat.difference("AUPRO", torch.tensor(0.5), torch.tensor(0.75))
    assert (points, unit) == (25, repeat.POINTS)
    assert repeat.difference("image AUROC" + repeat.SAME, torch.tensor(0.5), torch.tensor(0.5)) == (0, repeat.POINTS)


def test_picks_count_as_sets_and_their_order_is_told(first):
    picks = torch.tensor([3, 1, 2, 0])
    assert repeat.difference("picks", picks, torch.tensor([3, 1, 7, 8])) == (0.5, repeat.SHARE)
    assert repeat.difference("picks", picks, torch.tensor([3, 1, 2, 0, 9])) == (pytest.approx(0.2), repeat.SHARE)
    row = next(row for row in changed(first, "picks", first["picks"].flip(0)) if row["stage"] == "picks")
    assert not row["equal"] and row["largest_difference"] == 0 and "another order" in row["note"]


def test_equal_means_equal_in_every_bit_and_in_type():
    nan = torch.tensor([float("nan")])
    assert repeat.same_bits(nan, nan.clone())
    assert not repeat.same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not repeat.same_bits(torch.tensor([1.0]), torch.tensor([1.0]).half())
    assert not repeat.same_bits(torch.zeros(2, 3), torch.zeros(3, 2))
    assert repeat.same_bits(torch.zeros(3, 2).T, torch.zeros(2, 3))  # as they are read, not as they lie


def test_runs_of_other_sizes_cannot_be_compared():
    with pytest.raises(ValueError, match=r"maps: the runs made \(2,\) and \(3,\)"):
        repeat.difference("maps", torch.zeros(2), torch.zeros(3))


def test_of_many_comparisons_the_worst_of_each_stage_stays(first):
    quiet = repeat.compare("a pair", first, first)
    loud = changed(first, "f", first["f"] + 1)
    reordered = changed(first, "picks", first["picks"].flip(0))  # not equal, though its difference is 0
    found = {row["stage"]: row for row in repeat.worst([quiet, loud, reordered, quiet])}
    assert {name for name, row in found.items() if not row["equal"]} == {"f", "picks"}
    assert list(found) == [row["stage"] for row in quiet]


def test_another_process_finds_the_same_numbers_with_the_threads_it_was_given(recipe, first, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # not this one's: it is told its own
    threads = torch.get_num_threads()
    other = repeat.run_elsewhere(recipe, threads, tmp_path, first)
    assert set(other) == {*repeat.STAGES, "memory", *(name + repeat.SAME for name in repeat.METRICS)}
    assert all(row["equal"] for row in repeat.compare("two processes", first, other))


def test_a_process_that_has_other_threads_than_asked_for_is_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(repeat, "answer_of", lambda words, environment: {"torch": 3, "faiss": 1})
    with pytest.raises(ValueError, match="3 threads were asked for by OMP_NUM_THREADS.*faiss': 1"):
        repeat.run_elsewhere(recipe, 3, tmp_path)


def test_the_suite_has_a_row_per_pair_and_stage_and_the_table_a_line_per_pair(category, tiny, tmp_path, monkeypatch):
    asked = []

    def here(recipe, threads, folder, first=None):
        asked.append((recipe.bank.search, threads, first is not None))
        return repeat.run(recipe, first)

    monkeypatch.setattr(repeat, "run_elsewhere", here)
    for name, settings in (("FEATURES", tiny), ("TRAINING", TRAINING), ("BANK", BANK)):
        monkeypatch.setattr(repeat, name, settings)
    told = []
    report = repeat.measure(Choice(repeats=2, category=category, folder=tmp_path), told.append)
    said = told[0].splitlines()
    own = torch.get_num_threads()
    threads = [("torch", 1, False), ("torch", 2, True), ("faiss", 1, False), ("faiss", 2, True)]
    assert asked == [("torch", own, True)] * 2 + threads
    pairs = list(dict.fromkeys(row["pair"] for row in report["rows"]))
    assert len(pairs) == 9 and len(report["rows"]) == 9 * len(repeat.STAGES)
    assert [line.split(" | ")[0].removeprefix("| ") for line in said[2:11]] == pairs
    assert all(line.count("|") == len(repeat.STAGES) + 2 for line in said[:11])
    assert said[-1].startswith("Seeds 0 to 2: image AUROC") and len(report["seeds"]["AUPRO"]["percent"]) == 3
    unequal = {pair: [row for row in report["rows"] if row["pair"] == pair and not row["equal"]] for pair in pairs}
    assert not unequal["again in one process"] and not list(tmp_path.iterdir())
    assert unequal["another seed"][0]["stage"] == "f"
    assert unequal["stored in float16 against float32"][0]["stage"] == "features"
    assert unequal["network in bfloat16 against float32"][0]["note"] == "the first stage that differs"
    file = write_json(tmp_path / "repeat.json", report)
    assert repeat.markdown(read_json(file)).splitlines() == said
    assert str(category.root.parent) not in json.dumps(report)


def test_metrics_that_are_not_defined_are_left_out(category, recipe, tmp_path):
    good = tmp_path / "plain" / "test" / "good"
    good.mkdir(parents=True)
    shutil.copytree(category.root / "train", tmp_path / "plain" / "train")
    for sample in category.test[:3]:
        (good / sample.path.name).write_bytes(sample.path.read_bytes())
    with pytest.warns(UserWarning):
        found = repeat.run(replace(recipe, root=str(tmp_path), category="plain"))
    assert not set(repeat.METRICS) & set(found) and "maps" in found
