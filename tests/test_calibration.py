"""Calibration: folds that partition, held-out scores that are not too low, and summaries by definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rcp import BankSettings, PatchCore, ReConPatch, TrainSettings
from rcp.calibration import Calibration, fold_of


def dealt(n: int, folds: int, seed: int = 0) -> torch.Tensor:
    return fold_of(n, folds, torch.Generator().manual_seed(seed))


# --- folds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "folds"), [(10, 5), (11, 5), (7, 2), (3, 5), (2, 2), (2, 9)])
def test_every_image_is_in_one_fold_and_the_folds_differ_by_one_image_at_most(n, folds):
    found = dealt(n, folds)
    sizes = found.bincount().tolist()
    assert found.shape == (n,) and len(sizes) == min(n, folds)
    assert sum(sizes) == n and max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


def test_folds_are_dealt_by_the_seed():
    assert torch.equal(dealt(40, 5), dealt(40, 5))
    assert not torch.equal(dealt(40, 5), dealt(40, 5, seed=1))
    assert not torch.equal(dealt(40, 5), torch.arange(40) % 5)  # neighbours in a folder are often alike


# --- summaries -------------------------------------------------------------------------------------------


@pytest.fixture
def scores() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(9, generator=generator), torch.randn(9, 7, 11, generator=generator).abs()


def test_quantiles_and_deviations_are_those_of_numpy(scores):
    images, patches = scores
    found, flat = Calibration.of(images, patches), patches.numpy().ravel()
    expected = np.quantile(flat, np.linspace(0, 1, 1001), method="nearest")
    assert np.array_equal(found.patch_quantiles.numpy(), expected)
    assert torch.equal(found.image_scores, images)
    assert found.image_median == pytest.approx(np.median(images.numpy()))
    assert found.image_mad == pytest.approx(np.median(np.abs(images.numpy() - np.median(images.numpy()))))
    assert found.patch_median == pytest.approx(np.median(flat))
    assert float(found.patch_mad) == pytest.approx(np.median(np.abs(flat - np.median(flat))))


def test_of_two_different_image_scores_the_deviation_is_not_zero():
    found = Calibration.of(torch.tensor([1.0, 3.0]), torch.rand(2, 3, 4))
    assert (found.image_median, found.image_mad) == (2.0, 1.0)


def test_the_colour_scale_puts_the_normal_99_9_percent_in_its_lower_half(scores):
    found = Calibration.of(*scores)
    low, high = found.colour_limits()
    assert low == found.patch_median
    assert (low + high) / 2 == pytest.approx(float(found.patch_quantiles[999]))


def test_a_single_patch_is_its_own_quantiles():
    found = Calibration.of(torch.ones(1), torch.full((1, 1, 1), 2.5))
    assert found.patch_quantiles.shape == (1001,) and bool((found.patch_quantiles == 2.5).all())
    assert found.colour_limits() == (2.5, 2.5)


def test_the_tensors_give_the_same_calibration_back(scores):
    found = Calibration.of(*scores)
    again = Calibration.from_tensors(found.tensors() | {"memory": torch.zeros(1)})
    for name in ("image_scores", "patch_quantiles", "patch_mad"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    assert Calibration.from_tensors({"memory": torch.zeros(1)}) is None


# --- held-out scores -------------------------------------------------------------------------------------

WHOLE = BankSettings(coreset=1.0, projection=None, folds=7)  # every patch is remembered, every image its own fold


@pytest.fixture(scope="module")
def leave_one_out(tiny, photos) -> PatchCore:
    return PatchCore(tiny, bank=WHOLE, device="cpu").fit(photos)


def test_images_in_the_memory_score_zero_but_held_out_ones_do_not(leave_one_out, photos):
    assert float(leave_one_out.score(photos).image_scores.max()) < 1e-3
    held_out = leave_one_out.calibration
    assert float(held_out.image_scores.min()) > 0.1 and float(held_out.patch_quantiles[0]) > 1e-3


def test_a_held_out_score_is_the_distance_to_all_other_images(leave_one_out, photos):
    values = leave_one_out.extractor.extract(photos).values.double().flatten(1, 2)  # (n, patches, C)
    expected = []
    for i in range(7):
        others = torch.cat([values[j] for j in range(7) if j != i])
        expected.append(torch.cdist(values[i], others).min(1).values)
    torch.testing.assert_close(
        leave_one_out.calibration.image_scores.double(), torch.stack([d.max() for d in expected]), atol=1e-4, rtol=1e-4
    )
    assert leave_one_out.calibration.patch_median == pytest.approx(float(torch.cat(expected).median()), rel=1e-3)


def test_held_out_scores_are_those_of_new_images_of_the_same_kind(leave_one_out, category):
    normal = category.test[:4]
    assert set(normal.defects) == {"good"}
    new = leave_one_out.score(normal).image_scores.median()
    assert 0.5 < leave_one_out.calibration.image_median / float(new) < 2


@pytest.mark.filterwarnings("ignore:no threshold")
@pytest.mark.parametrize("reweight", ["patch", "image", "off"])
def test_held_out_images_are_scored_as_test_images_are(tiny, photos, reweight):
    """Two images, each held out from the other: the detector fitted on one alone must give the other's score."""
    training = TrainSettings(dimension=12, projection=8, epochs=0)
    both, first, second = (
        ReConPatch(tiny, training=training, bank=replace(WHOLE, folds=2), reweight=reweight, device="cpu").fit(images)
        for images in (photos[:2], photos[:1], photos[1:2])
    )
    expected = torch.cat([second.score(photos[:1]).image_scores, first.score(photos[1:2]).image_scores])
    torch.testing.assert_close(both.calibration.image_scores, expected, atol=1e-4, rtol=1e-4)


def test_the_seed_decides_the_held_out_scores(tiny, photos):
    bank = BankSettings(coreset=0.1, folds=3)
    fitted = [PatchCore(tiny, bank=bank, seed=seed, device="cpu").fit(photos) for seed in (0, 0, 1)]
    one, same, other = (detector.calibration for detector in fitted)
    assert torch.equal(one.image_scores, same.image_scores) and torch.equal(one.patch_quantiles, same.patch_quantiles)
    assert not torch.equal(one.image_scores, other.image_scores)


def test_without_folds_nothing_is_held_out(tiny, photos):
    assert PatchCore(tiny, bank=BankSettings(folds=0), device="cpu").fit(photos).calibration is None
