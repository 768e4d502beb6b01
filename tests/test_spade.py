"""SPADE: each formula against a loop, the idea (positions are looked for in the images retrieved only), and the detector."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import rcp
from rcp import SPADE, SPADEOptions
from rcp.detectors import spade
from rcp.detectors.spade import (
    PAPER,
    PAPER_FEATURES,
    image_distances,
    image_scores_for,
    pixel_scores,
    pyramid,
    retrieve,
)

FEW = SPADEOptions(neighbours=3)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def deep(tiny) -> rcp.FeatureSettings:
    """64x96 pixels in; maps of 16x24, 8x12, 4x6 and 2x3 positions out."""
    return replace(tiny, levels=(1, 2, 3, 4), patch_size=1)


def made(deep, options: SPADEOptions = FEW, **others) -> SPADE:
    return SPADE(deep, options=options, **{"device": "cpu"} | others)


@pytest.fixture(scope="module")
def fitted(deep, category) -> SPADE:
    return made(deep).fit(category.train)


def pixels_of(images, deep) -> torch.Tensor:
    return rcp.pixels.load_pixels(images, deep.geometry).values


# --- images ---------------------------------------------------------------------------------------


def test_image_distances_equal_a_loop_and_are_exactly_0_between_equals():
    queries, gallery = drawn(3, 5), drawn(4, 5, seed=1)
    expected = [[sum(float(a - b) ** 2 for a, b in zip(q, g, strict=True)) for g in gallery] for q in queries]
    np.testing.assert_allclose(image_distances(queries, gallery), expected, rtol=1e-5)
    assert not (image_distances(gallery + 1000, gallery + 1000).diagonal()).any()


@pytest.mark.parametrize("k", [1, 2, 4, 5, 50])
def test_image_scores_equal_a_loop_also_if_k_is_larger_than_n(k):
    distances = drawn(6, 5).abs()
    expected = [sum(sorted(row.tolist())[:k]) / min(k, 5) for row in distances]
    np.testing.assert_allclose(image_scores_for(distances, [k])[0], expected, rtol=1e-6)


def test_scores_for_many_k_are_those_for_each():
    distances = drawn(6, 9).abs()
    ks = (5, 1, 3, 20)
    together = image_scores_for(distances, ks)
    assert together.shape == (4, 6) and together.dtype == torch.float32
    assert torch.equal(together, torch.cat([image_scores_for(distances, [k]) for k in ks]))
    assert (together[0] > together[2]).all() and (together[2] > together[1]).all()


def test_an_image_that_is_not_its_own_neighbour_takes_no_part_in_the_mean():
    distances = torch.tensor([[math.inf, 1.0, 3.0], [1.0, math.inf, 2.0]])
    assert image_scores_for(distances, [1, 2, 3]).tolist() == [[1, 1], [2, 1.5], [2, 1.5]]


def test_k_has_to_be_positive():
    with pytest.raises(ValueError, match="K must be at least 1, got 0"):
        image_scores_for(drawn(2, 2), [3, 0])


def test_the_nearest_are_retrieved():
    distances = drawn(6, 9).abs()
    expected = np.argsort(distances.numpy(), 1)
    assert np.array_equal(retrieve(distances, 4).sort(1).values, np.sort(expected[:, :4], 1))
    assert retrieve(distances, 50).shape == (6, 9)


# --- positions ------------------------------------------------------------------------------------


def test_a_pyramid_joins_all_maps_on_one_grid_in_the_order_of_rows():
    fine, middle, coarse = drawn(2, 3, 8, 12), drawn(2, 4, 4, 6, seed=1), drawn(2, 5, 2, 3, seed=2)
    rows = pyramid([fine, middle, coarse], (4, 6))
    assert rows.shape == (2, 24, 12)
    for b, y, x in ((0, 0, 0), (1, 3, 5), (1, 2, 1)):
        row = rows[b, y * 6 + x]
        mean = [float(fine[b, c, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean()) for c in range(3)]
        np.testing.assert_allclose(row[:3], mean, rtol=1e-4, atol=1e-6)
        assert torch.equal(row[3:7], middle[b, :, y, x])
    # Coarse: position (2, 1) lies at 0.75, 0.25 between the coarse ones, counted from their centres.
    above, below = (0.75 * coarse[1, :, y, 0] + 0.25 * coarse[1, :, y, 1] for y in (0, 1))
    torch.testing.assert_close(rows[1, 2 * 6 + 1, 7:], 0.25 * above + 0.75 * below)


def test_maps_whose_sizes_do_not_divide_fit_too():
    rows = pyramid([drawn(1, 2, 9, 13), drawn(1, 3, 5, 7)], (5, 7))
    assert rows.shape == (1, 35, 5) and rows.isfinite().all()


def nearest_by_hand(queries, chosen, gallery, matches) -> np.ndarray:
    """All positions of the images retrieved at once, in float64: (q, P)."""
    scores = []
    for query, images in zip(queries.double(), chosen.tolist(), strict=True):
        rows = torch.cat([gallery[i] for i in images]).double()  # (K·P, C)
        distance = (query[:, None] - rows).square().sum(2).sqrt()  # (P, K·P)
        scores.append(distance.sort(1).values[:, :matches].mean(1).numpy())
    return np.stack(scores)


@pytest.mark.parametrize("matches", [1, 3, 7, 10, 500])
def test_pixel_scores_equal_the_whole_search(matches):
    queries, gallery = drawn(3, 6, 4) + 2, drawn(5, 6, 4, seed=1) + 2
    chosen = torch.tensor([[0, 1], [3, 1], [4, 2]])
    found = pixel_scores(queries, chosen, gallery.__getitem__, matches)
    np.testing.assert_allclose(found, nearest_by_hand(queries, chosen, gallery, matches), rtol=1e-4)


def test_each_good_image_is_fetched_once_and_only_those_retrieved():
    fetched = []
    gallery = drawn(9, 6, 4)
    pixel_scores(drawn(3, 6, 4), torch.tensor([[0, 1], [3, 1], [4, 0]]), lambda i: fetched.append(i) or gallery[i], 1)
    assert fetched == [0, 1, 3, 4]


def test_a_position_is_looked_for_in_the_images_retrieved_only():
    """Fails if all images are searched: then the odd position is found in the far image."""
    near, far = 0.1 * drawn(4, 6, 3), 0.1 * drawn(1, 6, 3, seed=1) + 5
    gallery, pooled = torch.cat([near, far]), torch.cat([near, far]).mean(1)
    query = 0.1 * drawn(1, 6, 3, seed=2)
    query[0, 2] = far[0, 4]  # normal in the far image, not here
    distances = image_distances(query.mean(1), pooled)
    some, everything = (
        pixel_scores(query, retrieve(distances, k), gallery.__getitem__, 1)[0] for k in (2, 5)
    )
    assert some.argmax() == 2 and some[2] > 20 * some[[0, 1, 3, 4, 5]].max()
    assert everything[2] < 1e-2


def test_the_detector_misses_what_is_normal_in_another_kind_of_image_if_it_retrieves_all(deep):
    noise = torch.randint(0, 30, (9, 3, 64, 96), generator=torch.Generator().manual_seed(0))
    noise[4:8] += 220  # four dark images, four bright ones
    pixels = noise.to(torch.uint8)
    test = pixels[8:].clone()  # dark, with a bright patch
    test[..., 16:48, 32:80] = pixels[4, :, 16:48, 32:80]
    scores = {}
    for k in (2, 8):
        detector = made(deep, SPADEOptions(neighbours=k, left_out=0))
        detector._fit(pixels[:8], torch.Generator().manual_seed(0))
        scores[k] = detector._score(test)[1][0, 3:5, 6:8].mean()  # in the middle of the patch
    assert scores[2] > 1.5 * scores[8]


# --- the detector ---------------------------------------------------------------------------------


def test_it_finds_the_defects(fitted, category):
    result = rcp.evaluate(fitted, category.test)
    assert result.metrics["image_auroc"] == 1 and result.metrics["pixel_auroc"] > 0.9


@pytest.mark.parametrize("options", [FEW, replace(FEW, grid=1), SPADEOptions(neighbours=50, matches=2, grid=3)])
def test_the_detector_equals_the_whole_search(deep, category, options):
    detector = made(deep, replace(options, left_out=0))
    train, test = pixels_of(category.train, deep), pixels_of(category.test.paths[-2:], deep)
    detector._fit(train, torch.Generator())
    image, grids = detector._score(test)
    good, asked = detector.extractor.maps(train), detector.extractor.maps(test)
    distances = (asked[3].double().mean((2, 3))[:, None] - good[3].double().mean((2, 3))).square().sum(2)
    k = min(options.neighbours, 8)
    np.testing.assert_allclose(image, distances.sort(1).values[:, :k].mean(1), rtol=1e-3)
    grid = tuple(good[options.grid - 1].shape[2:])
    assert grids.shape == (2, *grid)
    queries = pyramid(asked[:3], grid)[:, ::7]
    expected = nearest_by_hand(queries, distances.argsort(1)[:, :k], pyramid(good[:3], grid), options.matches)
    np.testing.assert_allclose(grids.flatten(1)[:, ::7], expected, rtol=1e-2, atol=1e-3)
    assert np.median(expected) > 0.05


def test_the_gallery_is_kept_as_the_network_gives_it(fitted, deep, category):
    *maps, last = fitted.extractor.maps(pixels_of(category.train, deep))
    assert [tuple(m.shape[2:]) for m in fitted.maps] == [(16, 24), (8, 12), (4, 6)]
    for kept, expected in zip(fitted.maps, maps, strict=True):
        torch.testing.assert_close(kept, expected)
    torch.testing.assert_close(fitted.pooled, last.mean((2, 3)))


def test_images_that_are_looked_at_in_several_batches_keep_their_places(fitted, deep, category, monkeypatch):
    monkeypatch.setattr(spade, "AT_A_TIME", 3)
    parted = made(deep).fit(category.train)
    for a, b in zip((parted.pooled, *parted.maps), (fitted.pooled, *fitted.maps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    quantiles = (d.calibration.patch_quantiles for d in (parted, fitted))
    torch.testing.assert_close(*quantiles, rtol=1e-3, atol=1e-3)


def test_what_k_does_is_had_without_the_pixels(fitted, category, monkeypatch):
    scores = fitted.score(category.test)
    monkeypatch.setattr(spade, "pixel_scores", None)
    distances = fitted.image_distances(category.test)
    assert distances.shape == (7, 8)
    one, three, many = image_scores_for(distances, (1, 3, 50))
    assert torch.equal(three, scores.image_scores)
    assert torch.equal(one, distances.amin(1)) and (many > three).all()


def test_an_image_scores_alone_what_it_scores_among_others(fitted, photos):
    together = fitted.score(photos)
    alone = fitted.score(photos[3:4])
    torch.testing.assert_close(alone.image_scores[0], together.image_scores[3], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(alone.patch_scores[0], together.patch_scores[3], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("neighbours", [3, 50])
def test_held_out_normals_are_what_a_detector_fitted_without_them_says(deep, category, neighbours):
    options, paths = replace(FEW, neighbours=neighbours), list(category.train.paths)
    fitted, grids = made(deep, options).fit(category.train), []
    for i in range(8):
        other = made(deep, replace(options, left_out=0))
        other._fit(pixels_of(paths[:i] + paths[i + 1 :], deep), torch.Generator())
        scores = other.score([paths[i]])
        torch.testing.assert_close(fitted.calibration.image_scores[i], scores.image_scores[0], rtol=1e-4, atol=1e-6)
        grids.append(scores.patch_scores)
    expected = rcp.calibration.Calibration.of(fitted.calibration.image_scores, torch.cat(grids))
    torch.testing.assert_close(fitted.calibration.patch_quantiles, expected.patch_quantiles, rtol=1e-3, atol=1e-3)
    assert fitted.calibration.patch_median > 10 * float(fitted.score(category.train).patch_scores.median())


def test_only_some_images_pixels_are_scored_for_the_colour_scale_and_the_seed_draws_which(fitted, deep, category):
    before = torch.get_rng_state()
    two, again, other = (made(deep, replace(FEW, left_out=2), seed=s).fit(category.train).calibration for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(two.patch_quantiles, again.patch_quantiles)
    assert not torch.equal(two.patch_quantiles, other.patch_quantiles)
    assert len(two.patch_quantiles.unique()) <= 2 * 8 * 12 < len(fitted.calibration.patch_quantiles.unique())
    for calibration in (two, other):  # images are cheap: all of them
        assert torch.equal(calibration.image_scores, fitted.calibration.image_scores)


@pytest.mark.parametrize(("options", "count"), [(replace(FEW, left_out=0), 7), (FEW, 1)])
def test_without_held_out_normals_there_is_no_threshold(deep, photos, options, count):
    with pytest.warns(UserWarning, match="no threshold: no normal image was held out"):
        detector = made(deep, options).fit(photos[:count])
    assert detector.score(photos).patch_scores.isfinite().all()
    with pytest.raises(RuntimeError, match="has no held-out normal scores"):
        detector.threshold()


def test_saved_and_loaded_it_scores_the_same_also_from_mapped_files(fitted, deep, category, photos, tmp_path, monkeypatch):
    files = []
    mapping = rcp.MemoryLimit._mapping
    monkeypatch.setattr(rcp.MemoryLimit, "_mapping", lambda self, count: files.append(count) or mapping(self, count))
    bounded = made(deep, limit=rcp.MemoryLimit(max_bytes=1, folder=tmp_path)).fit(category.train)
    assert fitted.maps[0].nbytes in files
    loaded = rcp.load(bounded.save(tmp_path / "model"), device="cpu")
    assert isinstance(loaded, SPADE) and loaded.options == FEW
    a, b = fitted.score(photos), loaded.score(photos)
    assert torch.equal(a.image_scores, b.image_scores) and torch.equal(a.patch_scores, b.patch_scores)
    assert torch.equal(loaded.calibration.image_scores, fitted.calibration.image_scores)


def test_what_it_will_hold_is_known_before(fitted, deep, category):
    def held(detector):
        return detector.pooled.nbytes + sum(m.nbytes for m in detector.maps)

    assert fitted.state_bytes(8, (64, 96)) == held(fitted)
    odd = made(replace(deep, crop=(61, 90))).fit(category.train.paths[:3])
    assert odd.maps[0].shape[2:] == (16, 23) and odd.score(category.train.paths[:1]).patch_scores.shape == (1, 8, 12)
    assert odd.state_bytes(3, (61, 90)) == held(odd)


@pytest.mark.parametrize("name", ["pooled", "map_2"])
def test_a_damaged_file_is_refused(fitted, tmp_path, name):
    folder = fitted.save(tmp_path / "model")
    file = rcp.modelfile.read_model(folder)
    rcp.modelfile.write_model(folder, replace(file, tensors=file.tensors | {name: torch.zeros(3, 2)}))
    with pytest.raises(ValueError, match=f"the tensor '{name}' should be"):
        rcp.load(folder, device="cpu")


def test_a_grid_that_the_pyramid_lacks_is_refused(deep, photos):
    with pytest.raises(ValueError, match="grid names one of the pyramid's 3 maps, from 1; got 4"):
        made(deep, replace(FEW, grid=4)).fit(photos)


def test_it_says_so_before_it_is_fitted(deep, photos):
    with pytest.raises(RuntimeError, match="this SPADE has no gallery of good images yet"):
        made(deep).image_distances(photos)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"neighbours": 0}, "neighbours must be at least 1, got 0"),
        ({"matches": 0}, "matches must be at least 1, got 0"),
        ({"grid": 0}, "grid must be at least 1, got 0"),
        ({"left_out": -1}, "left_out and smoothing must not be negative, got -1 and 4.0"),
        ({"smoothing": -1.0}, "left_out and smoothing must not be negative, got 64 and -1.0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        SPADEOptions(**options)


def test_the_papers_settings():
    assert (PAPER.neighbours, PAPER.matches, PAPER.grid, PAPER.smoothing) == (50, 1, 1, 4.0)
    assert (PAPER_FEATURES.backbone, PAPER_FEATURES.levels, PAPER_FEATURES.crop) == ("wide_resnet50_2", (1, 2, 3, 4), 224)
    assert SPADE().features.levels == (1, 2, 3, 4) and SPADE().options == SPADEOptions(50, 1, 2)
