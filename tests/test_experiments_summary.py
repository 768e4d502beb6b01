"""Paired differences and their intervals: by hand, against scipy, and on tables that are small enough to check by eye."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rcp.bench.repeat import markdown
from rcp.experiments.collection import Row
from rcp.experiments.report import CONTENDERS, contenders, difference_table, mean_table, port_table, report, spelled
from rcp.experiments.summary import (
    Interval,
    by_category,
    choose,
    differences,
    interval,
    over_both,
    over_categories,
    over_seeds,
    values_of,
)
from rcp.files import read_json

ROOT = Path(__file__).resolve().parent.parent


def row(method="ReConPatch", category="pill", seed=0, value=0.9, **more) -> Row:
    given = {"data": "mvtec", "backbone": "Lite0", "varied": {}, "epoch": None, "probes": {"position_share": value / 2}} | more
    return Row(method=method, category=category, seed=seed, metrics={"image_auroc": value, "aupro": None}, **given)


numbers = st.lists(st.floats(-1, 1), min_size=2, max_size=12).filter(lambda v: statistics.stdev(v) > 1e-6)


@given(numbers)
def test_the_interval_is_that_of_a_one_sample_t_test(values):
    found = interval(values)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    if min(abs(found.low), abs(found.high)) > 1e-9:  # where zero is an end, rounding decides
        assert found.clear == (stats.ttest_1samp(values, 0).pvalue < 0.05)


def test_a_single_value_has_no_interval_and_is_not_clear():
    found = interval([0.3])
    assert found.mean == 0.3 and found.n == 1 and math.isnan(found.low) and not found.clear
    with pytest.raises(ValueError, match="no values"):
        interval([])


@given(numbers, st.floats(-5, 5), st.floats(0.1, 10))
def test_the_interval_moves_and_scales_with_the_values(values, shift, scale):
    one, two = interval(values), interval([scale * value + shift for value in values])
    assert two.mean == pytest.approx(scale * one.mean + shift, abs=1e-7)
    assert two.high - two.low == pytest.approx(scale * (one.high - one.low), rel=1e-5, abs=1e-7)


def test_pairing_takes_what_cells_have_in_common_out_before_the_mean():
    """Two methods that differ by 0.01 in each cell, on categories that differ by 0.3: paired, nothing else is left."""
    theirs = {("d", c, "b", s): 0.6 + 0.3 * i + 0.02 * s for i, c in enumerate("xy") for s in range(3)}
    ours = {key: value + 0.01 for key, value in theirs.items()}
    apart = differences(ours, theirs)
    assert over_seeds(apart).low == pytest.approx(0.01) and over_seeds(apart).high == pytest.approx(0.01)
    unpaired = interval(ours.values()), interval(theirs.values())
    assert unpaired[0].low < unpaired[1].high  # side by side they could not be told apart


def test_over_seeds_and_over_categories_ask_different_questions():
    """Seeds agree and categories do not: a clear mean on these two, and no word on others."""
    apart = {("d", c, "b", s): mean + 1e-3 * s for c, mean in (("x", 0.10), ("y", 0.02)) for s in range(3)}
    assert over_seeds(apart).mean == pytest.approx(over_categories(apart).mean) == pytest.approx(0.061)
    assert over_seeds(apart).clear and not over_categories(apart).clear
    assert (over_seeds(apart).n, over_categories(apart).n) == (3, 2)
    assert {key[1]: round(found.mean, 4) for key, found in by_category(apart).items()} == {"x": 0.101, "y": 0.021}


def test_over_both_is_a_two_way_table_by_hand():
    """Two categories, three seeds: mean squares 0.06, 0.02 and 0.005, so (0.06 + 0.02 - 0.005) / 6, one degree of freedom."""
    table = {"x": (0.1, 0.2, 0.45), "y": (0.25, 0.5, 0.6)}
    apart = {("d", c, "b", s): value for c, own in table.items() for s, value in enumerate(own)}
    mean = 0.35
    rows, columns = {"x": 0.25, "y": 0.45}, [0.175, 0.35, 0.525]
    ms_c = 3 * sum((v - mean) ** 2 for v in rows.values())
    ms_s = 2 * sum((v - mean) ** 2 for v in columns) / 2
    ms_e = sum((table[c][s] - rows[c] - columns[s] + mean) ** 2 for c in "xy" for s in range(3)) / 2
    error = math.sqrt(max(ms_c, ms_s, ms_c + ms_s - ms_e) / 6)
    found = over_both(apart)
    assert found.mean == pytest.approx(mean) and found.high - mean == pytest.approx(12.706 * error, rel=1e-4)
    assert found.high >= max(over_seeds(apart).high, over_categories(apart).high)


@given(st.lists(st.lists(st.floats(-1, 1), min_size=4, max_size=4), min_size=2, max_size=6))
def test_over_both_is_never_surer_than_either_alone(table):
    apart = {("d", str(c), "b", s): value for c, own in enumerate(table) for s, value in enumerate(own)}
    both, seeds, categories = over_both(apart), over_seeds(apart), over_categories(apart)
    assert both.mean == pytest.approx(seeds.mean, abs=1e-12)
    assert both.high - both.low >= max(seeds.high - seeds.low, categories.high - categories.low) * (1 - 1e-9) - 1e-12


def test_over_both_wants_a_full_table():
    apart = {("d", "x", "b", 0): 1.0, ("d", "x", "b", 1): 1.0, ("d", "y", "b", 0): 1.0}
    with pytest.raises(ValueError, match="got 3 of 2 x 2"):
        over_both(apart)
    with pytest.raises(ValueError, match="several categories"):
        over_both({("d", "x", "b", 0): 1.0, ("d", "x", "b", 1): 1.0})


def test_a_seed_that_lacks_a_category_does_not_shift_the_mean():
    apart = {("d", "x", "b", 0): 1.0, ("d", "y", "b", 0): 3.0, ("d", "x", "b", 1): 2.0, ("d", "y", "b", 1): 4.0, ("d", "x", "b", 2): 0.0}
    found = over_seeds(apart)
    assert (found.mean, found.n) == (2.5, 2)


def test_backbones_of_a_category_are_not_categories():
    apart = {("d", c, b, 0): value for c, value in (("x", 1.0), ("y", 2.0)) for b in ("small", "large")}
    assert over_categories(apart).n == 2 and over_seeds(apart).n == 1


def test_what_cannot_be_paired_or_told_apart_is_refused():
    with pytest.raises(ValueError, match="nothing can be paired"):
        differences({("d", "x", "b", 0): 1.0}, {("d", "x", "b", 1): 1.0})
    with pytest.raises(ValueError, match="choose one method"):
        values_of([row(), row(epoch=3)], "image_auroc")
    with pytest.raises(ValueError, match="there are PatchCore, ReConPatch"):
        choose([row(), row("PatchCore")], method="Reconpatch")


def test_undefined_values_are_left_out_and_probes_are_found():
    assert values_of([row()], "aupro") == {}
    assert values_of([row(value=0.8)], "position_share") == {("mvtec", "pill", "Lite0", 0): 0.4}


def test_choose_takes_the_end_unless_an_epoch_is_named():
    rows = [row(epoch=0, last=False, value=0.1), row(epoch=120, value=0.2), row("x", varied={"a": 1}), row("x", varied={"a": 2}, seed=1)]
    assert [r.epoch for r in choose(rows, method="ReConPatch")] == [120]
    assert [r.epoch for r in choose(rows, method="ReConPatch", epoch=0)] == [0]
    assert [r.seed for r in choose(rows, method="x", varied={"a": 2})] == [1]


def test_an_interval_is_bold_exactly_if_zero_lies_outside():
    assert spelled(Interval(0.01, 0.002, 0.018, 5)) == "**+1.00 [+0.20, +1.80]**"
    assert spelled(Interval(0.01, -0.002, 0.022, 5)) == "+1.00 [-0.20, +2.20]"
    assert spelled(Interval(-0.5, math.nan, math.nan, 1), 1) == "-0.500"


# --- the study's tables ---------------------------------------------------------------------------


@pytest.fixture
def study() -> list[Row]:
    """Every contender gains 0.01 on the one before it, in each of two categories and three seeds."""
    rows = []
    for rank, (method, epoch) in enumerate(CONTENDERS.values()):
        for category in ("pill", "bottle"):
            for seed in range(3):
                value = 0.5 + 0.01 * rank + 0.02 * seed
                metrics = dict.fromkeys(("image_auroc", "pixel_auroc", "aupro", "d_prime"), value)
                probes = {"position_share": value, "position_r2": value, "effective_rank": 10 * value}
                last = epoch is None
                rows.append(Row("mvtec", category, "Lite0", method, {}, seed, epoch, metrics, probes, last))
    return rows


def test_the_difference_table_has_a_line_a_contender_and_the_right_differences(study):
    untrained = list(CONTENDERS).index("untrained f")
    others = [name for name in CONTENDERS if name != "untrained f"]
    lines = difference_table(study, "image AUROC", "untrained f").splitlines()[2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == others
    for name, line in zip(others, lines, strict=True):
        apart = list(CONTENDERS).index(name) - untrained
        cells = [cell.strip(" |*") for cell in line.split(" | ")]
        assert cells[1:] == ["6", *[f"{apart:+.2f} [{apart:+.2f}, {apart:+.2f}]"] * 4]  # both, seeds, categories, the one data set


def test_the_mean_table_gives_percent_for_shares_and_numbers_for_the_rest(study):
    line = next(one for one in mean_table(study, "mvtec", "Lite0").splitlines() if one.startswith("| PatchCore |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "52.00 ± 2.00" and cells[4] == "0.52 ± 0.02" and cells[7] == "5.20 ± 0.20"


def test_a_contender_that_was_not_measured_has_no_line(study):
    rows = [one for one in study if one.method != "whitening"]
    assert "whitening" not in contenders(rows, "image_auroc") and "whitening" not in difference_table(rows, "image AUROC", "untrained f")


def test_each_bug_is_compared_with_the_training_that_has_none():
    rows = [row(seed=s, value=0.9, category=c) for s in range(2) for c in "xy"]
    rows += [row("ported", seed=s, value=0.88, category=c, varied={"options.bug": "scale"}) for s in range(2) for c in "xy"]
    table = port_table(rows)
    heads = ("all, over both", "all, over seeds", "mvtec x, over seeds", "mvtec y, over seeds")
    assert f"| bug | {' | '.join(heads)} |" in table and "| scale | " + " | ".join(["**-2.00 [-2.00, -2.00]**"] * 4) + " |" in table


# --- what REPRODUCIBILITY.md says -----------------------------------------------------------------


def test_every_table_in_reproducibility_md_is_what_the_commands_print():
    text = (ROOT / "REPRODUCIBILITY.md").read_text(encoding="utf-8")
    assert report(ROOT / "figures" / "results") in text
    assert markdown(read_json(ROOT / "figures" / "bench_repeat.json")["repeat"]).strip() in text


def test_every_interval_in_the_readme_stands_in_reproducibility_md():
    found = re.findall(r"[+-]\d+\.\d{2,3} \[[^\]]+\]", (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " "))
    text = (ROOT / "REPRODUCIBILITY.md").read_text(encoding="utf-8")
    assert len(found) >= 6
    assert [one for one in found if one not in text] == []


@pytest.mark.parametrize("path", sorted((ROOT / "figures" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_no_collection_is_committed_before_its_grid_is_done(path):
    assert read_json(path).get("missing", 0) == 0
