"""The pictures, measurements and checks of notebook 06."""

import numpy as np
import pytest
import torch
from lessons import changes, touched, verdicts
from matplotlib.figure import Figure

import rcp
from rcp import metrics
from rcp.calibration import Calibration
from rcp.course import ensemble as lesson
from rcp.course import ensemble_checks as checks
from rcp.course import ensemble_gains as gains
from rcp.scoring import modified_z_score


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.array([0] * 8 + [1] * 8)


@pytest.fixture(scope="module")
def parts() -> dict[str, tuple[torch.Tensor, Calibration]]:
    """Three members of different units and quality."""
    generator, found = torch.Generator().manual_seed(0), {}
    for name, centre, wide in (("Lite0", 20.0, 1.0), ("Lite1", 50.0, 4.0), ("Lite2", 5.0, 0.2)):
        noise = torch.randn(16, generator=generator)
        noise[8:] += 1.5
        normal = centre + wide * torch.randn(30, generator=generator)
        found[name] = (centre + wide * noise, Calibration.of(normal, normal[:, None, None].repeat(1, 2, 2)))
    return found


@pytest.fixture(scope="module")
def fitted(category, tiny) -> dict[tuple[str, int], gains.Scored]:
    """Two "backbones" (one, at two patch sizes), two seeds each."""
    found = {}
    for name, size in (("small", 1), ("large", 3)):
        settings = rcp.FeatureSettings("test_resnet", pretrained=False, resize=72, crop=(64, 96), patch_size=size)
        for seed in (0, 1):
            detector = rcp.PatchCore(settings, bank=rcp.BankSettings(coreset=0.1, folds=4), seed=seed)
            detector.fit(category.train)
            found[name, seed] = gains.Scored(detector, detector.score(category.test))
    return found


def test_scored_is_what_an_ensemble_and_an_evaluation_ask_for(category, fitted):
    members = [fitted["small", 0], fitted["large", 0]]
    kept = rcp.Ensemble(members)
    asked = rcp.Ensemble([member._detector for member in members])  # reads the images
    assert torch.allclose(kept.score(category.test).image_scores, asked.score(category.test).image_scores, atol=1e-4)
    assert torch.allclose(kept.score(category.test).patch_scores, asked.score(category.test).patch_scores, atol=1e-4)
    result = rcp.evaluate(members[0], category.test, false_alarm_rate=0.2)
    assert result.metrics == rcp.evaluate(members[0]._detector, category.test, false_alarm_rate=0.2).metrics
    assert result.verdict.threshold == members[0]._detector.threshold(0.2)


def test_the_raw_mean_is_the_mean_of_images_and_of_patches(fitted):
    members = [fitted["small", 0], fitted["large", 0], fitted["small", 1]]
    together = gains.raw_mean(members).scores
    a, b, c = (member.scores for member in members)
    assert torch.allclose(together.image_scores, (a.image_scores + b.image_scores + c.image_scores) / 3)
    assert torch.allclose(together.patch_scores, (a.patch_scores + b.patch_scores + c.patch_scores) / 3)


@pytest.mark.filterwarnings("ignore:no verdict")
def test_gains_has_a_row_for_each_member_seed_and_combination(category, fitted):
    rows = gains.gains(category, fitted)
    count = {system: sum(row.detector == system for row in rows) for system in gains.SYSTEMS}
    assert count == {gains.ONE: 4, gains.BIG: 0, gains.SEEDS: 2, gains.RAW: 2, gains.MEAN_Z: 2}
    found = {(row.detector, row.seed): row.metrics["image_auroc"] for row in rows}
    assert found[gains.ONE, 3] == metrics.auroc(category.test.labels, fitted["large", 1].scores.image_scores.numpy())
    z = []
    for member in (fitted["small", 1], fitted["large", 1]):
        normal = member.normal_scores()
        z.append(modified_z_score(member.scores.image_scores, normal.image_median, normal.image_mad))
    assert found[gains.MEAN_Z, 1] == metrics.auroc(category.test.labels, ((z[0] + z[1]) / 2).numpy())
    pixels = {(row.detector, row.seed): row.metrics["pixel_auroc"] for row in rows}  # finer than seven images' AUROC
    both = rcp.Ensemble([fitted["large", 0], fitted["large", 1]])
    assert pixels[gains.SEEDS, 1] == rcp.evaluate(both, category.test).metrics["pixel_auroc"] != pixels[gains.ONE, 2]
    raw = gains.raw_mean([fitted["small", 1], fitted["large", 1]])
    assert pixels[gains.RAW, 1] == rcp.evaluate(raw, category.test).metrics["pixel_auroc"]
    assert gains.largest_difference(rows, rows) == 0
    assert gains.largest_difference(rows, gains.measured()) is None
    assert gains.MEAN_Z in gains.markdown(rows, "caption")


def test_the_measured_table_is_whole():
    rows = gains.measured()
    categories = {row.category for row in rows}
    assert categories == set(rcp.synthetic.CATEGORIES)
    for name in categories:
        count = [sum(row.category == name and row.detector == system for row in rows) for system in gains.SYSTEMS]
        assert count == [9, 9, 3, 3, 3]
    assert all(0.5 < value <= 1 for row in rows for value in row.metrics.values())
    by_hand = np.mean([row.metrics["image_auroc"] for row in rows if row.detector == gains.SEEDS])
    assert gains.mean_over_categories(gains.SEEDS) == pytest.approx(by_hand)
    assert np.mean(gains.backbone_means()) == pytest.approx(gains.mean_over_categories(gains.ONE))


def test_combining_by_hand(parts):
    (a, na), (b, _), (c, nc) = parts.values()
    raw = lesson.combine(parts, "raw", (1, 2, 0))
    assert np.allclose(raw, (a + 2 * b).numpy() / 3)
    z = (a - na.image_median) / (1.4826 * na.image_mad) + (c - nc.image_median) / (1.4826 * nc.image_mad)
    assert np.allclose(lesson.combine(parts, "z", (1, 0, 1)), z.numpy() / 2, atol=1e-4)
    assert sorted(lesson.combine(parts, "rank", (0, 1, 0))) == list(range(1, 17))


def test_a_factor_moves_the_raw_mean_and_not_the_z_mean(labels, parts):
    curves = lesson._scale_curves(labels, parts, "Lite2")
    assert len(set(curves["z"])) == 1
    assert len(set(curves["raw"])) > 1
    alone = metrics.auroc(labels, parts["Lite2"][0].numpy())
    huge = lesson.combine(lesson._scaled(parts, "Lite2", 1e5), "raw", (1, 1, 1))
    assert metrics.auroc(labels, huge) == alone


def test_figures_show_what_they_say(labels, parts):
    members = lesson.members_figure(labels, parts)
    assert [axes.get_title(loc="left").split(":")[0] for axes in members.axes] == list(parts)
    heights = sum(patch.get_height() for patch in members.axes[0].patches if hasattr(patch, "get_height"))
    assert heights >= len(labels)  # every image is in a bar
    scale = lesson.scale_figure(labels, parts, "Lite1", 100.0)
    marker = scale.axes[1].lines[-1]
    assert marker.get_xdata()[0] == 100.0
    combined = lesson.combine_figure(labels, parts, "z", (1, 1, 1))
    widths = [bar.get_width() for bar in combined.axes[1].patches]
    assert widths[-1] == metrics.auroc(labels, lesson.combine(parts, "z", (1, 1, 1))) and len(widths) == 4
    assert "no member" in lesson.combine_figure(labels, parts, "z", (0, 0, 0)).axes[0].get_title()
    three = {"a": tuple(scores for scores in torch.rand(3, 9)), "b": tuple(scores for scores in torch.rand(3, 5))}
    illusion = lesson.illusion_figure(three)
    assert illusion.axes[0].texts[0].get_text() == f"{np.median(three['a'][0]):.1f}"
    drawn = lesson.gains_figure(gains.measured())
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()] == list(rcp.synthetic.CATEGORIES)
    assert {line.get_label() for line in drawn.axes[0].lines if not line.get_label().startswith("_")} == set(gains.SYSTEMS)


def test_robust_figure_has_both_summaries():
    texts = [text.get_text() for text in lesson.robust_figure().axes[0].texts]
    seven = checks.SEVEN.numpy()
    assert texts == [f"{seven.mean():.2f} ± {seven.std(ddof=1):.2f}", "10.20 ± 1.04"]


def test_every_control_and_touch_changes_the_picture(labels, parts):
    scale = lesson.scale_explorer(labels, parts)
    changes(scale, member="Lite1", exponent=1.5)
    touched(scale, 0.8, 0.5)
    assert scale.controls["exponent"].value != 1.5
    before = scale.controls["exponent"].value
    scale.picture.touch = {"phase": "down", "x": 0.2, "y": 0.5, "count": 9}  # the bars: nothing to drag
    assert scale.controls["exponent"].value == before
    robust = lesson.robust_explorer()
    changes(robust, outlier=12.0)
    touched(robust, 0.5, 0.5)
    assert 0 <= robust.controls["outlier"].value <= 40 and robust.controls["outlier"].value != 12.0
    changes(lesson.combine_explorer(labels, parts), way="rank", Lite0=0.0, Lite1=0.5, Lite2=0.25)


@pytest.mark.filterwarnings("ignore:no verdict")
def test_maps_of_members_beside_the_ensemble(category, fitted):
    members = {name: fitted[name, 0] for name in ("small", "large")}
    results = {name: (rcp.evaluate(m, category.test), m._detector.colour_limits()) for name, m in members.items()}
    together = rcp.Ensemble(list(members.values()))
    results["ensemble"] = (rcp.evaluate(together, category.test), together.colour_limits())
    figure = lesson.maps_figure(category.test, results, 5)
    assert figure.axes[0].get_title() == results["small"][0].defects[5]
    shown = figure.axes[1].images[0].get_array()
    assert shown.shape == (64, 96)  # H != W
    assert np.allclose(shown, results["small"][0].scores.maps[5])
    assert isinstance(figure, Figure)
    changes(lesson.maps_explorer(category.test, results), rank=0)


def test_check_1_knows_its_mistakes():
    seven = checks.SEVEN.numpy()
    mad = np.median(np.abs(seven - 10.2))
    verdicts(
        checks.check_1, (12 - 10.2) / (1.4826 * mad),
        [(12 - seven.mean()) / seven.std(ddof=1), (12 - 10.2) / mad, (12 - 10.2) / (1.4826 * np.abs(seven - 10.2).mean())],
    )  # fmt: skip


def test_check_2_knows_its_mistakes():
    def right(scores, normal):
        centre = float(np.median(normal))
        return (scores - centre) / (1.4826 * float(np.median((normal - centre).abs())))

    verdicts(
        checks.check_2, right,
        [
            lambda scores, normal: right(scores, scores),
            lambda scores, normal: (scores - normal.median()) / (1.4826 * (normal - normal.median()).abs().median()),
            lambda scores, normal: (scores - float(np.median(normal))) / (1.4826 * (normal - float(np.median(normal))).abs().mean()),
            lambda scores, normal: 1.4826 * right(scores, normal),
            lambda scores, normal: (scores - normal.mean()) / normal.std(),
        ],
    )  # fmt: skip
    assert checks.check_2(lambda scores, normal: ...).right is None


def test_check_3_knows_its_mistakes():
    one, seeds, z, big = (gains.mean_over_categories(s) for s in (gains.ONE, gains.SEEDS, gains.MEAN_Z, gains.BIG))
    best = max(gains.backbone_means())
    wrong = [seeds / z, (z - seeds) / (z - one), (big - one) / (z - one), (seeds - best) / (z - best)]
    verdicts(checks.check_3, (seeds - one) / (z - one), wrong)
