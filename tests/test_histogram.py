"""The baseline: histograms and tiles against loops, and the detector around them."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

import rcp
from rcp.detectors.histogram import LUMA, BrightnessHistogram, BrightnessHistogramOptions, grey, histograms, tile_means
from rcp.pixels import load_pixels


def pictures(n: int = 3, h: int = 21, w: int = 34) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def fitted(tiny, category) -> BrightnessHistogram:
    return BrightnessHistogram(tiny, device="cpu").fit(category.train)


def test_grey_levels_and_histograms_equal_a_loop_over_pixels():
    pixels = pictures()
    pixels[0, :, 0, :3] = torch.tensor([0, 255, 255])  # black, white, white
    levels = grey(pixels)
    for bins in (1, 7, 256):
        found, expected = histograms(levels, bins), torch.zeros(3, bins)
        for b in range(3):
            for i in range(21):
                for j in range(34):
                    r, g, c = pixels[b, :, i, j].tolist()
                    level = LUMA[0] * r + LUMA[1] * g + LUMA[2] * c
                    assert float(levels[b, i, j]) == pytest.approx(level, abs=1e-3)
                    expected[b, int(float(levels[b, i, j]) * bins / 256)] += 1
        torch.testing.assert_close(found, expected / (21 * 34))
    assert histograms(torch.tensor([[[255.0, 0.0]]]), 4).tolist() == [[0.5, 0, 0, 0.5]]


def test_a_tile_is_the_mean_of_its_own_pixels_also_at_the_border():
    levels = grey(pictures())
    found = tile_means(levels, 8)
    assert found.shape == (3, 3, 5)
    for i in range(3):
        for j in range(5):
            part = levels[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
            torch.testing.assert_close(found[:, i, j], part.mean((1, 2)))


def test_scores_are_the_distance_to_the_nearest_histogram_and_to_the_usual_tile(fitted, category):
    train, test = (load_pixels(s, fitted.features.geometry).values for s in (category.train, category.test))
    known, seen = histograms(grey(train), 32), histograms(grey(test), 32)
    scores = fitted.score(category.test)
    for i in range(len(test)):
        assert float(scores.image_scores[i]) == pytest.approx(min(float((seen[i] - k).abs().sum()) for k in known), abs=1e-5)
    usual = tile_means(grey(train), 16).mean(0)
    torch.testing.assert_close(scores.patch_scores, (tile_means(grey(test), 16) - usual).abs())
    assert scores.patch_scores.shape == (7, 4, 6) and scores.maps.shape == (7, 64, 96)


def test_held_out_normals_are_scored_against_the_others_only(fitted, category, tiny):
    normal = fitted.normal_scores()
    assert len(normal.image_scores) == 8 and float(normal.image_scores.min()) > 0
    paths, options = category.train.paths, fitted.options
    grids = []
    for i in range(8):
        others = [path for k, path in enumerate(paths) if k != i]
        alone = BrightnessHistogram(tiny, options=options, device="cpu").fit(others).score([paths[i]])
        assert float(normal.image_scores[i]) == pytest.approx(float(alone.image_scores[0]), abs=1e-6)
        grids.append(alone.patch_scores)
    flat = torch.cat(grids).flatten().sort().values
    torch.testing.assert_close(normal.patch_quantiles[[0, 1000]], flat[[0, -1]], atol=1e-4, rtol=1e-4)


def test_a_darker_image_is_found_and_a_shuffled_one_is_not(fitted, category):
    pixels = load_pixels(category.train, fitted.features.geometry)
    order = torch.randperm(64 * 96, generator=torch.Generator().manual_seed(0))
    shuffled = pixels.values.flatten(2)[..., order].unflatten(2, (64, 96))
    assert float(fitted.score(replace(pixels, values=pixels.values // 2)).image_scores.min()) > 1
    assert float(fitted.score(replace(pixels, values=shuffled)).image_scores.max()) < 1e-6  # structure is not looked at


def test_saved_alone_and_again(fitted, category, tiny, tmp_path):
    loaded = rcp.load(fitted.save(tmp_path / "model"), device="cpu")
    scores, again = fitted.score(category.test), loaded.score(category.test)
    assert isinstance(loaded, BrightnessHistogram) and loaded.backbone_record() == fitted.backbone_record()
    assert torch.equal(scores.image_scores, again.image_scores) and torch.equal(scores.patch_scores, again.patch_scores)
    alone = fitted.score([category.test.paths[2]])
    torch.testing.assert_close(alone.image_scores[0], scores.image_scores[2])
    assert fitted.nbytes() - sum(t.nbytes for t in fitted.calibration.tensors().values()) == fitted.state_bytes(8, (64, 96))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert BrightnessHistogram(tiny, device="cpu").fit(category.train.paths[:1]).calibration is None
    assert any("no threshold" in str(one.message) for one in caught)


@pytest.mark.parametrize("wrong", [{"bins": 0}, {"bins": 257}, {"tile": 0}, {"smoothing": -1}])
def test_options_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        BrightnessHistogramOptions(**wrong)
