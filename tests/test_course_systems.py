"""Notebook 10: tables and sentences follow from the rows, checks tell the slips, every picture draws, every control moves it."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from lessons import changes, verdicts

import rcp
from rcp import synthetic
from rcp.course import systems as lesson
from rcp.course import systems_checks as checks
from rcp.course import systems_figures as pictures
from rcp.course import systems_measure as measuring
from rcp.course import systems_words as words
from rcp.detectors import SYSTEMS
from rcp.experiments.collection import Row
from rcp.files import write_json

REPOSITORY = Path(__file__).resolve().parent.parent
CATEGORIES = {"embedded": ("brick", "flange"), "mvtec": ("pill",)}
LEVEL = {name: 0.9 - 0.02 * i for i, name in enumerate(lesson.NAMES)} | {lesson.BASELINE: 0.55}


def row(data, category, method, seed, level, varied=None) -> Row:
    shift = 0.001 * seed + 0.01 * len(category) / 10
    metrics = dict.fromkeys(("image_auroc", "image_ap", "pixel_auroc", "aupro"), level + shift)
    return Row(data, category, "Lite0", method, varied or {}, seed, None, metrics, {})


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Three categories, two seeds; systems fall by two points from one to the next; InCTRL gains a point with twice the prompts."""
    found = []
    for data, categories in CATEGORIES.items():
        for category in categories:
            for seed in (0, 1):
                for name, level in LEVEL.items():
                    if name != "InCTRL":
                        found.append(row(data, category, name, seed, level))
                found += [row(data, category, "InCTRL", seed, LEVEL["InCTRL"] + 0.01 * i, {lesson.PROMPTS: k}) for i, k in enumerate(lesson.SHOTS)]
    return found


@pytest.fixture(scope="module")
def cost() -> dict[str, lesson.Cost]:
    return {name: lesson.Cost(10.0 + i, 0.01 * (i + 1), 1e9, 1e6 * (20 - i), 0.0) for i, name in enumerate(lesson.KINDS)}


def test_every_system_has_an_idea_a_kind_and_a_name():
    assert set(lesson.KINDS.values()) == {"patchcore", "reconpatch", *SYSTEMS}
    assert set(lesson.NAMES) | {lesson.BASELINE} == set(lesson.KINDS)
    assert all(lesson.idea_of(name) in lesson.IDEAS for name in lesson.NAMES) and lesson.idea_of(lesson.BASELINE) == "–"


def test_values_are_percent_and_those_of_one_system(rows):
    found = lesson.values(rows, "SPADE", "aupro", data="embedded")
    assert len(found) == 4 and found["embedded", "brick", "Lite0", 1] == pytest.approx(100 * (LEVEL["SPADE"] + 0.001 + 0.005))
    two, eight = (lesson.values(rows, "InCTRL", "image_auroc", prompts=k) for k in (2, 8))
    assert {round(eight[key] - two[key], 6) for key in two} == {2.0}


def test_mean_and_deviation_are_over_categories_first_and_then_over_seeds():
    found = {("d", "a", "b", 0): 90.0, ("d", "c", "b", 0): 80.0, ("d", "a", "b", 1): 92.0, ("d", "c", "b", 1): 84.0}
    assert lesson.mean_std(found) == f"86.50 ± {statistics.stdev([85, 88]):.2f}"
    assert lesson.mean_std({("d", "a", "b", 0): 90.0}) == "90.00"


def test_the_one_table_has_a_line_a_system_with_measured_published_and_cost(rows, cost):
    lines = lesson.side_by_side(rows, cost).splitlines()
    assert len(lines) == 2 + len(lesson.KINDS) and len({line.count("|") for line in lines}) == 1
    spade = next(line for line in lines if line.startswith("| SPADE"))
    assert "| 85.5 | 96.0 | 91.7 |" in spade and lesson.mean_std(lesson.values(rows, "SPADE", "image_auroc", data="mvtec")) in spade
    assert lines[2].startswith(f"| {lesson.BASELINE} | – |") and "– | – | – |" in lines[2]
    assert "seeds 0, 1" in lesson.table_words(rows)


def test_what_the_papers_print_is_theirs():
    assert lesson.printed("ReContrast") == {"image_auroc": pytest.approx(99.5, abs=0.1), "pixel_auroc": pytest.approx(98.4, abs=0.2), "aupro": pytest.approx(95.2, abs=0.3)}
    assert lesson.printed("MKD") == {"image_auroc": 87.74, "pixel_auroc": 90.71}
    assert lesson.printed("InCTRL") == lesson.printed(lesson.BASELINE) == {}


def test_differences_are_paired_and_bold_where_they_are_clear(rows):
    found = lesson.against(rows, "PatchCore")
    assert "PatchCore" not in found and found["SPADE"].mean == pytest.approx(100 * (LEVEL["SPADE"] - LEVEL["PatchCore"]))
    table = lesson.difference_table(rows)
    assert "| SPADE | **−4.00" in table and "PatchCore |" not in table
    assert lesson.below_baseline(rows) == {} and "Below brightness alone: none anywhere." in words.compared(rows)
    dark = [one for one in rows if (one.method, one.category) != ("SPADE", "pill")] + [row("mvtec", "pill", "SPADE", s, 0.5) for s in (0, 1)]
    assert lesson.below_baseline(dark) == {"SPADE": ["pill"]} and "Below brightness alone: SPADE on pill." in words.compared(dark)


def test_the_two_kinds_of_intervals_are_told_apart(rows):
    wide = [row("embedded", c, m, s, 0.8 - 0.1 * (m == "SPADE") + 0.04 * s * (m == "SPADE")) for c in "abcdef" for s in (0, 1) for m in lesson.NAMES if m != "InCTRL"]
    wide += [row("embedded", c, "InCTRL", s, 0.8, {lesson.PROMPTS: 8}) for c in "abcdef" for s in (0, 1)]
    wide += [row("embedded", c, lesson.BASELINE, s, 0.5) for c in "abcdef" for s in (0, 1)]
    first, _, second = words.compared(wide).partition("For another category with these seeds")
    assert "clearly worse: none" in first and "which 2 seeds make cautious" in first and "clearly worse: 1 (SPADE)" in second


def test_what_is_known_of_published_numbers_is_told_once_with_all_whom_it_touches():
    lines = lesson.troubles_told().splitlines()
    assert len(set(line.partition(": ")[2] for line in lines)) == len(lines)
    assert any(line.startswith("* SPADE: ") and "K=50" in line for line in lines)
    assert any(line.startswith("* PatchCore, SPADE, PaDiM") and "PRO" in line for line in lines)


def test_cheap_systems_are_chosen_among_those_near_the_best(rows, cost):
    near = [name for name in lesson.useful(rows) if abs(LEVEL[name] - LEVEL["PatchCore"] + lesson.NEAR / 100) > 1e-9]  # but at the limit itself
    assert near == [name for name in lesson.NAMES if LEVEL[name] > LEVEL["PatchCore"] - lesson.NEAR / 100 + 1e-9]
    late = cost | {"PatchCore": lesson.Cost(1.0, 0.01, 1e9, 1e6, 99.0)}
    assert "| a short set-up | ReConPatch |" in lesson.when_to_use(rows, late) and lesson.fit_told(late["PatchCore"]) == "1.0 + 99.0"
    assert lesson.fit_told(cost["SPADE"]) == f"{cost['SPADE'].fit_seconds:.1f}"


def test_advice_names_who_leads(rows, cost):
    text = lesson.when_to_use(rows, cost)
    assert "| which parts are bad | PatchCore |" in text and "| a short set-up | PatchCore |" in text
    assert f"2: {statistics.fmean(lesson.values(rows, 'InCTRL', 'image_auroc', prompts=2).values()):.2f}" in text
    said = words.verdict(rows, cost)
    assert "Of 9 systems, clearly better than PatchCore in image AUROC: none; clearly worse: 9" in said and "The slowest to fit is InCTRL (20 s)" in said


def test_costs_come_from_the_benchmarks_file(tmp_path):
    line = {"fit_seconds": 1.0, "image_seconds": 0.1, "peak_bytes": 1e9, "disk_bytes": 2e6, "pretraining_seconds": 0.0, "runs": [1, 2]}
    lines = [line | {"detector": kind} for kind in lesson.KINDS.values()]
    about = {"category": "terminal", "train": 64, "test": 56, "lines": lines}
    write_json(tmp_path / "bench_systems.json", {"machine": {"cores": 2, "processor": "P"}, "systems": about})
    assert lesson.costs(tmp_path)["Focus Your Distribution"].disk_bytes == 2e6 and set(lesson.costs(tmp_path)) == set(lesson.KINDS)
    assert "64 good and 56 test images, 2 cores (P), median of 2 runs" in lesson.cost_words(tmp_path)


def test_a_grid_that_was_not_collected_is_told_with_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="rcp experiments systems --collect"):
        lesson.read("systems", tmp_path)


def test_checks_tell_the_slips():
    verdicts(checks.check_1, checks.mahalanobis, [lambda x, m, s: (x - m).norm(), lambda x, m, s: checks.mahalanobis(x, m, s) ** 2,
             lambda x, m, s: ((x - m).square() / s.diagonal()).sum().sqrt()])  # fmt: skip
    verdicts(checks.check_2, 56**4 / 56**2 * 550**2 * 8 / 1e9, [3.79, 0.01379, 7.068])
    verdicts(checks.check_3, [8, 2, 1], [[0, 6, 7], [8, 8, 1], [8, 3, 1], [0, 2, 1]])


def test_spades_k_is_said_as_an_interval_and_its_best_as_an_oracle():
    by_k = {"a": {3: 0.9, 50: 0.85}, "b": {3: 0.8, 50: 0.74}, "c": {3: 0.7, 50: 0.66}}
    said = words.spade_said(by_k)
    assert "+5.00" in said and "with the re-implementations" in said and "oracle" in said
    assert pictures.spade_figure(by_k, words.REIMPLEMENTED).axes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Collected files of every grid that the notebook reads, invented."""
    place = tmp_path_factory.mktemp("results")

    def collected(name, cells):
        content = [vars(one) | {"seconds": 1.0} for one in cells]
        (place / f"{name}.json").write_text(json.dumps({"schema": 1, "missing": 0, "rows": content}), encoding="utf-8")

    switched = [row("embedded", category, method, seed, 0.9 - 0.1 * ("without" in method or "alone" in method or "none" in varied.values()), varied)
                for settings in words.SETTINGS.values() for method, varied in {json.dumps(s): s for s in settings.values()}.values()
                for category in ("flange", "terminal") for seed in (0, 1)]  # fmt: skip
    collected("systems_ablations", switched)
    collected("systems_pooled", [row("embedded, one model", c, m, s, 0.8) for m in ("PatchCore", "ReContrast") for c in ("brick", "flange") for s in (0, 1)])
    collected("systems_transfer", [row("mvtec", c, m, s, 0.7) for m in ("InCTRL, trained on synthetic parts", "PatchCore") for c in ("bottle", "pill") for s in (0, 1)])
    collected("systems_digits", [row("digits", c, m, s, 0.6) for m in ("InCTRL", "PatchCore") for c in ("rest-0", "rest-1", "one-0", "one-1") for s in (0, 1)])
    return place


def test_what_is_committed_can_be_read_and_said():
    by_k = words.spade_by_k()
    assert set(by_k) == {*synthetic.CATEGORIES, "bottle", "pill"} and "95 %" not in words.spade_said(by_k) and "oracle" in words.spade_said(by_k)
    assert words.transfer_table().count("| InCTRL, trained on") == 2 and "| PatchCore |" in words.digits_table()
    maps = pictures.read_maps()
    assert list(maps["systems"]) == [lesson.BASELINE, *lesson.NAMES] and len({len(one["maps"]) for one in maps["systems"].values()}) == 1


def test_switches_are_paired_with_the_whole_system(folder):
    groups = words.ablations(folder)
    assert {name: list(one) for name, one in groups.items()} == {name: list(one) for name, one in words.SETTINGS.items()}
    said = words.ablations_said(groups)
    assert "| ReContrast | no stop-gradient | 4 | −10.00 [−10.00, −10.00]" in said and "too narrow" in said
    assert words.alignment_said(groups).count("−10.00 [−10.00, −10.00]") == 2 and "flange" in words.alignment_said(groups)
    assert all(name in words.settings_said() for name in ("guided", "no contrast", "I: averaged"))
    assert len(pictures.ablation_figure(groups).axes) == 6


def test_small_tables_have_their_means(folder, rows):
    assert "| PatchCore |" in words.pooled_table(rows, folder) and "seeds 0, 1" in words.pooled_table(rows, folder)
    assert "| InCTRL, trained on synthetic parts, 8 prompts | 70." in words.transfer_table(folder)
    assert "| InCTRL, 8 prompts | 60." in words.digits_table(folder)


def test_every_picture_draws_and_every_control_moves_it(rows, cost, tmp_path):
    assert len(pictures.taxonomy_figure().axes) == 5
    assert len(pictures.cost_figure(rows, cost).axes) == 2 and pictures.shots_figure(rows).axes
    several = [one if one.metrics["image_auroc"] != 1 else one for one in rows]
    several[0].metrics["aupro"] = 0.1  # so that two metrics differ
    changes(pictures.explore_overview(several), metric="aupro")


def test_maps_are_measured_kept_small_and_drawn(monkeypatch, tmp_path):
    root = synthetic.write(tmp_path / "data", categories=("terminal",), train=8, good=2, per_defect=1)
    category = rcp.mvtec(root, "terminal")
    monkeypatch.setattr(measuring, "NAMES", ("PaDiM",))
    lines = []
    content = measuring.measure_maps(category, lines.append)
    assert list(content["systems"]) == [lesson.BASELINE, "PaDiM"] and len(lines) == 2
    assert content["defects"] == ["crack", "good", "misprint", "missing_screw", "swarf"]
    assert np.array(content["systems"]["PaDiM"]["maps"]).shape == (5, 28, 28)
    figure = pictures.maps_figure(content, category, 0)
    assert [text.get_text() for text in figure.axes[0].texts] == ["crack", "histogram", "PaDiM"]
    board, wide, gap = figure.axes[0].images[0].get_array(), 224, pictures.GAP
    assert (board == pictures.CONTOUR.astype(np.uint8)).all(2).any() and len(figure.axes[0].images) == 1
    content["systems"]["PaDiM"]["maps"][1] = [[1e9] * 14 + [-1e9] * 14] * 28  # beyond both ends of the scale; a good image has no outline
    part = pictures.maps_figure(content, category, 1).axes[0].images[0].get_array()[2 * gap : 2 * gap + wide, 2 * (wide + gap) :][:, :wide]
    low, top = content["systems"]["PaDiM"]["limits"]
    content["systems"]["PaDiM"]["maps"][1] = [[(low + top) / 2] * 28] * 28
    middle = pictures.maps_figure(content, category, 1).axes[0].images[0].get_array()[150, 2 * (wide + gap) + 100]
    assert np.abs(middle.astype(int) - np.array(pictures.HEAT(0.5, bytes=True)[:3])).max() <= 3
    ends = [tuple(pictures.HEAT(end, bytes=True)[:3]) for end in (1.0, 0.0)]
    assert [tuple(part[100, x]) for x in (20, 200)] == ends
    changes(pictures.explore_maps(content, category), which=0)


def test_spades_k_is_measured_as_its_options_would(tmp_path):
    root = synthetic.write(tmp_path, categories=("terminal",), train=6, good=2, per_defect=1)
    category = rcp.mvtec(root, "terminal")
    found = measuring.measure_k({"terminal": category}, lambda line: None)["terminal"]
    one = rcp.SPADE(options=rcp.SPADEOptions(neighbours=3)).fit(category.train)
    assert found["3"] == rcp.evaluate(one, category.test).metrics["image_auroc"] and list(found) == [str(k) for k in measuring.KS]


@pytest.mark.parametrize(("page", "arguments"), [("REPRODUCIBILITY.md", []), ("README.md", ["--short"]), ("BENCHMARKS.md", ["--costs"])])
def test_the_pages_show_what_the_command_prints(page, arguments, capsys):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    shown = text.partition("<!-- systems -->\n")[2].partition("<!-- end of systems -->")[0]
    assert words.main(arguments) == 0 and shown == capsys.readouterr().out != ""


def test_every_system_was_measured_on_every_category_and_seed_and_beats_brightness_by_far():
    measured = lesson.read("systems")
    kept = {name: lesson.values(measured, name, "image_auroc") for name in (*lesson.NAMES, lesson.BASELINE)}
    assert {len(found) for found in kept.values()} == {6 * 3}
    for name in lesson.NAMES:
        apart = {key: value - kept[lesson.BASELINE][key] for key, value in kept[name].items() if key[0] == "embedded"}
        by_category = [statistics.fmean(v for key, v in apart.items() if key[1] == category) for category in synthetic.CATEGORIES]
        assert statistics.fmean(by_category) > 8 and max(by_category) > 20, f"{name}: {by_category}"
        over_chance = {key: kept[name][key] - max(50, kept[lesson.BASELINE][key]) for key in apart}  # on `terminal` brightness lies below chance
        assert max(statistics.fmean(v for key, v in over_chance.items() if key[1] == c) for c in synthetic.CATEGORIES) > 10, name
