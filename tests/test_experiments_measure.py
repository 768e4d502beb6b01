"""What cells share: a training serves all cells that it decides, and changes no bit of what they measure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_grid import TINY, grid, without_times

from rcp.experiments import Data, Method
from rcp.experiments import measure as room
from rcp.experiments.grid import Cell
from rcp.experiments.measure import Material, measure
from rcp.features import PatchExtractor
from rcp.store import MemoryLimit


@pytest.fixture(scope="module")
def parts(category) -> tuple:
    extractor = PatchExtractor(TINY, device="cpu")
    return category, [extractor], [extractor.extract(category.train)], [extractor.extract(category.test)]


@pytest.fixture
def trained(monkeypatch) -> list[Cell]:
    """The cells that really trained."""
    calls, whole = [], room._train

    def counted(cell, *arguments):
        calls.append(cell)
        return whole(cell, *arguments)

    monkeypatch.setattr(room, "_train", counted)
    return calls


def cells(*methods: Method, seeds: tuple[int, ...] = (0,)) -> list[Cell]:
    return grid(methods, data=(Data("painted", ("thing",)),), seeds=seeds).cells(lambda data: [])


def measured(some: list[Cell], parts: tuple) -> list[dict]:
    material = Material(*parts)
    return [without_times(measure(cell, material)) for cell in some]


def alone(some: list[Cell], parts: tuple) -> list[dict]:
    return [without_times(measure(cell, Material(*parts))) for cell in some]


SHARES = {"bank.coreset": (0.3, 0.05)}


def test_cells_that_differ_behind_the_training_train_once_and_measure_the_same_bits(parts, trained):
    some = cells(
        Method("ours", "reconpatch", vary=SHARES, snapshots=(0, 1)),
        Method("port", "ported", options={"bug": "all"}, vary=SHARES, snapshots=(1,)),
        Method("other", "reconpatch", options={"reweight": "off"}),
        seeds=(0, 1),
    )
    together = measured(some, parts)
    assert len(some) == 10 and len(trained) == 4  # (ours, port) x seeds
    assert together == alone(some, parts)
    values = [one["metrics"] for one in together]
    assert values[0] != values[2] and values[4] != values[6]  # the coreset does make a difference
    assert all(set(one["snapshots"]) == set(map(str, cell.snapshots)) for one, cell in zip(together, some, strict=True))
    assert all(len(one["history"]) == 2 for one in together)


def test_whatever_decides_a_training_tells_it_apart(parts, trained):
    base = cells(Method("ours", "reconpatch"))[0]
    others = [
        replace(base, detector="ported", options=base.options | {"bug": None}),
        replace(base, detector="ported", options=base.options | {"bug": "labels"}),
        replace(base, detector="ported", options=base.options | {"bug": "frozen teacher"}),
        replace(base, seed=1),
        *(replace(base, training=replace(base.training, **change)) for change in ({"alpha": 0.2}, {"epochs": 1}, {"learning_rate": 0.1})),
    ]
    some = [base, *others]
    assert measured(some, parts) == alone(some, parts)
    assert trained[: len(some)] == some


def test_epochs_that_an_earlier_cell_did_not_ask_for_are_trained_for_and_then_kept_with_the_others(parts, trained):
    base = cells(Method("ours", "reconpatch"))[0]
    asked = [(0,), (0,), (), (1,), (0, 1), (0,)]
    some = [replace(base, snapshots=epochs) for epochs in asked]
    together = measured(some, parts)
    assert trained == [some[0], some[3]]
    assert together == alone(some, parts)
    assert [tuple(map(int, one["snapshots"])) for one in together] == asked


def test_the_seconds_are_those_of_what_was_done(parts, monkeypatch):
    first, second = cells(Method("ours", "reconpatch", vary=SHARES))
    clock, whole = [0.0], room._train

    def slow(*arguments):
        clock[0] += 100
        return whole(*arguments)

    monkeypatch.setattr(room, "_train", slow)
    monkeypatch.setattr(room.time, "perf_counter", lambda: clock[0])
    material = Material(*parts)
    assert [measure(cell, material)["seconds"] for cell in (first, second)] == [100, 0]


def test_only_the_last_trainings_are_kept_those_used_longest_ago_go_first(parts, monkeypatch):
    base = cells(Method("ours", "reconpatch"))[0]
    one, two, three = (replace(base, seed=seed) for seed in range(3))
    monkeypatch.setattr(room, "KEPT_BYTES", 2 * 16 * 240 * 4)  # two f of (16, 240) float32
    material = Material(*parts)
    for cell in (one, two, one, three):
        measure(cell, material)
    kept = material.trainings
    assert kept.of(two) is None and kept.of(one) is not None and kept.of(three) is not None
    monkeypatch.setattr(room, "KEPT_BYTES", 16 * 240 * 4 - 1)
    measure(two, material)
    assert all(kept.of(cell) is None for cell in (one, two, three))  # too large for all the room there is


def test_nothing_is_kept_where_memory_is_short(parts, monkeypatch):
    base = cells(Method("ours", "reconpatch"))[0]
    material = Material(*parts, MemoryLimit(2**40))
    measure(base, material)
    assert material.trainings.of(base) is not None
    monkeypatch.setattr(MemoryLimit, "fits", lambda limit, count: False)
    material.trainings.keep(replace(base, seed=1), material.trainings.of(base), material.limit)
    assert material.trainings.of(base) is None and material.trainings.of(replace(base, seed=1)) is None


def test_an_interrupted_training_is_not_kept(parts, monkeypatch):
    base = cells(Method("ours", "reconpatch"))[0]
    material = Material(*parts)

    def interrupt(event):
        raise KeyboardInterrupt

    whole = room._detector

    def interrupted(*arguments):
        detector = whole(*arguments)
        fit = detector.fit
        detector.fit = lambda images, callbacks: fit(images, callbacks=[*callbacks, lambda event: interrupt(event) if event.epoch == 1 else None])
        return detector

    monkeypatch.setattr(room, "_detector", interrupted)
    with pytest.warns(UserWarning, match="interrupted"), pytest.raises(KeyboardInterrupt):
        measure(base, material)
    assert material.trainings.of(base) is None


def test_what_is_kept_does_not_change_with_later_steps_and_trainings(parts):
    first = cells(Method("ours", "reconpatch", snapshots=(0, 1)))[0]
    material = Material(*parts)
    measure(first, material)
    before = {epoch: weight.clone() for epoch, weight in material.trainings.of(first).weights.items()}
    assert not torch.equal(before[0], before[1]) and not torch.equal(before[1], before[2])
    measure(replace(first, seed=1), material)
    after = material.trainings.of(first).weights
    assert before.keys() == after.keys() and all(torch.equal(before[epoch], after[epoch]) for epoch in before)
