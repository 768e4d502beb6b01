"""What is said before the work: how many steps are trained and how long that takes, and the degraded copies that are written."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_reproduce import make_small

from rcp import TrainSettings, miniatures, official
from rcp import data as datasets
from rcp.experiments import Machine
from rcp.experiments.runner import find_category, folder_of_copies
from rcp.head import PAPER_SINGLE, train_head
from rcp.reproduce import copies, pace, pictures
from rcp.reproduce.cost import predict
from rcp.reproduce.pace import Pace, Training, of_cells, spoken, steps, told
from rcp.reproduce.setup import Setup
from rcp.reproduce.tables import sheet

IMAGES = {name: (facts.train, facts.good + sum(facts.defects.values())) for name, facts in official.MVTEC.items()}
TABLES = range(1, 7)


def loaded(one) -> dict:
    """Stride and numbers a patch of a table's networks, without their weights."""
    features = {features for cell in one.grid.cells(lambda data: list(IMAGES)) for features in cell.features}
    return {f: (4 if 1 in f.levels else 8, f.pooled_width if f.merge == "pool" else 1536) for f in features}


def trainings(number: int, **changes) -> dict[tuple, Training]:
    one = sheet(number, Setup("mvtec", tuple(official.MVTEC), **changes))
    return predict(one, IMAGES, loaded(one)).trainings


# The steps


@pytest.mark.parametrize(
    "settings, images, patches",
    [
        (TrainSettings(epochs=3, batch_size=50, dimension=4, projection=4), 5, 24),
        (TrainSettings(epochs=2, batch_size=500, dimension=4, projection=4), 5, 24),
        (TrainSettings(epochs=2, batch_size=7, steps=3, dimension=4, projection=4), 5, 24),
        (TrainSettings(epochs=2, batch_size=7, steps=300, dimension=4, projection=4), 5, 24),
        (TrainSettings(epochs=2, batch="images", batch_size=50, dimension=4, projection=4), 5, 24),
        (TrainSettings(epochs=2, batch="images", batch_size=5, dimension=4, projection=4), 5, 24),
        (TrainSettings(epochs=0), 5, 24),
    ],
)
def test_the_steps_are_those_that_the_training_takes(settings, images, patches, monkeypatch):
    taken = []
    shown = SimpleNamespace(update=lambda count: taken.append(count), __enter__=lambda: None)

    class Bar:
        def __enter__(self):
            return shown

        def __exit__(self, *error):
            pass

    monkeypatch.setattr("rcp.head.progress.bar", lambda *_: Bar())
    rows = torch.randn(images * patches, 6, generator=torch.Generator().manual_seed(0))
    train_head(rows, settings, seed=0, patches_per_image=patches)
    assert sum(taken) == steps(settings, images, patches)


def test_table_5_of_the_paper_is_twelve_and_a_half_million_steps_and_figures_share_them():
    found = trainings(5)
    assert len(found) == 15 * 3 * 3
    by_hand = sum(3 * 120 * (train * grid // 784) for train, _ in IMAGES.values() for grid in (28 * 28, 56 * 56, 60 * 60))
    assert sum(one.steps for one in found.values()) == by_hand and round(by_hand / 1e6, 1) == 12.5
    asked = Setup("mvtec", tuple(official.MVTEC))
    figures = pictures.trainings(["figure3", "figure4", "figure5"], asked, IMAGES, (784, 1536))
    assert len(figures) == 5 and len(found | figures) == len(found) + 2  # Figure 4 has Table 5's bottle
    assert figures["figure3"].steps == 58 * 219 and figures["figure5"].steps == 120 * 209


def test_what_decides_no_training_is_not_counted_twice():
    assert len(trainings(1)) == 15 * 3  # three shares of the coreset
    assert len(trainings(2)) == 15 * 3 * 5 and len(trainings(3)) == 15 * 3 * 3
    assert len(trainings(4)) == 15 * 3 * 4  # other images are other trainings
    assert len(trainings(6)) == 15 * 3 * 2 * 3  # sizes, members; the untrained ones take no step
    together = {}
    for number in (1, 2, 3, 4, 5):
        together |= trainings(number)
    assert len(together) == 15 * 3 * (5 + 2 + 3 + 1)  # widths, other s and levels, degraded images, 480 px


def test_ports_with_other_bugs_are_other_trainings():
    cell = next(one for one in sheet(5, Setup("mvtec", ("bottle",))).grid.cells(lambda data: []) if one.training)
    grids = {cell.features[0]: (784, 1536)}
    some = [replace(cell, detector="ported", options={"bug": bug}) for bug in (None, "labels", "all")]
    assert len(of_cells([cell, *some, *some], {"bottle": 10}, grids)) == 4


# The pace


KIND = Training(1000, 100, replace(PAPER_SINGLE, batch_size=10))


def timed(monkeypatch, seconds: float = 0.5) -> list[Training]:
    calls = []
    monkeypatch.setattr(pace, "_timed", lambda training, device: calls.append(training) or seconds)
    return calls


def test_the_heaviest_kind_is_timed_once_and_the_others_are_counted_by_their_work(monkeypatch):
    calls, found = timed(monkeypatch), Pace(Machine("cpu"))
    small = replace(KIND, settings=replace(KIND.settings, dimension=64))
    assert found.seconds([KIND, small]) == pytest.approx(500 + 500 * small.work / KIND.work) and small.work < KIND.work
    assert found.seconds([KIND] * 3) == pytest.approx(1500)
    other_rate = replace(KIND, settings=replace(KIND.settings, learning_rate=0.5, epochs=3, steps=7))
    assert found.seconds([other_rate]) == pytest.approx(500)
    assert calls == [KIND]
    many = replace(small, steps=10**9)
    found.seconds([KIND, many])
    assert calls == [KIND, many]
    assert found.seconds([]) == 0


def test_jobs_share_the_time_and_the_threads(monkeypatch):
    timed(monkeypatch)
    assert Pace(Machine("cpu"), jobs=4).seconds([KIND]) == pytest.approx(125)
    monkeypatch.setattr(pace.os, "cpu_count", lambda: 8)
    assert Pace(Machine("cpu"), jobs=4).threads == 2 and Pace(Machine("cpu"), jobs=16).threads == 1
    assert Pace(Machine("cpu", 3), jobs=4).threads == 3 and Pace(Machine("cpu")).threads == torch.get_num_threads()


def test_a_few_steps_of_the_very_shape_are_timed_with_the_threads_of_a_worker(monkeypatch):
    seen, before = [], torch.get_num_threads()
    whole = pace.train_head

    def looked(rows, settings, **options):
        seen.append((rows.shape, settings, torch.get_num_threads()))
        return whole(rows, settings, **options)

    monkeypatch.setattr(pace, "train_head", looked)
    assert Pace(Machine("cpu", before + 1)).seconds([KIND]) > 0
    [(shape, settings, threads)] = seen
    assert shape == (2 * 10, 100) and threads == before + 1 and torch.get_num_threads() == before
    assert settings == replace(KIND.settings, epochs=2, steps=2)


def test_an_interrupted_probe_ends_the_command(monkeypatch):
    monkeypatch.setattr(pace, "train_head", lambda *_, **__: (None, []))
    with pytest.raises(KeyboardInterrupt):
        Pace(Machine("cpu")).seconds([KIND])


def test_the_line_says_trainings_steps_batch_time_and_device(monkeypatch):
    timed(monkeypatch, 0.15)
    found = trainings(5)
    assert told(found, None) == "135 trainings of 12.5 million steps in all, 784 patches a step"
    line = told(found, Pace(Machine("cpu"), jobs=2))
    assert re.fullmatch(r"135 .* a step: about [\d,]+ h \([\d,]+ days\) on this machine \(cpu, 2 jobs\); features, coreset and scoring come on top", line)
    assert told({}, None) == "nothing to train"
    few = {1: KIND, 2: replace(KIND, settings=replace(KIND.settings, batch_size=20))}
    assert told(few, None) == "2 trainings of 2,000 steps in all, 10 or 20 patches a step"


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "2 h"), (30 * 3600, "30 h"), (520 * 3600, "520 h (22 days)")],
)
def test_times_are_said_as_people_say_them(seconds, words):
    assert spoken(seconds) == words


# The degraded copies


@pytest.fixture
def table4(monkeypatch):
    make_small(monkeypatch)
    return sheet(4, Setup("mvtec", ("bottle", "carpet"), quick=True))


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return miniatures.mvtec(tmp_path_factory.mktemp("mini") / "mvtec", categories=("bottle", "carpet"), train=2, good=1)


def test_copies_are_told_with_their_bytes_written_and_the_next_time_neither(table4, mini, tmp_path):
    lines, categories = [], [datasets.find(mini, name) for name in ("bottle", "carpet")]
    copies.write([sheet(5, Setup("mvtec", ("bottle", "carpet"), quick=True)), table4], categories, mini, tmp_path / "cells", lines.append)
    test = [len(one.test) for one in categories]
    assert re.fullmatch(rf"table4: {2 * (sum(test) + 4)} degraded copies of images, about \d+ kB, are written into .*cells/degraded", lines[0])
    assert lines[1] == f"table4: [1/6] bottle, test: {test[0]} images" and lines[6] == f"table4: [6/6] carpet, both: {test[1] + 2} images"
    written = [path for path in (tmp_path / "cells").rglob("*.png") if "ground_truth" not in path.parts]
    assert len(written) == 2 * (sum(test) + 4)
    for data in table4.grid.data:
        if data.quality:
            made = find_category(data, "bottle", str(mini), tmp_path / "cells")
            assert made.root == folder_of_copies(data, tmp_path / "cells") / "bottle"
    copies.write([table4], categories, mini, tmp_path / "cells", lines.append)
    assert len(lines) == 7


def test_a_disk_without_room_is_told_before_the_first_copy(table4, mini, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr("rcp.quality.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"degraded copies of images need about \d MB below .*cells, and 0 MB are free there: free some"):
        copies.write([table4], [datasets.find(mini, "bottle"), datasets.find(mini, "carpet")], mini, tmp_path / "cells", lambda line: None)
    assert not (tmp_path / "cells").exists()
