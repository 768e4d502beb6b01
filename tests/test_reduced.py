"""The cheap rivals of f: each linear map against numpy, and the detector around it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rcp
from rcp import BankSettings, PatchCore
from rcp.coreset import projection_matrix
from rcp.detectors import KINDS, ReducedPatchCore
from rcp.detectors.reduced import BLOCK, EPS, METHODS, covariance, principal_map

BANK = BankSettings(coreset=0.1, projection=None, folds=3)
every = pytest.mark.parametrize("method", METHODS)


def gaussian(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uneven(n: int = 300, c: int = 6) -> torch.Tensor:
    """Rows that vary differently in every direction, off centre."""
    turn = torch.linalg.qr(gaussian(c, c, seed=1)).Q
    return gaussian(n, c) * 2.0 ** -torch.arange(c) @ turn + 5


def reduced(tiny, method: str = "pca", **options) -> ReducedPatchCore:
    return ReducedPatchCore(tiny, method=method, **{"dimension": 20, "bank": BANK, "device": "cpu"} | options)


@pytest.fixture(scope="module")
def fitted(tiny, photos) -> dict[str, ReducedPatchCore]:
    return {method: reduced(tiny, method).fit(photos) for method in METHODS}


@pytest.fixture(scope="module")
def rows(fitted, photos) -> torch.Tensor:
    return fitted["pca"].extractor.extract(photos).rows  # (672, 240)


# --- the covariance -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 10**6))
def test_the_covariance_equals_numpys(n, c, seed):
    rows = gaussian(n, c, seed=seed) + 3
    expected = np.cov(rows.numpy(), rowvar=False, bias=True).reshape(c, c)
    np.testing.assert_allclose(covariance(rows).numpy(), expected, rtol=0, atol=1e-12)


def test_the_covariance_does_not_depend_on_the_blocks(monkeypatch):
    rows = uneven(1000).float()
    whole = covariance(rows)
    monkeypatch.setattr("rcp.detectors.reduced.BLOCK", 7)
    torch.testing.assert_close(covariance(rows), whole, rtol=0, atol=1e-5)
    monkeypatch.setattr("rcp.detectors.reduced.BLOCK", 1)
    torch.testing.assert_close(covariance(rows), whole, rtol=0, atol=1e-5)


def test_a_mean_far_from_zero_costs_no_digits():
    rows = uneven().float()
    torch.testing.assert_close(covariance(rows + 4096), covariance((rows + 4096).double()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precise_rows_count_as_the_same_numbers_in_float32(dtype):
    rows = uneven().to(dtype)
    assert torch.equal(covariance(rows), covariance(rows.float()))
    assert covariance(rows).dtype == torch.float64


def test_a_mapped_files_pages_are_let_go_after_every_block():
    released = []
    covariance(torch.zeros(2 * BLOCK + 1, 2), release=lambda: released.append(1))
    assert len(released) == 3


@pytest.mark.parametrize("shape", [(0, 3), (4,), (2, 3, 4)])
def test_what_is_no_matrix_of_rows_is_refused(shape):
    with pytest.raises(ValueError, match="rows must be .N, C. with at least one row"):
        covariance(torch.zeros(shape))


# --- the maps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [1, 4, 6, 99])
def test_principal_components_equal_the_right_singular_vectors_up_to_sign(dimension):
    rows = uneven()
    found = principal_map(covariance(rows), dimension)
    centred = (rows - rows.mean(0)).numpy()
    expected = np.linalg.svd(centred, full_matrices=False)[2][:dimension]
    assert found.shape == expected.shape == (min(dimension, 6), 6)
    np.testing.assert_allclose(np.abs((found.numpy() * expected).sum(1)), 1, atol=1e-9)
    torch.testing.assert_close(found @ found.T, torch.eye(len(found)).double(), rtol=0, atol=1e-12)


def test_the_largest_entry_of_every_component_is_positive_whatever_the_decomposition_says(monkeypatch):
    scatter, eigh = covariance(uneven()), torch.linalg.eigh
    found = principal_map(scatter, 6)
    assert (found.gather(1, found.abs().argmax(1, keepdim=True)) > 0).all()

    def turned(matrix):
        values, vectors = eigh(matrix)
        return values, vectors * torch.tensor([1, -1, 1, -1, -1, 1])

    monkeypatch.setattr(torch.linalg, "eigh", turned)
    assert torch.equal(principal_map(scatter, 6), found)


def test_whitened_rows_vary_by_one_in_every_direction_up_to_eps():
    rows = uneven()
    scatter = covariance(rows)
    white = covariance(rows @ principal_map(scatter, 6, whiten=True).T)
    values = np.linalg.eigvalsh(scatter.numpy())[::-1]
    expected = np.diag(values / (values + EPS * values.mean()))
    np.testing.assert_allclose(white.numpy(), expected, rtol=0, atol=1e-9)
    assert 0.5 < expected[-1, -1] < 0.99 and expected[0, 0] > 0.999


def test_whitening_is_the_components_each_divided_and_a_narrower_one_its_first_rows():
    scatter = covariance(uneven())
    plain, white = principal_map(scatter, 6), principal_map(scatter, 6, whiten=True)
    torch.testing.assert_close(torch.nn.functional.normalize(white, dim=1), plain)
    assert (white.norm(dim=1).diff() > 0).all()
    assert torch.equal(principal_map(scatter, 2, whiten=True), white[:2])


def test_directions_that_do_not_vary_stay_finite_and_small():
    rows = torch.cat([uneven(), torch.ones(300, 2)], 1)
    white = principal_map(covariance(rows), 8, whiten=True)
    assert white.isfinite().all() and float((rows @ white.T).std(0).min()) < 1e-6


def test_equal_rows_cannot_be_whitened():
    scatter = covariance(torch.ones(5, 3))
    assert principal_map(scatter, 2).isfinite().all()
    with pytest.raises(ValueError, match="whitening needs training patches that differ"):
        principal_map(scatter, 2, whiten=True)


def test_fewer_components_lose_the_least_of_all_maps_of_that_width(fitted, rows):
    pca = fitted["pca"].weight.double()
    centred = (rows - rows.mean(0)).double()
    ours = (centred - centred @ pca.T @ pca).norm()
    other = torch.linalg.qr(gaussian(240, 20)).Q
    best = np.sqrt((np.linalg.svd(centred.numpy(), compute_uv=False)[20:] ** 2).sum())
    assert float(ours) == pytest.approx(best, rel=1e-4) and ours < (centred - centred @ other @ other.T).norm()


def test_the_random_map_keeps_squared_distances_on_average_also_when_it_widens(tiny, fitted, rows):
    pairs = (rows[:300] - rows[300:600]).double()
    for dimension in (20, 240, 400):
        ratios = []
        for seed in range(20):
            detector = reduced(tiny, "random", dimension=dimension, seed=seed)
            detector.extractor = fitted["random"].extractor
            detector._learn(type("Features", (), {"rows": rows}))
            assert detector.weight.shape == (dimension, 240) and detector.output_width == dimension
            ratios.append(float(((pairs @ detector.weight.T.double()).square().sum(1) / pairs.square().sum(1)).mean()))
        assert float(np.mean(ratios)) == pytest.approx(1, abs=0.05)


def test_the_random_map_is_gaussian_of_variance_one_over_dimension_and_not_the_coresets_numbers(fitted):
    weight = fitted["random"].weight
    assert float(weight.std()) == pytest.approx(20**-0.5, rel=0.05) and abs(float(weight.mean())) < 0.02
    coresets = projection_matrix(240, 20, torch.Generator().manual_seed(0)).flatten()
    for ours in (weight.flatten(), weight.T.flatten()):
        assert abs(float(torch.corrcoef(torch.stack([ours, coresets]))[0, 1])) < 0.1


# --- the detector ---------------------------------------------------------------------------------


@every
def test_memory_and_scores_are_those_of_the_mapped_features(fitted, rows, photos, method):
    detector = fitted[method]
    features = detector.extractor.extract(photos)
    embedded = rows @ detector.weight.T
    torch.testing.assert_close(detector.memory.rows, embedded[detector.coreset.indices], rtol=1e-5, atol=1e-5)
    nearest = torch.cdist(embedded, detector.memory.rows, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    found = detector.score(features)
    torch.testing.assert_close(found.patch_scores.flatten(), nearest, rtol=1e-3, atol=1e-3)
    assert found.patch_scores.shape == (7, 8, 12) and detector.unit == "L2 distance"


@every
def test_fitting_twice_gives_the_same_bits_and_another_seed_another_coreset(tiny, fitted, photos, method):
    first, again, other = fitted[method], reduced(tiny, method).fit(photos), reduced(tiny, method, seed=5).fit(photos)
    assert torch.equal(first.weight, again.weight) and torch.equal(first.memory.rows, again.memory.rows)
    assert torch.equal(first.score(photos).image_scores, again.score(photos).image_scores)
    assert torch.equal(first.weight, other.weight) == (method != "random")
    assert not torch.equal(first.coreset.indices, other.coreset.indices)


@every
def test_a_saved_detector_comes_back_to_the_bit(fitted, photos, tmp_path, method):
    detector = fitted[method]
    folder = detector.save(tmp_path / "model")
    for loaded in (rcp.load(folder, device="cpu"), ReducedPatchCore.load(folder, device="cpu")):
        assert isinstance(loaded, ReducedPatchCore) and loaded.settings() == detector.settings()
        assert torch.equal(loaded.weight, detector.weight)
        assert torch.equal(loaded.score(photos).patch_scores, detector.score(photos).patch_scores)
        assert loaded.threshold(0.3) == detector.threshold(0.3)


@every
def test_an_image_alone_scores_as_in_company(fitted, photos, method):
    scores = fitted[method].score(photos)
    for i in (0, 5):
        alone = fitted[method].score([photos[i]])
        torch.testing.assert_close(alone.patch_scores[0], scores.patch_scores[i], atol=1e-4, rtol=1e-4)


def test_pca_as_wide_as_the_features_is_patchcore(tiny, photos):
    ours = reduced(tiny, dimension=999).fit(photos)
    theirs = PatchCore(tiny, bank=BANK, device="cpu").fit(photos)
    assert ours.output_width == ours.memory.rows.shape[1] == 240
    assert torch.equal(ours.coreset.indices, theirs.coreset.indices)
    torch.testing.assert_close(ours.score(photos).patch_scores, theirs.score(photos).patch_scores, atol=1e-3, rtol=1e-3)


def test_eq_10_can_be_switched_on_for_equal_footing(tiny, fitted, photos):
    weighted = reduced(tiny, reweight="patch").fit(photos)
    off, on = fitted["pca"].score(photos).patch_scores, weighted.score(photos).patch_scores
    assert torch.equal(weighted.weight, fitted["pca"].weight) and not torch.equal(off, on)
    assert (on <= off + 1e-5).all() and weighted.unit.endswith("Eq. 10")
    assert weighted.settings()["reweight"] == "patch" and fitted["pca"].reweight == "off"


@every
def test_half_precise_features_in_a_mapped_file_serve_as_well(tiny, photos, method, tmp_path, monkeypatch):
    half = reduced(replace(tiny, stored="float16"), method)
    whole = half.extractor.extract(photos)
    fits = rcp.MemoryLimit.fits
    monkeypatch.setattr(rcp.MemoryLimit, "fits", lambda self, count: self.max_bytes is None and fits(self, count))
    mapped = half.extractor.extract(photos, limit=rcp.MemoryLimit(max_bytes=1, folder=tmp_path))
    assert mapped.store is not None and mapped.store.file is not None and mapped.values.dtype == torch.float16
    a = half.fit(whole).weight
    b = reduced(replace(tiny, stored="float16"), method).fit(mapped).weight
    assert torch.equal(a, b) and a.dtype == torch.float32


def test_it_is_known_by_name_and_its_settings_say_what_it_is(tiny, fitted):
    assert KINDS["reduced"] is ReducedPatchCore and not hasattr(rcp, "ReducedPatchCore")
    own = {name: value for name, value in fitted["whitening"].settings().items() if name not in ("features", "bank")}
    assert own == {"method": "whitening", "dimension": 20, "reweight": "off", "seed": 0}


def test_a_map_of_another_shape_than_the_settings_say_is_refused(fitted, tmp_path):
    folder = fitted["pca"].save(tmp_path / "model")
    file = rcp.modelfile.read_model(folder)
    rcp.modelfile.write_model(folder, replace(file, tensors=file.tensors | {"map": torch.zeros(20, 3)}))
    with pytest.raises(ValueError, match=r"the tensor 'map' should be \(20, 240\)"):
        rcp.load(folder, device="cpu")


def test_unknown_methods_widths_and_scores_are_refused():
    with pytest.raises(ValueError, match="method must be one of random, pca, whitening, got 'ica'"):
        ReducedPatchCore(method="ica")
    with pytest.raises(ValueError, match="dimension must be positive, got 0"):
        ReducedPatchCore(dimension=0)
    with pytest.raises(ValueError, match="reweight must be one of"):
        ReducedPatchCore(reweight="on")
