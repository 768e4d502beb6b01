"""The pictures, measurements and checks of notebook 11."""

import math

import numpy as np
import pytest
import torch
from lessons import changes, touched, verdicts

import rcp
from rcp import metrics
from rcp.course import contamination as bad
from rcp.course import contamination_figures as pictures
from rcp.course import learning_curves as lesson
from rcp.course import learning_runs as runs
from rcp.scoring import threshold

pytestmark = pytest.mark.filterwarnings("ignore:no verdict", "ignore:no threshold")


@pytest.fixture(scope="module")
def extracted(category, tiny):
    """(extractor, training features, test features) of 8 good and 7 test images, three of them of one kind of defect."""
    extractor = rcp.PatchExtractor(tiny)
    return extractor, extractor.extract(category.train), extractor.extract(category.test)


@pytest.fixture(scope="module")
def faded(category, extracted) -> bad.Fade:
    extractor, train, test = extracted
    return bad.fade(category, train, test, extractor, counts=[4, 6])


@pytest.fixture(scope="module")
def trials() -> list[bad.Trial]:
    return bad.measured()


def test_sizes_end_with_all():
    assert runs.sizes(1) == [1]
    assert runs.sizes(64) == [1, 2, 4, 8, 16, 32, 64]
    assert runs.sizes(90) == [1, 2, 4, 8, 16, 32, 64, 90]
    assert runs.sizes(70) == [1, 2, 4, 8, 16, 32, 70]


def test_a_subset_is_what_would_be_extracted(category, extracted):
    extractor, train, _ = extracted
    some = runs.subset(train, [5, 2])
    again = extractor.extract([category.train.paths[i] for i in (5, 2)])
    assert torch.allclose(some.values, again.values, atol=1e-5)
    assert some.paths == again.paths and some.sizes == again.sizes and some.indices == again.indices
    assert runs.shuffled(8, 3)[:4] == runs.shuffled(8, 3)[:4] and sorted(runs.shuffled(8, 3)) == list(range(8))


def test_a_learning_curve_by_hand(category, extracted):
    extractor, train, test = extracted
    points = runs.learning_curve(category, train, test, extractor, counts=[2, 8], seeds=[0, 1])
    assert [(p.images, p.draw) for p in points] == [(2, 0), (2, 1), (8, 0), (8, 1)]
    detector = rcp.PatchCore(train.settings, bank=rcp.BankSettings(folds=0), seed=1)
    detector.fit(runs.subset(train, runs.shuffled(8, 1)[:2]))
    found = rcp.evaluate(detector, category.test, features=test).metrics
    assert points[1].metrics == {"image_auroc": found["image_auroc"], "aupro": found["aupro"]}
    table = runs.summary(points)["thing", runs.PERCENT]
    assert table[0][1] == pytest.approx(50 * (points[0].metrics["image_auroc"] + points[1].metrics["image_auroc"]))
    assert runs.largest_difference(points, points) == 0 and runs.largest_difference(points, runs.measured()) is None
    assert runs.markdown(points).count("±") == 2


@pytest.mark.parametrize("images", [1, 3, 8])
def test_the_same_number_of_rows_whatever_is_given(extracted, images):
    _, train, _ = extracted
    detector = runs.detector(runs.EQUAL, train, images, seed=0).fit(runs.subset(train, range(images)))
    assert len(detector.memory) == len(train.rows) // 100
    assert isinstance(runs.detector(runs.TRAINED, train, images, seed=0), rcp.ReConPatch)


def test_the_measured_tables_are_whole(trials):
    points = runs.measured()
    keys = {(p.category, p.system, p.images) for p in points}
    assert len(keys) == 4 * 3 * 7 and len(points) == 3 * len(keys)
    assert {p.category for p in points} == set(rcp.synthetic.CATEGORIES)
    assert len(trials) == 4 * 4 * 3
    assert all(math.isnan(t.values["caught"]) == (t.share == 0) for t in trials)
    again = bad.line(trials[5]).split(";")
    assert float(again[3]) == pytest.approx(trials[5].values["auroc_same"], abs=1e-4)


def test_means_come_with_the_deviation_of_the_change(trials):
    pairs = [
        (t.values["found_same"], u.values["found_same"]) for t in trials for u in trials
        if (t.category, t.draw, t.share, u.share) == (u.category, u.draw, 0.1, 0.0)
    ]  # fmt: skip
    assert len(pairs) == 12
    expected = (100 * np.mean([a for a, _ in pairs]), 100 * np.std([a - b for a, b in pairs], ddof=1))
    assert bad.mean(trials, "found_same", 0.1) == pytest.approx(expected)
    assert bad.mean(trials, "found_same", 0.0)[1] == 0
    caught = [t.values["caught"] for t in trials if t.share == 0.1]  # not defined without bad images
    assert bad.mean(trials, "caught", 0.1) == pytest.approx((100 * np.mean(caught), 100 * np.std(caught, ddof=1)))
    assert math.isnan(bad.mean(trials, "caught", 0.0)[0])


def test_a_plan_judges_the_same_images_for_every_share(category):
    embedded = rcp.data.Category("mvtec", "toy", category.root, rcp.data.Split("train", category.root, category.train.samples * 5), _many(category))
    for seed in range(4):
        chosen = bad.plan(embedded, seed)
        defects = embedded.test.defects
        assert len(chosen.good) == 40 and len(set(chosen.good)) == 40
        assert len(chosen.bad) == 8 and not set(chosen.bad) & set(chosen.test)
        assert sorted(chosen.bad + chosen.test) == list(range(len(embedded.test)))
        assert {defects[i] for i in chosen.bad} == {defects[i] for i in chosen.bad[:2]} == set(chosen.kinds)
        assert len(chosen.kinds) == 2


def _many(category) -> rcp.data.Split:
    """20 good and 4 × 9 defective samples; no file is read."""
    good, flawed = category.test[0], category.test[len(category.test) - 1]
    assert (good.defect == "good") != (flawed.defect == "good")
    samples = [rcp.data.Sample(good.path, "good")] * 20
    for kind in "abcd":
        samples += [rcp.data.Sample(flawed.path, kind)] * 9
    return rcp.data.Split("test", category.root, tuple(samples))


def test_bad_images_replace_good_ones(category, extracted):
    _, train, test = extracted
    chosen = bad.plan(category, 0)
    none, one = bad.mixed(train, test, chosen, 0), bad.mixed(train, test, chosen, 1)
    assert len(none) == len(one) == 8 and torch.equal(none.values[:7], one.values[:7])
    assert torch.equal(one.values[7], test.values[chosen.bad[0]]) and one.paths[7] == category.test.paths[chosen.bad[0]]
    with pytest.raises(ValueError, match="to spare"):
        bad.mixed(train, test, chosen, 7)


def test_a_trial_by_hand(category, extracted):
    extractor, train, test = extracted
    clean, spoilt = bad._trial, bad.plan(category, 0)
    judged, defects = runs.subset(test, spoilt.test), np.array(category.test.defects)[spoilt.test]
    normal = defects == "good"
    repeated = runs.subset(train, [i % 8 for i in range(24)])  # a limit for 5 % takes 19 images, and 10 % dropped
    values = clean(repeated, 0, judged, normal, ~normal, extractor, 0)
    assert set(values) == set(bad.VALUES)
    detector = rcp.PatchCore(train.settings, seed=0).fit(repeated)
    scores = detector.score(judged).image_scores.numpy()
    assert values["auroc_same"] == metrics.auroc(~normal, scores) and math.isnan(values["auroc_other"])
    assert values["limit"] == detector.threshold().value
    assert values["found_same"] == np.mean(scores[~normal] > values["limit"]) and values["bad_rows"] == 0


def test_dropping_takes_the_highest():
    assert bad.kept(torch.tensor([5.0, 9.0, 1.0, 7.0]), 0.25) == [0, 2, 3]
    assert bad.kept(torch.tensor([5.0, 9.0, 1.0, 7.0]), 0.5) == [0, 2]


def test_a_defect_fades_when_it_is_remembered(faded):
    assert faded.maps.shape == (2, len(faded.steps), 64, 96)  # H != W
    assert faded.steps == [0, 1, 2, 2] and faded.word(3) == "2 of its kind and itself"
    assert float(faded.scores[1, -1]) < float(faded.scores[1, 0])


def test_more_good_points_bring_good_ones_nearer_and_a_copy_hides_a_bad_one():
    few, many, copied = lesson.toy_figure(2), lesson.toy_figure(128), lesson.toy_figure(8, copied=True)
    wrong, good = (line.get_ydata() for line in few.axes[1].lines[:2])
    assert good[-1] < good[0] / 8 and wrong[-1] > 0.2
    assert list(copied.axes[1].lines[0].get_ydata()) == [0.0] * 9 and "0.00: its own copy" in copied.axes[0].get_title()
    assert len(few.axes[0].lines[0].get_xdata()) == 2 and len(many.axes[0].lines[0].get_xdata()) == 128


def test_limit_figure_marks_the_interval():
    title = lesson.limit_figure(64, 0.05).axes[0].get_title()
    low, high = (100 * share for share in threshold(torch.arange(64.0), 0.05).interval)
    assert f"{low:.1f} and {high:.1f}" in title
    assert "cannot support" in lesson.limit_figure(18, 0.05).axes[0].get_title()
    assert lesson.limit_of(18, 0.05) is None and lesson.limit_of(19, 0.05).normals == 19


def test_curves_show_the_summary():
    points = [p for p in runs.measured() if p.category == "brick"]
    drawn = lesson.curves_figure(points).axes[0].containers
    for (_, cells), container in zip(runs.summary(points).items(), drawn, strict=True):
        assert np.allclose(container[0].get_ydata(), [mean for _, mean, _ in cells])
    figure = lesson.categories_figure(runs.measured(), systems=runs.SYSTEMS)
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == [s.split(",")[0] for s in runs.SYSTEMS]
    assert all(len(axes.containers) == 4 for axes in figure.axes)


def test_contamination_figures_show_the_means(trials):
    figure = pictures.contamination_figure(trials)
    drawn = figure.axes[0].containers[0][0].get_ydata()
    assert np.allclose(drawn, [bad.mean(trials, "auroc_same", share)[0] for share in bad.SHARES])
    drawn = figure.axes[2].containers[1][0].get_ydata()
    assert np.allclose(drawn, [bad.mean(trials, "robust_found_other", share)[0] for share in bad.SHARES])
    rows = pictures.rows_figure(trials)
    assert len(rows.axes[1].containers[0][0].get_xdata()) == 3  # nothing to catch at 0 %
    assert bad.markdown(trials, {"caught": "caught"}).count("–") == 1


def test_every_control_and_touch_changes_the_picture(faded):
    toy = lesson.toy_explorer()
    changes(toy, power=6, copied=True)
    touched(toy, 0.25, 0.4)
    assert toy.state["x"] != 1.25
    limit = lesson.limit_explorer()
    changes(limit, images=200, percent=1.0)
    touched(limit, 0.7, 0.5)
    assert limit.controls["images"].value > 200
    fading = pictures.fade_explorer(faded)
    changes(fading, good=0, bad=2)
    touched(fading, 0.73, 0.5)
    assert fading.controls["bad"].value < 2
    before = fading.picture.png
    fading.picture.touch = {"phase": "down", "x": 0.1, "y": 0.5, "count": 5}  # the photograph: nothing to choose
    assert fading.picture.png == before
    assert len(pictures.strip_figure(faded).axes) == 1 + len(faded.steps) + 1


def test_checks_of_good_images():
    wrong = [
        lambda rate: math.ceil(1 / rate - 1e-9), lambda rate: int(1 / rate - 1 + 1e-9), lambda rate: 1 / rate - 1,
        lambda rate: math.ceil(1 / rate - 1e-9) + 1,
    ]  # fmt: skip
    verdicts(lesson.check_1, lambda rate: math.ceil(1 / rate - 1 - 1e-9), wrong)
    verdicts(lesson.check_2, "rows", ["images", "noise", "test"])


def test_checks_of_bad_images():
    verdicts(pictures.check_1, 5, [4, 6, 1, 50])
    verdicts(pictures.check_2, "limit", ["memory", "coreset", "chance"])


def test_a_quantile_breaks_with_the_fifth_bad_image():
    for count, broken in ((4, False), (5, True)):
        scores = torch.cat([torch.rand(100 - count), 10 + torch.rand(count)])
        assert (threshold(scores, 0.05).value > 5) is broken
