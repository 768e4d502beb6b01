"""PaDiM: each formula against a loop, the two ideas (a Gaussian a position; its covariance), and the detector around them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import rcp
from rcp import PaDiM, PaDiMOptions
from rcp.detectors import gaussians, padim
from rcp.detectors.gaussians import fit_gaussians, leave_one_out, mahalanobis
from rcp.detectors.padim import PAPER, PAPER_FEATURES, reduced
from rcp.detectors.reduced import covariance, principal_map

SMALL = PaDiMOptions(dimension=20)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def fine(tiny) -> rcp.FeatureSettings:
    """64x96 pixels in, 16x24 positions out."""
    return replace(tiny, levels=(1, 2, 3), patch_size=1)


def made(fine, options: PaDiMOptions = SMALL, **others) -> PaDiM:
    return PaDiM(fine, options=options, **{"device": "cpu"} | others)


def pixels_of(images, fine) -> torch.Tensor:
    return rcp.pixels.load_pixels(images, fine.geometry).values


@pytest.fixture(scope="module")
def fitted(fine, category) -> PaDiM:
    return made(fine).fit(category.train)


# --- the formulae ---------------------------------------------------------------------------------


def by_hand(rows: torch.Tensor, queries: torch.Tensor, epsilon: float) -> np.ndarray:
    """Position by position, image by image, with an explicit inverse in float64."""
    rows, queries = rows.double().numpy(), queries.double().numpy()
    n, p, d = rows.shape
    distance = np.zeros((len(queries), p))
    for i in range(p):
        mean = rows[:, i].sum(0) / n
        scatter = np.zeros((d, d))
        for k in range(n):
            scatter += np.outer(rows[k, i] - mean, rows[k, i] - mean)
        inverse = np.linalg.inv(scatter / (n - 1) + epsilon * np.eye(d))
        for b in range(len(queries)):
            apart = queries[b, i] - mean
            distance[b, i] = math.sqrt(apart @ inverse @ apart)
    return distance


@pytest.mark.parametrize(("n", "p", "d"), [(30, 5, 4), (3, 4, 20), (2, 1, 1)])
def test_gaussians_and_distances_equal_a_loop_with_an_explicit_inverse(n, p, d):
    rows, queries = drawn(n, p, d) * 2 + 5, drawn(6, p, d, seed=1) * 3 + 5
    mean, factor = fit_gaussians(rows, 0.01)
    assert mean.shape == (p, d) and factor.shape == (p, d, d) and mean.dtype == factor.dtype == torch.float32
    np.testing.assert_allclose(mahalanobis(queries, mean, factor), by_hand(rows, queries, 0.01), rtol=1e-4)


def test_the_factor_is_lower_triangular_and_its_product_is_the_covariance_divided_by_n_minus_1_plus_epsilon():
    rows = drawn(9, 3, 4)
    _, factor = fit_gaussians(rows, 0.5)
    assert torch.equal(factor, factor.tril())
    for i in range(3):
        expected = np.cov(rows[:, i].double().numpy(), rowvar=False) + 0.5 * np.eye(4)
        np.testing.assert_allclose(factor[i] @ factor[i].T, expected, rtol=0, atol=1e-5)


def test_fewer_images_than_channels_need_epsilon():
    rows = drawn(3, 2, 20)
    _, factor = fit_gaussians(rows, 0.01)
    assert float(factor.diagonal(dim1=1, dim2=2).min()) == pytest.approx(0.1, rel=0.01)  # √ε, where nothing varies
    with pytest.raises(torch.linalg.LinAlgError):
        fit_gaussians(rows.double(), -1e-9)


def test_the_blocks_of_positions_change_nothing(monkeypatch):
    rows, queries = drawn(6, 11, 5), drawn(3, 11, 5, seed=1)

    def everything():
        mean, factor = fit_gaussians(rows, 0.01)
        return mean, factor, mahalanobis(queries, mean, factor), leave_one_out(rows, 0.01)

    whole = everything()
    monkeypatch.setattr(gaussians, "BLOCK", 1)  # one position a block
    for a, b in zip(whole, everything(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_blocks_are_small_for_many_channels_and_for_many_images():
    for n, d in ((8, 550), (10_000, 100), (64, 100)):
        part = next(iter(gaussians._blocks(n, 3136, d)))
        assert (part.stop - part.start) * d * max(n, d) <= gaussians.BLOCK


@pytest.mark.parametrize(("n", "d"), [(12, 3), (5, 20), (3, 2)])
def test_leaving_one_out_equals_fitting_without_it(n, d):
    rows = drawn(n, 4, d) * 2 + 3
    found = leave_one_out(rows, 0.01)
    for i in range(n):
        others = torch.cat([rows[:i], rows[i + 1 :]])
        np.testing.assert_allclose(found[i], by_hand(others, rows[i : i + 1], 0.01)[0], rtol=1e-4)


def test_with_fewer_images_than_channels_the_images_that_were_fitted_all_look_equally_normal():
    # Why they cannot set a threshold: whatever is in them, it is (n - 1) / √n as ε goes to 0.
    rows = drawn(6, 4, 30)
    torch.testing.assert_close(mahalanobis(rows, *fit_gaussians(rows, 1e-4)), torch.full((6, 4), 5 / math.sqrt(6)), rtol=1e-3, atol=0)
    assert float(leave_one_out(rows, 1e-4).min()) > 100


def test_one_image_has_no_covariance_and_two_leave_none_to_others():
    with pytest.raises(ValueError, match="a covariance needs at least 2 images, got 1"):
        fit_gaussians(drawn(1, 2, 3), 0.01)
    with pytest.raises(ValueError, match="leaving one out takes at least 3 images, got 2"):
        leave_one_out(drawn(2, 2, 3), 0.01)


def test_channels_are_chosen_or_mapped():
    features = drawn(2, 3, 4, 6)
    assert torch.equal(reduced(features, torch.tensor([1, 4])), features[..., [1, 4]])
    table = drawn(2, 6, seed=1)
    expected = [[float((features[1, 2, 3] * row).sum())] for row in table]
    np.testing.assert_allclose(reduced(features, table)[1, 2, 3, :, None], expected, rtol=1e-5)


# --- the ideas ------------------------------------------------------------------------------------


def test_what_is_normal_elsewhere_is_odd_here():
    """Fails if all positions share one Gaussian."""
    sky, ground = drawn(40, 1, 3), drawn(40, 1, 3, seed=1) + 10
    rows = torch.cat([sky, ground], 1)  # (40, 2, 3)
    test = torch.cat([drawn(10, 2, 3, seed=2) + torch.tensor([[0.0], [10.0]]), torch.full((1, 2, 3), 10.0)])  # the last: ground in the sky
    distance = mahalanobis(test, *fit_gaussians(rows, 0.01))
    assert distance[-1, 0] > 4 * distance[:-1].max() and distance[-1, 1] < distance[:-1].max()
    shared = mahalanobis(test.view(22, 1, 3), *fit_gaussians(rows.view(80, 1, 3), 0.01)).view(11, 2)
    assert shared[-1, 0] < shared[:-1].max()


def test_an_unusual_combination_of_ordinary_numbers_is_odd():
    """Fails if the covariance is dropped, or only its diagonal is kept."""
    common = drawn(50, 2, 1)
    rows = common + 0.1 * drawn(50, 2, 2, seed=1)  # two channels that go up and down together
    odd = torch.tensor([1.0, -1.0]).expand(1, 2, 2)
    mean, factor = fit_gaussians(rows, 0.001)
    assert mahalanobis(odd, mean, factor).min() > 3 * mahalanobis(rows, mean, factor).max()
    assert (odd - mean).norm(dim=2).max() < (rows - mean).norm(dim=2).max()
    alone = torch.diag_embed((factor @ factor.mT).diagonal(dim1=1, dim2=2).sqrt())
    assert mahalanobis(odd, mean, alone).max() < mahalanobis(rows, mean, alone).max()


def test_the_detector_misses_a_patch_that_is_normal_elsewhere_if_positions_are_mixed(fine, monkeypatch):
    noise = torch.randint(0, 40, (9, 3, 64, 96), generator=torch.Generator().manual_seed(0))
    noise[..., 48:] += 200  # dark on the left, bright on the right
    pixels = noise.to(torch.uint8)
    test = pixels[8:].clone()
    test[..., 16:48, 8:32] = pixels[8:, :, 16:48, 64:88]
    truth = torch.zeros(16, 24, dtype=torch.bool)
    truth[5:11, 3:7] = True

    def odd_against_the_rest() -> float:
        detector = made(fine)
        detector._fit(pixels[:8], torch.Generator().manual_seed(0))
        grid = detector._score(test)[1][0]
        return float(grid[truth].mean() / grid[~truth].mean())

    own = odd_against_the_rest()

    def shared(rows, epsilon, **others):
        n, p, d = rows.shape
        mean, factor = fit_gaussians(rows.reshape(n * p, 1, d), epsilon)
        return mean.expand(p, d), factor.expand(p, d, d)

    monkeypatch.setattr(padim, "fit_gaussians", shared)
    assert own > 3 and odd_against_the_rest() < 1.5


# --- the detector ---------------------------------------------------------------------------------


def test_it_finds_the_defects(fitted, category):
    result = rcp.evaluate(fitted, category.test)
    assert result.metrics["image_auroc"] == 1 and result.metrics["pixel_auroc"] > 0.9


def test_scores_have_the_grid_of_the_first_level_and_an_image_its_largest_distance(fitted, photos):
    scores = fitted.score(photos)
    assert scores.patch_scores.shape == (7, 16, 24) and scores.maps.shape == (7, 64, 96)
    assert torch.equal(scores.image_scores, scores.patch_scores.amax((1, 2)))
    assert scores.unit == "Mahalanobis distance"


def test_the_detector_equals_the_loop(fitted, category, photos):
    train = pixels_of(category.train, fitted.features)
    test = pixels_of(photos[:2], fitted.features)
    rows, queries = (fitted.extractor.patches(p)[..., fitted.chosen].flatten(1, 2)[:, ::29] for p in (train, test))
    found = fitted._score(test)[1].flatten(1)[:, ::29]
    np.testing.assert_allclose(found, by_hand(rows, queries, 0.01), rtol=1e-3)


def test_an_image_scores_alone_what_it_scores_among_others(fitted, photos):
    together = fitted.score(photos)
    alone = fitted.score(photos[3:4])
    torch.testing.assert_close(alone.patch_scores[0], together.patch_scores[3], rtol=1e-4, atol=1e-4)


def test_held_out_normals_are_what_a_detector_fitted_without_them_says(fitted, fine, category):
    paths = list(category.train.paths)
    assert len(fitted.normal_scores().image_scores) == 8
    for i in (0, 5):
        other = made(fine).fit(paths[:i] + paths[i + 1 :])  # the same seed draws the same channels
        expected = other.score([paths[i]]).image_scores[0]
        torch.testing.assert_close(fitted.calibration.image_scores[i], expected, rtol=1e-3, atol=0)
    assert fitted.calibration.image_median > 1.2 * float(fitted.score(category.train).image_scores.median())


def test_the_seed_draws_the_channels_and_nothing_else_is_random(fitted, fine, category):
    before = torch.get_rng_state()
    again, other = made(fine).fit(category.train), made(fine, seed=1).fit(category.train)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.factor, fitted.factor) and torch.equal(again.chosen, fitted.chosen)
    assert not torch.equal(other.chosen, fitted.chosen) and len(set(other.chosen.tolist())) == 20
    assert int(torch.cat([fitted.chosen, other.chosen]).max()) < fitted.extractor.width


def test_principal_components_are_those_of_all_positions(fine, category):
    detector = made(fine, replace(SMALL, reduction="pca")).fit(category.train)
    pixels = pixels_of(category.train, fine)
    rows = detector.extractor.patches(pixels).flatten(0, 2)
    expected = principal_map(covariance(rows), 20)
    torch.testing.assert_close(detector.chosen.double(), expected, rtol=0, atol=1e-5)
    assert rcp.evaluate(detector, category.test).metrics["image_auroc"] == 1
    assert torch.equal(made(fine, replace(SMALL, reduction="pca"), seed=7).fit(category.train).factor, detector.factor)


@pytest.mark.parametrize("reduction", padim.REDUCTIONS)
def test_images_that_are_looked_at_in_several_batches_keep_their_places(fine, category, monkeypatch, reduction):
    pixels = pixels_of(category.train, fine)
    detector = made(fine, replace(SMALL, reduction=reduction))
    rows = [detector._rows(pixels, torch.Generator().manual_seed(0)).values]
    monkeypatch.setattr(padim, "AT_A_TIME", 3)
    rows.append(detector._rows(pixels, torch.Generator().manual_seed(0)).values)
    assert rows[0].shape == (8, 16, 24, 20)
    torch.testing.assert_close(*rows, rtol=1e-3, atol=1e-4)


def test_no_more_channels_than_there_are(fine, category):
    detector = made(replace(fine, levels=(1,)), PaDiMOptions(dimension=10_000)).fit(category.train.paths[:3])
    assert detector.chosen.tolist() == list(range(detector.extractor.width))


@pytest.mark.parametrize("reduction", padim.REDUCTIONS)
def test_a_bound_on_memory_changes_no_bit_and_what_is_mapped_can_be_saved(fine, category, photos, tmp_path, monkeypatch, reduction):
    options = replace(SMALL, reduction=reduction)
    free = made(fine, options).fit(category.train)
    files = []
    mapping = rcp.MemoryLimit._mapping
    monkeypatch.setattr(rcp.MemoryLimit, "_mapping", lambda self, count: files.append(count) or mapping(self, count))
    bounded = made(fine, options, limit=rcp.MemoryLimit(max_bytes=1, folder=tmp_path)).fit(category.train)
    assert 384 * 20 * 20 * 4 in files and 8 * 384 * 20 * 4 in files  # factors, features
    assert torch.equal(bounded.factor, free.factor) and torch.equal(bounded.mean, free.mean)
    assert torch.equal(bounded.calibration.image_scores, free.calibration.image_scores)
    loaded = rcp.load(bounded.save(tmp_path / "model"), device="cpu")
    assert isinstance(loaded, PaDiM) and loaded.options == options
    a, b = free.score(photos), loaded.score(photos)
    assert torch.equal(a.patch_scores, b.patch_scores) and torch.equal(a.image_scores, b.image_scores)
    assert torch.equal(loaded.calibration.image_scores, free.calibration.image_scores)


def test_what_it_will_hold_is_known_before(fitted, fine, category):
    held = fitted.mean.nbytes + fitted.factor.nbytes
    assert fitted.state_bytes(8, (64, 96)) == held
    odd = made(replace(fine, crop=(61, 90))).fit(category.train.paths[:3])
    assert odd.mean.shape == (16, 23, 20)
    assert odd.state_bytes(3, (61, 90)) == odd.mean.nbytes + odd.factor.nbytes


def test_the_settings_of_the_features_count(fine, category):
    smooth = made(replace(fine, patch_size=3)).fit(category.train.paths[:3])
    assert not torch.equal(smooth.mean, made(fine).fit(category.train.paths[:3]).mean)


def test_epsilon_counts(fitted, fine, category, photos):
    wide = made(fine, replace(SMALL, epsilon=1.0)).fit(category.train)
    assert wide.score(photos).image_scores.mean() < fitted.score(photos).image_scores.mean()


def test_images_of_another_size_are_refused(fine, category):
    free = replace(fine, resize=None, crop=None)
    detector = made(free).fit([category.train.paths[0], category.train.paths[4]])
    with pytest.raises(ValueError, match="these images have 20x30 positions, the Gaussians 23x33: PaDiM needs images of one size"):
        detector.score([category.train.paths[1]])


def test_two_images_give_no_threshold_and_one_no_gaussian(fine, photos):
    with pytest.warns(UserWarning, match="no threshold: no normal image was held out"):
        pair = made(fine).fit(photos[:2])
    assert pair.score(photos).image_scores.isfinite().all()
    with pytest.raises(RuntimeError, match="has no held-out normal scores"):
        pair.threshold()
    with pytest.raises(ValueError, match="PaDiM needs at least 2 good images: one has no covariance"):
        made(fine).fit(photos[:1])


def test_it_says_so_before_it_is_fitted(fine, photos):
    with pytest.raises(RuntimeError, match="this PaDiM has no Gaussians yet"):
        made(fine).score(photos)


@pytest.mark.parametrize("name", ["chosen", "mean", "factor"])
def test_a_damaged_file_is_refused(fitted, tmp_path, name):
    folder = fitted.save(tmp_path / "model")
    file = rcp.modelfile.read_model(folder)
    rcp.modelfile.write_model(folder, replace(file, tensors=file.tensors | {name: torch.zeros(3)}))
    with pytest.raises(ValueError, match="the tensor '.*' should be"):
        rcp.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dimension": 0}, "dimension must be positive, got 0"),
        ({"reduction": "lda"}, "reduction must be one of random, pca, got 'lda'"),
        ({"epsilon": 0.0}, "epsilon must be positive, got 0.0"),
        ({"smoothing": -1.0}, "smoothing must not be negative, got -1.0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        PaDiMOptions(**options)


def test_the_papers_settings():
    assert (PAPER.dimension, PAPER.epsilon, PAPER.reduction, PAPER.smoothing) == (550, 0.01, "random", 4.0)
    assert (PAPER_FEATURES.backbone, PAPER_FEATURES.levels, PAPER_FEATURES.crop) == ("wide_resnet50_2", (1, 2, 3), 224)
    assert PaDiM().features.levels == (1, 2, 3) and PaDiM().options.dimension == 100
