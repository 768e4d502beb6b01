"""Notebook 08: committed results are paired rightly, judged by computation, and drawn as they are."""

import itertools
import math
import re
import statistics
from pathlib import Path

import pytest
from lessons import verdicts
from scipy.stats import t as student

from rcp import course, published
from rcp.course import paper_tables as lesson
from rcp.course import paper_tables_checks as checks
from rcp.course import paper_tables_claims as claims
from rcp.course import paper_tables_figures as pictures
from rcp.course import paper_tables_words as words
from rcp.course.ablations_paper import advantage
from rcp.experiments import report
from rcp.experiments.collection import Row
from rcp.experiments.summary import Interval, interval, over_both, over_seeds
from rcp.files import write_json

SEEDS, PLACES = range(3), (("embedded", "brick"), ("embedded", "flange"), ("mvtec", "bottle"), ("mvtec", "pill"))
WORTH = {"brick": 0.02, "flange": 0.03, "bottle": 0.0, "pill": 0.01}  # what the training is worth, as a share


def row(data: str, category: str, backbone: str, method: str, seed: int, level: float, epoch: int | None = None, **more) -> Row:
    metrics = {name: level for name in ("image_auroc", "pixel_auroc", "aupro")} | {"d_prime": 4 * level}
    probes = {"position_share": level / 2, "position_r2": 0.9, "effective_rank": 20 * level}
    return Row(data, category, backbone, method, more.pop("varied", {}), seed, epoch, metrics, probes, **more)


def made(backbones=("Lite0", "Lite1")) -> list[Row]:
    """A study with known differences: each seed shifts all methods alike, training gains `WORTH`, whitening 0.01."""
    rows = []
    for data, category in PLACES:
        for backbone in backbones:
            for seed in SEEDS:
                base = 0.9 - 0.03 * seed - 0.01 * (backbone == "Lite1")
                place = (data, category, backbone)
                rows += [row(*place, name, seed, base) for name in ("PatchCore", "PatchCore + Eq. 10", "random projection")]
                rows.append(row(*place, "whitening", seed, base + 0.01 + 0.0001 * seed))
                gain = WORTH[category] * (1 + 0.1 * seed)
                for epoch in (0, 1, 10, 40):
                    rows.append(row(*place, "ReConPatch", seed, base + gain * epoch / 120, epoch, last=False))
                rows.append(row(*place, "ReConPatch", seed, base + gain, 120))
                if backbone == "Lite0":
                    rows.append(row(*place, "PCA to 64", seed, base - 0.02))
                    rows.append(row(*place, "ReConPatch, rate x 10", seed, base + 2 * gain, 120))
                    rows += [row(*place, "ported", seed, base - 0.01 * i, 120, varied={"options.bug": who.bug})
                             for i, who in enumerate(lesson.BUGS.values())]  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return made()


def test_differences_are_paired_and_in_points(rows):
    found = lesson.gains(rows, lesson.TRAINED, lesson.UNTRAINED, "image_auroc")
    assert len(found) == 4 * 2 * 3
    assert found["mvtec", "pill", "Lite1", 2] == pytest.approx(100 * 0.01 * 1.2)
    assert lesson.gains(rows, lesson.TRAINED, lesson.UNTRAINED, "d_prime")["mvtec", "pill", "Lite0", 0] == pytest.approx(0.04)
    assert len(lesson.gains(rows, lesson.TRAINED, lesson.UNTRAINED, "image_auroc", "Lite1")) == 12
    assert lesson.gains([r for r in rows if r.method != "whitening"], "whitening", lesson.TRAINED, "aupro") == {}
    assert lesson.gains(rows, "bug: scale", lesson.TRAINED, "image_auroc")["embedded", "brick", "Lite0", 0] == pytest.approx(-5)


def test_intervals_by_category_are_those_of_the_means_over_backbones(rows):
    found = lesson.gains(rows, lesson.TRAINED, lesson.UNTRAINED, "image_auroc")
    own = lesson.per_category(found)
    by_hand = [statistics.fmean(found["embedded", "brick", b, seed] for b in ("Lite0", "Lite1")) for seed in SEEDS]
    assert own["brick"] == interval(by_hand) and list(own) == [name for _, name in PLACES]
    assert lesson.cells_clear(rows, lesson.TRAINED, lesson.UNTRAINED)["pill, Lite1"].mean == pytest.approx(1.1)
    assert len(lesson.cells_clear(rows, lesson.TRAINED, lesson.UNTRAINED)) == 8


def test_a_forest_has_both_intervals_and_skips_what_is_not_there(rows):
    lines = {line.who: line for line in lesson.forest(rows, lesson.UNTRAINED, "image_auroc")}
    assert lesson.UNTRAINED not in lines and "random projection to 64" not in lines
    found = lesson.gains(rows, lesson.TRAINED, lesson.UNTRAINED, "image_auroc")
    one = lines[lesson.TRAINED]
    assert (one.both, one.seeds) == (over_both(found), over_seeds(found)) and one.both != one.seeds
    assert set(one.parts) == {"Lite0", "Lite1"} and one.label == lesson.TRAINED
    assert one.parts["Lite1"] == pytest.approx(statistics.fmean(v for key, v in found.items() if key[2] == "Lite1"))
    assert lines["PCA to 64"].label == "PCA to 64 (Lite0)"


def test_words_follow_the_numbers():
    up, down, open_, single = Interval(1, 0.5, 1.5, 5), Interval(-1, -1.5, -0.5, 5), Interval(0.1, -1, 1.2, 5), interval([2.0])
    assert [lesson.verdict(one) for one in (up, down, open_, single)] == ["clearly above", "clearly below", "not clear", "not clear"]
    assert lesson.shown(open_) == "+0.10 [−1.00, +1.20]" and lesson.shown(single) == "+2.00" and lesson.signed(-0.001) == "+0.00"
    assert "not clear" in words.told(open_) and "too few for an interval" in words.told(single)
    text = words.counted({"a": up, "b": down, "c": open_})
    assert text.startswith("of 3, 1 (a) clearly above zero, 1 (b) clearly below, 1 not clear")
    assert words.counted({"a": up}, names=False).startswith("of 1, 1 clearly above")


def test_a_correction_for_many_comparisons_widens_and_counts():
    values = [0.5, 1.0, 1.5, 0.8, 1.2]
    one = interval(values)
    wide = lesson.widened(one, 10)
    assert lesson.widened(one, 1) == one and wide.low < one.low and wide.high > one.high
    assert wide.low == pytest.approx(interval(values, 1 - 0.05 / 10).low)  # Bonferroni
    just = Interval(1.0, 0.05, 1.95, 5)
    assert just.clear and not lesson.widened(just, 6).clear
    assert "0 are still clear" in words.counted({str(i): just for i in range(6)})


def test_one_category_or_one_seed_has_a_mean_and_no_interval(rows):
    found = lesson.gains(rows, lesson.TRAINED, lesson.UNTRAINED, "image_auroc")
    few = [{k: v for k, v in found.items() if k[1] == "pill"}, {k: v for k, v in found.items() if k[3] == 0},
           {k: v for i, (k, v) in enumerate(found.items()) if k[2] == "Lite0" and i}]  # fmt: skip
    for own in few:
        one = lesson.both(own)
        assert one.mean == pytest.approx(statistics.fmean(own.values())) and math.isnan(one.low) and not one.clear
        assert "too few for an interval" in words.told(one)
    assert lesson.both(found) == over_both(found)


def test_tables_say_what_was_measured(rows):
    text = lesson.study_table(rows, lesson.UNTRAINED)
    assert re.search(r"\| \*?\*?[+−]\d\.\d{3} \[[^|]* \|$", text.splitlines()[-1])  # d' has three digits
    assert re.search(r"\| \*?\*?[+−]\d\.\d{2} \[", text.splitlines()[-1])
    line = next(line for line in text.splitlines() if line.startswith("| whitening |"))
    found = over_both(lesson.gains(rows, "whitening", lesson.UNTRAINED, "image_auroc"))
    assert found.clear and f"| **{lesson.shown(found)}** |" in line
    trained = lesson.gains(rows, lesson.TRAINED, lesson.UNTRAINED, "image_auroc")
    assert over_seeds(trained).clear and not over_both(trained).clear  # the categories differ, the seeds hardly
    line = next(line for line in text.splitlines() if line.startswith(f"| {lesson.TRAINED} |"))
    assert f"| {lesson.shown(over_both(trained))} *s* |" in line and "**" not in line
    space = lesson.space_table(rows, "Lite0")
    assert "| 90.00" not in space and "untrained f" in space and "whitening" in space
    full = lesson.full_table(rows).splitlines()
    assert len(full) == 2 + 4 * 4 and full[-1].startswith("| 120 | pill |") and lesson.full_table([]) == ""


def test_published_stands_beside_measured(rows):
    texts = {name: claims.cells_table(rows, name) for name in ("bottle", "pill")}
    pill = [line for line in texts["pill"].splitlines() if line.startswith("| image AUROC")]
    value = published.find(table=5, method="PatchCore (25% coreset)", category="pill", metric="image_auroc").value
    here = [v for key, v in lesson.values(rows, "PatchCore", "image_auroc").items() if key[1] == "pill"]
    assert f"| {value:g} |" in pill[0] and f"{statistics.fmean(here):.2f} ± {statistics.stdev(here):.2f}" in pill[0]
    assert "inside" in pill[2] or "outside" in pill[2]
    assert sum(claims.DOUBT in line for text in texts.values() for line in text.splitlines()) == 4  # pixel values look permuted
    assert claims.cells_table([], "pill").count("not measured yet") == 6
    assert "mixes two models" in claims.claims_troubles() and "99.56" in claims.claims_table()
    assert "permuted" in claims.cells_troubles() and "permuted" not in claims.claims_troubles()


def test_published_gains_have_no_means_among_them():
    for source in claims.PAIRS:
        found = claims.published_gains(source)
        assert len(found) == 15 and not any(name.startswith("mean") for name in found)
    assert claims.published_gains("paper")["pill"] == pytest.approx(97.49 - 96.6)


def worse(rows) -> list[Row]:
    """The same study, with a training that does harm, everywhere and clearly."""
    return [r if r.method != "ReConPatch" or not r.last else row(r.data, r.category, r.backbone, r.method, r.seed, 0.5 + 0.01 * r.seed, 120) for r in rows]


def test_the_conclusion_is_computed(rows):
    study, none = lesson.Measured("study", tuple(rows), 10, 0), lesson.Measured("ports", (), 0, 0)
    text = words.question(study, none, none)
    assert "preliminary" not in text and "Four times the steps** (image AUROC, Lite0, − untrained f): not measured yet" in text
    assert "In an ensemble** (image AUROC, 60 epochs − untrained f): not measured yet" in text
    assert "pill +1.10" in words.question(study, study, none)
    more = words.beyond(study, lesson.Measured("ports", tuple(rows), 5, 0), lesson.Measured("quality", (), 0, 0))
    assert "scale" in more and "of 4, " in more and "all four bugs" in more
    assert "3 cells of the study are still missing: all of this is preliminary" in words.question(lesson.Measured("study", tuple(rows), 10, 3), none, none)
    line = "**The training alone** (120 epochs − untrained f): image AUROC"
    after = [words.question(lesson.Measured("study", tuple(own), 1, 0), none, none).split(line)[1][:80] for own in (rows, worse(rows))]
    assert "(not clear, over seeds alone clearly above)" in after[0] and "(clearly below)" in after[1]
    assert "nothing can be said" in words.full_steps(()) and "pill" in words.full_steps(rows)


def test_what_was_added_after_a_look_is_judged_alone_too(rows):
    text = words.full_steps(rows)
    assert "What was added after the first look, alone: " in text and "3 values leave t = 4.3" in text
    first = words.full_steps([r for r in rows if r.category == "brick"])
    assert "added" not in first and "too few for an interval" in first


def test_the_answer_is_one_plain_sentence_that_follows_the_interval_over_both(rows):
    found = over_both(lesson.gains(rows, lesson.TRAINED, lesson.UNTRAINED, "image_auroc"))
    text = words.answer(rows)
    assert text.startswith("**Does the training help? Not so that it could be shown here.**") and lesson.shown(found) in text
    own = lesson.per_category(lesson.gains(rows, lesson.TRAINED, lesson.UNTRAINED, "image_auroc"))
    better = sum(one.low > 0 for one in own.values())
    assert 0 < better < 4 and f"**{better} of 4**" in text and f"**{lesson.signed(found.mean)} points**" in text
    assert "No: it does harm" in words.answer(worse(rows))
    better = [row(r.data, r.category, r.backbone, r.method, r.seed, 0.95 - 0.01 * r.seed, 120) if r.method == "ReConPatch" and r.last else r for r in rows]
    assert "? Yes, for what could be measured here" in words.answer(better)
    assert "Not measured yet" in words.answer([])


def test_all_bugs_at_once_stand_beside_their_sum(rows):
    text = words.all_bugs(rows)  # bug i costs i points, without bugs the training gains 1.65
    once = over_both(lesson.gains(rows, lesson.ALL_BUGS, lesson.TRAINED, "image_auroc"))
    total = sum(over_both(lesson.gains(rows, bug, lesson.TRAINED, "image_auroc")).mean for bug in lesson.BUGS if bug != lesson.ALL_BUGS)
    assert lesson.shown(once) in text and text.endswith(f"add up to {lesson.signed(total)}.")
    alone = [r for r in rows if r.varied.get("options.bug") != "all"]
    assert words.all_bugs(alone) == "All four at once are not measured yet." and "all four" not in words.bugs(alone)
    names = [[label.get_text() for label in pictures.ports_figure(own).axes[0].get_yticklabels()] for own in (rows, alone)]
    assert names == [list(lesson.BUGS), list(lesson.BUGS)[:-1]]


def test_worse_pictures_are_counted_and_the_clear_ones_named():
    rows = lesson.measured("quality").rows
    text = words.worse_pictures(rows)
    found = {one: advantage(rows, one, lesson.UNTRAINED) for one in ("all on both", "blur on test")}
    assert "of 7 conditions" in text and "one draw" in text
    assert lesson.measured("quality").told().endswith("terminal (embedded), flange (embedded); clean, and degraded in 7 ways")
    assert ("all on both" in text) == found["all on both"].clear and ("blur on test" in text) == found["blur on test"].clear
    assert words.worse_pictures([one for one in rows if one.data == "embedded"]) == words.ABSENT


def test_the_report_and_notebook_07_agree_on_worse_pictures():
    rows = lesson.measured("quality").rows
    printed = {line.split(" | ")[0].strip("| "): line.rstrip(" |").split(" | ") for line in report.quality_table(rows).splitlines()[2:]}
    for name, cells in printed.items():
        for place, rival in ((5, "PatchCore"), (7, lesson.UNTRAINED)):
            one = advantage(rows, name, rival)
            assert cells[place].strip("* |") == f"{one.mean:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"


def test_results_are_found_in_the_repository_or_the_message_says_where(tmp_path, monkeypatch):
    folder = tmp_path / "figures" / "results"
    folder.mkdir(parents=True)
    inside = tmp_path / "notebooks" / "solutions"
    inside.mkdir(parents=True)
    assert course.results_folder(inside) == folder
    monkeypatch.chdir(inside)
    assert course.results_folder() == folder
    assert lesson.measured("full", folder) == lesson.Measured("full", (), 0, 0)
    assert "not measured yet" in lesson.measured("full", folder).told()
    cell = {"data": "embedded", "category": "brick", "backbone": "Lite0", "method": "PatchCore", "varied": {}, "seed": 0, "metrics": {"aupro": 0.5}}
    write_json(folder / "full.json", {"schema": 1, "missing": 2, "rows": [cell]})
    assert lesson.measured("full", folder).told() == "full: 1 of 3 cells, 1 seeds; brick (embedded)"
    with pytest.raises(FileNotFoundError, match="git clone .* repository"):
        course.results_folder(Path(tmp_path.anchor))


def test_the_committed_study_is_there_and_can_be_paired():
    study = lesson.measured("study")
    assert study.rows and study.cells > 200
    assert lesson.gains(study.rows, lesson.TRAINED, lesson.UNTRAINED, "image_auroc")
    assert "**The training alone**" in words.question(study, lesson.measured("full"), lesson.measured("ensemble"))


@pytest.mark.parametrize("opponent", [lesson.UNTRAINED, lesson.PLAIN])
def test_the_notebook_says_what_the_report_says(opponent):
    rows = lesson.measured("study").rows
    printed = report.difference_table(rows, "AUPRO@0.3", opponent).replace("-", "−").replace("**", "").replace("−0.00", "+0.00")
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ")[2] for line in printed.splitlines()[2:]}
    ours = {line.label.replace(" (Lite0)", "").replace("rate x 10", "120 epochs, rate × 10"): line for line in lesson.forest(rows, opponent, "aupro")}
    assert {"PatchCore", "untrained f", "whitening"} - {opponent} <= ours.keys() & lines.keys()
    for name in ours.keys() & lines.keys():
        assert lesson.shown(ours[name].both) == lines[name], name


def test_forest_figures_draw_the_lines(rows):
    figure = pictures.forest_figure(rows)
    assert [axes.get_title() for axes in figure.axes] == ["against untrained f", "against PatchCore"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]  # shared
    for axes, opponent in zip(figure.axes, (lesson.UNTRAINED, lesson.PLAIN), strict=True):
        lines = lesson.forest(rows, opponent, "image_auroc")
        bars = {c.get_label(): c for c in axes.collections}
        both, seeds = bars["95 % over both"], bars["95 % over seeds alone"]
        assert both.get_linewidth()[0] > 2 * seeds.get_linewidth()[0]
        for i, line in enumerate(lines):
            assert both.get_segments()[i][:, 0] == pytest.approx([line.both.low, line.both.high])
            assert seeds.get_segments()[i][:, 0] == pytest.approx([line.seeds.low, line.seeds.high])
            assert round(seeds.get_segments()[i][0, 1] - 0.1) == names.index(line.who)
    assert lesson.UNTRAINED in names and lesson.PLAIN in names
    assert pictures.ports_figure([]).axes[0].texts[0].get_text() == "not measured yet"
    assert not pictures.ports_figure(rows).axes[0].texts


def test_numbers_below_a_forest_do_not_run_into_each_other(rows):
    figure = pictures.ports_figure(rows)
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        boxes = [label.get_window_extent() for at, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True) if low <= at <= high]
        assert all(left.x1 + 3 < right.x0 for left, right in itertools.pairwise(boxes))


def test_the_map_stars_what_is_clear(rows):
    axes = pictures.map_figure(rows).axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    who = [label.get_text() for label in axes.get_yticklabels()].index(lesson.TRAINED)
    own = lesson.per_category(lesson.gains(rows, lesson.TRAINED, lesson.UNTRAINED, "image_auroc"))
    for x, one in enumerate(own.values()):
        assert texts[x, who] == lesson.signed(one.mean) + (" *" if one.clear else "")
    image = axes.images[0]
    assert image.norm.vmin == -image.norm.vmax  # white is zero
    assert {" *" in text for text in texts.values()} == {True, False}


def test_curves_begin_at_zero_and_end_at_the_training(rows):
    axes = pictures.epochs_figure(rows).axes[0]
    mean = next(line for line in axes.lines if line.get_label() == "mean")
    found = over_seeds(lesson.gains(rows, lesson.TRAINED, lesson.UNTRAINED, "image_auroc"))
    assert list(mean.get_xdata()) == [0, 1, 2, 3, 4] and mean.get_ydata()[0] == 0
    assert mean.get_ydata()[-1] == pytest.approx(found.mean)
    band = axes.collections[0].get_paths()[0].vertices
    main = over_both(lesson.gains(rows, lesson.TRAINED, lesson.UNTRAINED, "image_auroc"))
    assert band[:, 1].max() == pytest.approx(main.high)
    dotted = [line.get_ydata()[-1] for line in axes.lines if line.get_label() == "over seeds alone"]
    assert dotted == pytest.approx([found.low, found.high])


def test_the_other_figures_show_their_numbers(rows):
    toy = pictures.toy_figure(checks.OURS, checks.THEIRS).axes[1]
    (low, high), (paired_low, paired_high) = (line.get_xdata() for line in toy.lines[0:4:2])
    assert low < 0 < paired_low < paired_high < high
    space = pictures.space_figure(rows, "Lite0").axes
    assert [axes.get_xlabel() for axes in space] == list(lesson.PROBES.values())
    bars = pictures.claims_figure().axes[0].containers
    assert sorted(bar.get_height() for bar in bars[0]) == pytest.approx(sorted(claims.published_gains("paper").values()))


def test_every_control_and_touch_changes_the_explorer(rows):
    explorer = pictures.explorer(rows)
    for name, value in {"opponent": "PatchCore + Eq. 10", "quantity": "d'", "backbone": "Lite0", "method": "whitening"}.items():
        before = explorer.picture.png
        explorer.controls[name].value = value
        assert explorer.picture.png != before, name
    assert set(explorer.controls) == {"opponent", "quantity", "backbone", "method"}
    explorer.picture.touch = {"phase": "down", "x": 0.4, "y": 0.15, "count": 1}  # the first line
    assert explorer.controls["method"].value == "PatchCore"
    before = explorer.picture.png
    explorer.picture.touch = {"phase": "down", "x": 0.9, "y": 0.5, "count": 2}  # the right panel: nothing to choose
    assert explorer.picture.png == before
    explorer.controls["opponent"].value = explorer.controls["method"].value = lesson.UNTRAINED  # against itself
    assert "nothing to compare" in explorer._figure.axes[1].get_title()


def paired(ours, theirs, t, divide=lambda n: math.sqrt(n), spread=statistics.stdev):
    d = [a - b for a, b in zip(ours, theirs, strict=True)]
    half = t * spread(d) / divide(len(d))
    return statistics.fmean(d), statistics.fmean(d) - half, statistics.fmean(d) + half


def unpaired(ours, theirs, t):
    half = t * math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / len(ours))
    mean = statistics.fmean(ours) - statistics.fmean(theirs)
    return mean, mean - half, mean + half


def test_checks():
    wrong = [
        unpaired, lambda a, b, t: paired(a, b, t, spread=statistics.pstdev), lambda a, b, t: paired(a, b, t, lambda n: 1),
        lambda a, b, t: paired(a, b, t, lambda n: n), lambda a, b, t: paired(a, b, 1.96),
    ]  # fmt: skip
    verdicts(checks.check_1, paired, wrong)
    found = interval(a - b for a, b in zip(checks.OURS, checks.THEIRS, strict=True))
    assert paired(checks.OURS, checks.THEIRS, checks.T) == pytest.approx((found.mean, found.low, found.high), rel=1e-3)
    verdicts(lambda given: checks.check_2(given, 1.2, 0.5), 24, [5, 6, 93, 23])
    n = checks.needed_exactly(1.2, 0.5)
    halves = [student.ppf(0.975, m - 1) * 1.2 / math.sqrt(m) for m in (n - 1, n)]
    assert halves[1] <= 0.5 < halves[0] and checks.needed_exactly(0.33, 0.5) > checks.needed(0.33, 0.5)
    verdicts(checks.check_3, "reconpatch 224", ["cflow 256", "cfa 224", "patchcore 224"])
    assert checks.check_3("reconpatch 480").right is False
