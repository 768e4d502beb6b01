"""Evaluation: both protocols by hand on H != W images of several sizes; test labels decide nothing."""

import math
import re
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from torchvision.transforms import functional as tv

import rcp
from rcp import BankSettings, PatchCore, ReConPatch, TrainSettings, evaluate
from rcp.data import Category, Split
from rcp.evaluation import METRICS
from rcp.images import ImageError
from rcp.metrics import MetricWarning, aupro

BANK = BankSettings(coreset=0.2, folds=8, smoothing=2.0)
IMAGE, PIXEL = METRICS[:3], METRICS[3:]


@pytest.fixture(scope="module")
def detector(tiny, category) -> PatchCore:
    return PatchCore(tiny, bank=BANK, device="cpu").fit(category.train)


def true_mask(sample: rcp.data.Sample) -> Image.Image:
    if sample.mask is None:
        return Image.new("L", Image.open(sample.path).size)
    return Image.open(sample.mask)


def cropped_mask(sample: rcp.data.Sample) -> np.ndarray:
    """The mask after the resize (nearest) and the centre crop, by torchvision."""
    mask = true_mask(sample)
    short, w, h = min(mask.size), *mask.size
    mask = mask.resize((round(w * 72 / short), round(h * 72 / short)), Image.Resampling.NEAREST)
    return np.asarray(tv.center_crop(mask, [64, 96])) > 0


def by_sklearn(masks: list[np.ndarray], maps: list[np.ndarray]) -> tuple[float, float]:
    labels, scores = (np.concatenate([np.ravel(a) for a in arrays]) for arrays in (masks, maps))
    return roc_auc_score(labels, scores), average_precision_score(labels, scores)


def stripped(split: Split) -> Split:
    return replace(split, samples=tuple(replace(sample, mask=None) for sample in split))


# --- the protocols ---------------------------------------------------------------------------------------


def test_image_metrics_are_those_of_the_image_scores(detector, category):
    result = evaluate(detector, category.test, false_alarm_rate=0.2)
    scores = detector.score(category.test).image_scores
    assert torch.equal(result.scores.image_scores, scores)
    assert result.labels.tolist() == [0, 0, 0, 0, 1, 1, 1] and result.defects == ["good"] * 4 + ["scratch"] * 3
    assert result.metrics["image_auroc"] == pytest.approx(roc_auc_score(result.labels, scores))
    assert result.metrics["image_ap"] == pytest.approx(average_precision_score(result.labels, scores))


def test_crop_judges_what_the_network_saw(detector, category):
    result = evaluate(detector, category.test, false_alarm_rate=0.2)
    masks = [cropped_mask(sample) for sample in category.test]
    maps = list(detector.score(category.test).maps.numpy())
    auroc, ap = by_sklearn(masks, maps)
    assert masks[0].shape == maps[0].shape == (64, 96) and sum(m.any() for m in masks) == 3
    assert result.metrics["pixel_auroc"] == pytest.approx(auroc) and result.metrics["pixel_ap"] == pytest.approx(ap)
    assert result.metrics["aupro"] == pytest.approx(aupro(masks, maps))
    assert (result.protocol, result.unseen_share) == ("crop", 0.0)


def test_original_brings_every_map_to_its_mask(detector, category):
    result = evaluate(detector, category.test, protocol="original", false_alarm_rate=0.2)
    masks = [np.asarray(true_mask(sample)) > 0 for sample in category.test]
    scores = detector.score(category.test)
    maps = [scores.original_map(i).numpy() for i in range(7)]
    auroc, ap = by_sklearn(masks, maps)
    assert len({mask.shape for mask in masks}) == 4 and [m.shape for m in masks] == [m.shape for m in maps]
    assert result.metrics["pixel_auroc"] == pytest.approx(auroc) and result.metrics["pixel_ap"] == pytest.approx(ap)
    assert result.metrics["aupro"] == pytest.approx(aupro(masks, maps)) and result.protocol == "original"


def test_the_share_of_unseen_pixels_is_stated(detector, category):
    result = evaluate(detector, category.test, protocol="original", false_alarm_rate=0.2)
    seen = total = 0.0
    for sample in category.test:
        w, h = Image.open(sample.path).size
        seen += 64 * 96 * (h / 72) * (w / round(w * 72 / h))  # crop pixels, each this many pixels of the file
        total += h * w
    assert result.unseen_share == pytest.approx(1 - seen / total) and 0.1 < result.unseen_share < 0.4


def test_without_a_crop_nothing_is_unseen(tiny, category):
    whole = PatchCore(replace(tiny, resize=(64, 96), crop=None), bank=BANK, device="cpu").fit(category.train)
    result = evaluate(whole, category.test, protocol="original", false_alarm_rate=0.2)
    assert result.unseen_share == pytest.approx(0)


def test_a_defect_outside_the_crop_counts_in_original_only(detector, category, tmp_path):
    sample = category.test[4]
    h, w = np.asarray(Image.open(sample.mask)).shape
    mask = np.zeros((h, w), np.uint8)
    mask[:3, :3] = 255
    Image.fromarray(mask).save(tmp_path / "corner.png")
    test = replace(category.test, samples=(category.test[0], replace(sample, mask=tmp_path / "corner.png")))
    with pytest.warns(MetricWarning):
        crop = evaluate(detector, test, false_alarm_rate=0.2)
    assert math.isnan(crop.metrics["pixel_auroc"]) and math.isnan(crop.metrics["aupro"])
    assert 0 <= evaluate(detector, test, protocol="original", false_alarm_rate=0.2).metrics["pixel_auroc"] <= 1


@pytest.mark.parametrize("protocol", ["crop", "original"])
def test_the_result_names_its_protocol(detector, category, protocol):
    text = str(evaluate(detector, category.test, protocol=protocol, false_alarm_rate=0.2))
    assert f"protocol {protocol}, 7 images" in text and all(name in text for name in METRICS)


def test_an_unknown_protocol_or_option_is_refused(detector, category):
    with pytest.raises(ValueError, match="protocol must be one of crop, original, got 'full'"):
        evaluate(detector, category.test, protocol="full")
    with pytest.raises(TypeError, match="fpr"):
        evaluate(detector, category.test, fpr=0.1)


def test_features_at_hand_give_the_same_result(detector, category):
    features = detector.extractor.extract(category.test)
    one, other = (evaluate(detector, category.test, features=f, false_alarm_rate=0.2) for f in (None, features))
    assert one.metrics == other.metrics and one.verdict == other.verdict


def test_features_of_other_images_are_refused(detector, category, photos):
    features = detector.extractor.extract(photos)  # seven, as the test split has
    with pytest.raises(ValueError, match="features"):
        evaluate(detector, category.test, features=features, false_alarm_rate=0.2)


# --- what is not defined ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["crop", "original"])
def test_without_masks_there_are_image_metrics_only(detector, category, protocol):
    whole = evaluate(detector, category.test, protocol=protocol, false_alarm_rate=0.2)
    bare = evaluate(detector, stripped(category.test), protocol=protocol, false_alarm_rate=0.2)
    assert all(math.isnan(bare.metrics[name]) for name in PIXEL)
    assert {n: bare.metrics[n] for n in IMAGE} == {n: whole.metrics[n] for n in IMAGE}
    assert bare.verdict == whole.verdict


def test_without_anomalies_there_are_scores_and_a_verdict_but_no_metrics(detector, category):
    with pytest.warns(MetricWarning):
        result = evaluate(detector, category.test[:4], false_alarm_rate=0.2)
    assert set(result.metrics) == set(METRICS) and all(math.isnan(value) for value in result.metrics.values())
    assert len(result.scores) == 4 and (result.verdict.normals, result.verdict.anomalies) == (4, 0)


def test_without_normal_images_the_image_metrics_are_undefined_but_the_pixels_are_not(detector, category):
    with pytest.warns(MetricWarning):
        result = evaluate(detector, category.test[4:], false_alarm_rate=0.2)
    assert all(math.isnan(result.metrics[name]) for name in IMAGE)
    assert all(0 <= result.metrics[name] <= 1 for name in PIXEL)
    assert (result.verdict.false_alarms, result.verdict.normals, result.verdict.anomalies) == (0, 0, 3)


def test_an_empty_test_split_is_refused(detector, category):
    with pytest.raises(ValueError, match=re.escape(f"test split of {category.root} is empty")):
        evaluate(detector, Split("test", category.root, ()))


def test_an_unfitted_detector_is_refused(tiny, category):
    with pytest.raises(RuntimeError, match="has no memory yet"):
        evaluate(PatchCore(tiny), category.test)


# --- damaged files ---------------------------------------------------------------------------------------


@pytest.fixture
def damaged(category, tmp_path) -> Category:
    """A copy in which the second good and the first defective test image cannot be read."""
    root = shutil.copytree(category.root, tmp_path / "thing")
    for name in ("good/1.png", "scratch/0.png"):
        (root / "test" / name).write_bytes(b"not a picture")
    return rcp.mvtec(tmp_path, "thing")


@pytest.mark.parametrize("protocol", ["crop", "original"])
def test_skipped_images_keep_labels_and_masks_aligned(detector, category, damaged, protocol):
    result = evaluate(detector, damaged.test, protocol=protocol, on_error="skip", false_alarm_rate=0.2)
    kept = [0, 2, 3, 5, 6]
    clean = replace(category.test, samples=tuple(category.test[i] for i in kept))
    expected = evaluate(detector, clean, protocol=protocol, false_alarm_rate=0.2)
    assert result.scores.indices == kept and result.labels.tolist() == [0, 0, 0, 1, 1]
    assert result.defects == expected.defects and result.unseen_share == expected.unseen_share
    assert [path.name for path, _ in result.scores.skipped] == ["1.png", "0.png"]
    assert result.metrics == pytest.approx(expected.metrics, abs=1e-6)
    assert replace(result.verdict, threshold=None) == replace(expected.verdict, threshold=None)


def test_by_default_a_damaged_image_raises(detector, damaged):
    with pytest.raises(ImageError, match=r"good.1\.png"):
        evaluate(detector, damaged.test)


def test_a_mask_of_another_size_or_a_damaged_one_is_named(detector, category, tmp_path):
    Image.new("L", (50, 40), 255).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"?")
    for name, reason in (("small.png", "40x50"), ("broken.png", "cannot be read")):
        samples = (*category.test[:6], replace(category.test[6], mask=tmp_path / name))
        with pytest.raises(ImageError, match=f"{re.escape(str(tmp_path / name))}.*{reason}"):
            evaluate(detector, replace(category.test, samples=samples), false_alarm_rate=0.2)


# --- the verdict -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.12, 0.3, 0.7])
def test_the_verdict_counts_what_lies_above_the_threshold(detector, category, rate):
    verdict = evaluate(detector, category.test, false_alarm_rate=rate).verdict
    scores, limit = detector.score(category.test).image_scores.tolist(), detector.threshold(rate)
    assert verdict.threshold == limit and (verdict.normals, verdict.anomalies) == (4, 3)
    assert verdict.false_alarms == sum(score > limit.value for score in scores[:4])
    assert verdict.detected == sum(score > limit.value for score in scores[4:])


def test_a_score_at_the_threshold_is_not_above_it(detector, category):
    scores = detector.score(category.test).image_scores
    calibration = detector.calibration
    detector.calibration = replace(calibration, image_scores=scores[4:5].expand(8))
    try:
        verdict = evaluate(detector, category.test, false_alarm_rate=0.2).verdict
    finally:
        detector.calibration = calibration
    assert verdict.detected == int((scores[4:] > scores[4]).sum())


def test_too_few_training_images_for_the_rate_give_a_result_without_a_verdict(detector, category):
    with pytest.warns(UserWarning, match="no verdict: 8 held-out normal images cannot support"):
        result = evaluate(detector, category.test)
    assert result.verdict is None and result.metrics["image_auroc"] >= 0


def test_without_calibration_there_is_no_verdict_and_no_warning(tiny, category):
    bare = PatchCore(tiny, bank=replace(BANK, folds=0), device="cpu").fit(category.train)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert evaluate(bare, category.test).verdict is None


# --- test labels decide nothing --------------------------------------------------------------------------


def permuted(split: Split, seed: int) -> Split:
    defects = np.random.default_rng(seed).permutation(split.defects)
    samples = (replace(sample, defect=str(defect), mask=None) for sample, defect in zip(split, defects, strict=True))
    return replace(split, samples=tuple(samples))


@pytest.mark.parametrize("make", [
    lambda tiny: PatchCore(tiny, bank=BANK, device="cpu"),
    lambda tiny: ReConPatch(tiny, bank=BANK, device="cpu",
                            training=TrainSettings(dimension=16, projection=8, epochs=2, batch_size=96)),
])  # fmt: skip
def test_permuted_labels_change_no_score_and_no_threshold(make, tiny, category):
    first = evaluate(make(tiny).fit(category.train), category.test, false_alarm_rate=0.2)
    aurocs = set()
    for seed in range(3):
        shuffled = permuted(category.test, seed)
        fitted = make(tiny).fit(category.train)
        for _ in range(2):  # a second time: the first must have left nothing behind
            result = evaluate(fitted, shuffled, false_alarm_rate=0.2)
            assert torch.equal(result.scores.image_scores, first.scores.image_scores)
            assert torch.equal(result.scores.maps, first.scores.maps)
            assert result.verdict.threshold == first.verdict.threshold
        aurocs.add(result.metrics["image_auroc"])
    assert len(aurocs) > 1  # the labels did change


def test_other_test_images_beside_it_change_no_images_score(detector, category):
    alone = evaluate(detector, category.test[3:5], false_alarm_rate=0.2).scores
    among = evaluate(detector, category.test, false_alarm_rate=0.2).scores
    torch.testing.assert_close(alone.image_scores, among.image_scores[3:5], atol=1e-5, rtol=1e-5)


def test_the_metrics_stage_is_timed(detector, category):
    evaluate(detector, category.test, false_alarm_rate=0.2)
    assert {"scoring", "metrics"} <= set(detector.stopwatch.seconds)
