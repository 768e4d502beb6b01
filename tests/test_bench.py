"""The benchmark: its arithmetic, its refusals, and that each side of a comparison does the work it is timed for."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import rcp
from rcp.bench import SUITES, Choice, bench, measure, memory, ours, peers, stages
from rcp.bench.growth import mixed
from rcp.bench.measure import answer_of
from rcp.cli import main
from rcp.plots import growth_figure


def test_the_exponent_is_the_slope_of_a_power_law():
    sizes = [10, 20, 40, 80]
    assert measure.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_a_line_has_the_median_ratio_with_its_ends_and_seconds_per_unit():
    found = measure.line("ours", "theirs", [(1.0, 2.0), (3.0, 2.0), (4.0, 4.0)], per=2)
    assert found["ratio"] == [0.5, 1.0, 1.5]
    assert (found["seconds"], found["yardstick_seconds"], found["repeats"]) == (1.5, 1.0, 3)


def test_both_sides_run_in_turn_once_before_and_once_a_repeat():
    order = []
    found = measure.compare("a", "b", lambda: order.append("a"), lambda: order.append("b"), repeats=3)
    assert order == ["a", "b"] * 4 and found["repeats"] == 3
    lines = []
    measure.table([found], lines.append)
    assert len(lines) == 2 and "a" in lines[1]


@pytest.mark.parametrize(("arguments", "sentence"), [(["nope"], "nope"), (["peers"], "--peer")])
def test_what_cannot_be_measured_is_refused_in_one_sentence(arguments, sentence, capsys):
    assert main(["bench", *arguments]) == 1
    said = capsys.readouterr()
    assert sentence in said.err and not said.out


def test_every_suite_is_known_to_the_command(monkeypatch):
    asked = []
    for name in SUITES:
        module = __import__(f"rcp.bench.{name}", fromlist=["measure"])
        monkeypatch.setattr(module, "measure", lambda choice, say, name=name: asked.append(name))
    monkeypatch.setattr(rcp.bench, "rates", lambda repeats: {})
    report = bench(SUITES, Choice(category=object(), peer="python"), say=lambda line: None)
    assert asked == list(SUITES) and set(report) == {"machine", "rates", *SUITES}


def test_mixtures_begin_with_rows_of_the_base_and_stay_between_its_rows():
    base = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    rows = mixed(base, 300)
    assert torch.equal(rows, mixed(base, 300)) and rows.shape == (300, 3)
    assert sorted(rows[:50, 0].tolist()) == sorted(base[:, 0].tolist())
    assert (rows.amin(0) >= base.amin(0)).all() and (rows.amax(0) <= base.amax(0)).all()
    assert len(torch.unique(rows, dim=0)) > 280  # a row mixed with itself stays what it is
    assert mixed(base, 20).shape == (20, 3)


@pytest.fixture
def flange(tmp_path):
    root = rcp.synthetic.write(tmp_path / "small", categories=("flange",), train=3, good=2, per_defect=1)
    return rcp.mvtec(root, "flange")


def test_full_size_keeps_the_layout_and_leaves_masks_two_valued(flange, tmp_path):
    again = rcp.mvtec(peers.full_size(flange, tmp_path / "full"), "flange")
    assert len(again.train) == 3 and len(again.test) == len(flange.test)
    for sample in again.test:
        assert Image.open(sample.path).size == (peers.FULL, peers.FULL)
        if sample.mask is not None:
            assert set(np.unique(np.asarray(Image.open(sample.mask)))) <= {0, 255}


@pytest.mark.filterwarnings("ignore:no verdict")
def test_our_side_of_the_comparison_does_the_whole_work(flange, tmp_path):
    found = ours.files(str(flange.root.parent), "flange", "bfloat16", "3")
    assert found["seconds"] == pytest.approx(found["fit"] + found["test"]) and 0 <= found["metrics"]["image_auroc"] <= 1
    assert {"features", "coreset", "calibration", "scoring", "metrics"} <= set(found["stages"])
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((500, 20), np.float32))
    picked = ours.coreset(str(tmp_path / "rows.npy"))
    assert picked["picked"] == 5 and picked["radius"] > 0


def test_peers_are_put_beside_ours_as_ratios(flange, monkeypatch):
    monkeypatch.setattr(peers, "MAPS", (4, 160, 160))
    monkeypatch.setattr(rcp, "SET_HERE", {"OMP_WAIT_POLICY"})
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")  # the user's
    asked = []

    def answer(words, environment=None):
        asked.append([str(word) for word in words])
        if words[0] != "peer-python":
            assert environment is None
            return {"seconds": 2.0}
        assert "OMP_WAIT_POLICY" not in environment and environment["GOMP_SPINCOUNT"] == "7"
        return {"seconds": 10.0}

    monkeypatch.setattr(peers, "answer_of", answer)
    report = peers.measure(Choice(repeats=2, category=flange, peer="peer-python"), lambda line: None)
    assert [entry["stage"] for entry in report["lines"]] == [
        "files", "files, bfloat16", "files, calibrated", "files, calibrated, bfloat16", "coreset", "metrics",
    ]  # fmt: skip
    assert all(entry["ratio"] == [0.2, 0.2, 0.2] for entry in report["lines"])
    assert sum(words[0] == "peer-python" for words in asked) == 6  # float32 files, coreset, metrics: twice each


def test_a_program_is_read_by_its_last_line_and_named_with_its_last_words_if_it_fails(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text("print('loading'); print('{\"seconds\": 2}')")
    assert answer_of([sys.executable, script]) == {"seconds": 2}
    script.write_text("import sys; sys.exit('no such thing')")
    with pytest.raises(ValueError, match="peer.py failed: no such thing"):
        answer_of([sys.executable, script])
    script.write_text("import sys; sys.exit(3)")
    with pytest.raises(ValueError, match="exit status 3"):
        answer_of([sys.executable, script])


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_a_program_that_was_killed_is_said_to_have_been(tmp_path):
    with pytest.raises(ValueError, match="signal 9 ended it"):
        answer_of([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])


def test_the_fit_under_a_bound_reports_what_it_held(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "IMAGES", 2)
    monkeypatch.setattr(memory, "SIDE", 64)
    monkeypatch.setattr(memory, "BOUND", 1)  # so that everything goes to a file
    found = memory.fit(tmp_path)
    assert found["patches"] == 2 * 8 * 8 and found["width"] == 1536 and found["stored"] == "float16"
    assert found["peak_anonymous_bytes"] > 0 and not list(tmp_path.iterdir())
    json.dumps(found)


def test_the_wide_network_is_put_beside_a_product_of_its_own_operations():
    found = stages.wide_network(1, "float32")
    assert found["operations"] == pytest.approx(18.4e9, rel=0.01)  # two for each multiplication with an addition


@pytest.mark.parametrize(("low", "high", "ticks"), [(0.88, 1.78, (0.5, 2)), (0.1, 20.4, (0.1, 50)), (2, 5, (2, 5))])
def test_the_axis_of_growth_ends_at_round_numbers_so_that_two_of_them_are_on_it(low, high, ticks):
    curve = {"axis": "rows", "what": "coreset", "sizes": [10, 20], "seconds": [low, high], "exponent": 1.0}
    assert growth_figure(curve, "a machine").axes[0].get_ylim() == pytest.approx(ticks)


@pytest.mark.parametrize("extra", [{}, {"extra_bytes": [1e6, 2e6, 4e6]}])
def test_the_figure_of_growth_states_the_exponent(extra):
    curve = {"axis": "rows", "what": "coreset", "sizes": [10, 20, 40], "seconds": [1.0, 4.0, 16.0], "exponent": 2.0}
    figure = growth_figure(curve | extra, "a machine")
    assert len(figure.axes) == 1 + bool(extra)
    assert "2.00" in figure.axes[0].get_legend().get_texts()[0].get_text()
