"""The pseudo-labels (Eqs 1-6) against pair-by-pair loops, their invariances, and the bugs of the public ports."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp.similarity import (
    contextual_similarity,
    labels_with_means,
    mix,
    pairwise_similarity,
    pseudo_labels,
    similarities,
)

VECTOR = json.loads((Path(__file__).parent / "data" / "similarity.json").read_text(encoding="utf-8"))
EPS = 1e-12


def gaussian(*shape: int, seed: int = 0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(d: int, seed: int = 0):
    return torch.linalg.qr(gaussian(d, d, seed=seed)).Q


@st.composite
def batches(draw, most: int = 12):
    """Gaussian rows (no ties) and a neighbourhood size that fits."""
    n = draw(st.integers(2, most))
    z = gaussian(n, draw(st.integers(2, 6)), seed=draw(st.integers(0, 10**6)))
    return z, draw(st.integers(2, n))


@st.composite
def tied_batches(draw):
    """Few different whole numbers: copies of rows and exactly equal distances everywhere."""
    n, d, top = draw(st.integers(2, 20)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    values = draw(st.lists(st.lists(st.integers(0, top), min_size=d, max_size=d), min_size=n, max_size=n))
    return torch.tensor(values, dtype=torch.float64), draw(st.integers(2, n))


# --- slow twins: the equations, pair by pair ------------------------------------------------------


def slow_pairwise(z, sigma: float):
    rows = z.tolist()
    return torch.tensor([[math.exp(-(math.dist(a, b) ** 2) / sigma) for b in rows] for a in rows], dtype=torch.float64)


def slow_neighbours(z, k: int) -> list[set[int]]:
    """N_k(i): the k nearest, i itself first."""
    rows, n = z.tolist(), len(z)
    return [set(sorted(range(n), key=lambda j: (j != i, math.dist(rows[i], rows[j])))[:k]) for i in range(n)]


def slow_contextual(z, k: int):
    n = len(z)
    near, close = slow_neighbours(z, k), slow_neighbours(z, k // 2)
    shared = [[len(near[i] & near[j]) / len(near[i]) if j in near[i] else 0.0 for j in range(n)] for i in range(n)]
    mutual = [[j for j in range(n) if j in close[i] and i in close[j]] for i in range(n)]
    expanded = [[sum(shared[m][j] for m in mutual[i]) / len(mutual[i]) for j in range(n)] for i in range(n)]
    both = [[(expanded[i][j] + expanded[j][i]) / 2 for j in range(n)] for i in range(n)]
    return torch.tensor(both, dtype=torch.float64)


def slow_labels(z, alpha: float, sigma: float, k: int):
    pairwise, contextual, n = slow_pairwise(z, sigma), slow_contextual(z, k), len(z)
    w = torch.empty(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            w[i, j] = alpha * pairwise[i, j] + (1 - alpha) * contextual[i, j]
    return w


# --- the bugs of the ports ------------------------------------------------------------------------


def dense_contextual(z, k: int, masked: bool = True, half: bool = True, left: bool = True):
    """Eqs 2-5 by dense matrices, as the ports write them; each flag set to False is one of their bugs."""
    n = len(z)
    near, close = (torch.zeros(n, n, dtype=torch.float64) for _ in range(2))
    for matrix, size in ((near, k), (close, k // 2 if half else k)):
        for i, members in enumerate(slow_neighbours(z, size)):
            matrix[i, list(members)] = 1
    shared = near @ near.T / k  # Eq. 2 without its mask ...
    if masked:
        shared = shared * near  # ... and with it
    mutual = close * close.T  # Eq. 3, for k/2 or for k
    mean = mutual / mutual.sum(1, keepdim=True)
    expanded = mean @ shared if left else shared @ mean  # Eq. 4
    return (expanded + expanded.T) / 2


# --- against the test vector and the loops --------------------------------------------------------


def vector(name: str):
    return torch.tensor(VECTOR[name], dtype=torch.float64)


def test_contextual_similarity_equals_the_spec_test_vector():
    torch.testing.assert_close(contextual_similarity(vector("Z"), VECTOR["k"]), vector("wC"), rtol=0, atol=EPS)


def test_pseudo_labels_equal_the_spec_test_vector():
    w = pseudo_labels(vector("Z"), VECTOR["alpha"], VECTOR["sigma"], VECTOR["k"], normalize=False)
    torch.testing.assert_close(w, vector("w"), rtol=0, atol=EPS)


def test_the_slow_twins_equal_the_spec_test_vector():
    z, k = vector("Z"), VECTOR["k"]
    torch.testing.assert_close(slow_contextual(z, k), vector("wC"), rtol=0, atol=EPS)
    slow = slow_labels(z, VECTOR["alpha"], VECTOR["sigma"], k)
    torch.testing.assert_close(slow, vector("w"), rtol=0, atol=EPS)


def test_float32_gives_the_test_vector_to_float32_precision():
    z = vector("Z").float()
    w = pseudo_labels(z, VECTOR["alpha"], VECTOR["sigma"], VECTOR["k"], normalize=False)
    assert w.dtype == torch.float32
    torch.testing.assert_close(w.double(), vector("w"), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(batches(), st.floats(0.05, 20))
def test_pairwise_similarity_equals_a_pair_by_pair_loop(batch, sigma):
    z, _ = batch
    torch.testing.assert_close(pairwise_similarity(z, sigma), slow_pairwise(z, sigma), rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=100)
@given(batches())
def test_contextual_similarity_equals_a_pair_by_pair_loop(batch):
    z, k = batch
    torch.testing.assert_close(contextual_similarity(z, k), slow_contextual(z, k), rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(batches(), st.floats(0, 1), st.floats(0.05, 20))
def test_pseudo_labels_equal_a_pair_by_pair_loop(batch, alpha, sigma):
    z, k = batch
    slow = slow_labels(z, alpha, sigma, k)
    torch.testing.assert_close(pseudo_labels(z, alpha, sigma, k, normalize=False), slow, rtol=0, atol=1e-9)
    unit = z / z.norm(dim=1, keepdim=True)
    torch.testing.assert_close(pseudo_labels(z, alpha, sigma, k), slow_labels(unit, alpha, sigma, k), rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(batches(), st.floats(0.05, 20))
def test_relative_sigma_counts_in_mean_squared_distances_of_all_pairs(batch, sigma):
    z, k = batch
    rows, n = z.tolist(), len(z)
    mean = sum(math.dist(a, b) ** 2 for a in rows for b in rows) / n**2
    pairwise, contextual = similarities(z, sigma, k, normalize=False, relative_sigma=True)
    torch.testing.assert_close(pairwise, slow_pairwise(z, sigma * mean), rtol=0, atol=1e-9)
    torch.testing.assert_close(contextual, slow_contextual(z, k), rtol=0, atol=1e-9)


def test_a_large_batch_equals_the_dense_matrices():
    z = gaussian(150, 8, seed=1)
    for k in (2, 3, 5, 10, 16):
        torch.testing.assert_close(contextual_similarity(z, k), dense_contextual(z, k), rtol=0, atol=1e-9)


def test_four_points_on_a_line_by_hand():
    z = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    # k = 2: N = {0,1}, {0,1}, {1,2}, {2,3}; k/2 = 1, so that ŵ = w̃.
    shared = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0.5, 1, 0], [0, 0, 0.5, 1]])
    torch.testing.assert_close(contextual_similarity(z, 2), (shared + shared.T) / 2)
    torch.testing.assert_close(pairwise_similarity(z, 2.0)[0], torch.exp(torch.tensor([0, -0.5, -4.5, -50.0])))


def test_equal_distances_with_common_neighbours_or_without_get_the_same_pairwise_and_another_contextual_similarity():
    cluster = torch.tensor([[0.0, 0], [1, 0], [0.4, 0.3], [0.6, -0.3], [0.5, 0.2]])  # all five near each other
    side = torch.tensor([[0.0, 0], [-0.5, 0.4], [-0.6, -0.3], [-0.7, 0.1], [-0.5, -0.5]])
    gap = torch.cat([side, side * torch.tensor([-1.0, 1]) + torch.tensor([1.0, 0])]) + 10  # two such, face to face
    pairwise, contextual = similarities(torch.cat([cluster, gap]).double(), k=5, normalize=False)
    assert float(pairwise[0, 1]) == pytest.approx(float(pairwise[5, 10]), abs=1e-6)
    assert float(contextual[0, 1]) == pytest.approx(1) and float(contextual[5, 10]) == 0


# --- properties -----------------------------------------------------------------------------------


def assert_similarity(w, contextual):
    assert w.isfinite().all()
    torch.testing.assert_close(w, w.T, rtol=0, atol=EPS)
    assert w.min() >= 0 and w.max() <= 1 + EPS
    if contextual is not None:  # row i of w̃ is 1 at i and is at least 1/(k/2) of the mean
        assert (w.diagonal() >= 1 / (contextual // 2) - EPS).all()
    else:
        assert (w.diagonal() == 1).all()


@settings(deadline=None, max_examples=60)
@given(batches(most=30), st.floats(0, 1), st.booleans(), st.booleans())
def test_similarities_are_symmetric_and_between_zero_and_one(batch, alpha, normalize, relative):
    z, k = batch
    pairwise, contextual = similarities(z, 1.0, k, normalize, relative)
    assert_similarity(pairwise, None)
    assert_similarity(contextual, k)
    w = pseudo_labels(z, alpha, 1.0, k, normalize, relative)
    torch.testing.assert_close(w, w.T, rtol=0, atol=EPS)
    assert w.min() >= 0 and w.max() <= 1 + EPS
    torch.testing.assert_close(w, mix(pairwise, contextual, alpha), rtol=0, atol=EPS)


@settings(deadline=None, max_examples=100)
@given(tied_batches(), st.booleans(), st.booleans())
def test_copies_and_ties_give_no_nan_and_leave_every_patch_its_own_neighbour(batch, normalize, relative):
    z, k = batch
    pairwise, contextual = similarities(z, 1.0, k, normalize, relative)
    assert_similarity(pairwise, None)
    assert_similarity(contextual, k)


@pytest.mark.parametrize("k", [2, 3])
def test_a_patch_is_its_own_first_neighbour_even_among_more_copies_than_k(k):
    z = torch.cat([gaussian(1, 4, seed=2).repeat(9, 1), gaussian(4, 4, seed=3)])
    assert (contextual_similarity(z, k).diagonal() == 1).all()  # k/2 = 1: the diagonal is |N_k(i)| / |N_k(i)|


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_equal_rows_is_fully_alike_pairwise_and_in_range_contextually(normalize, relative, dtype):
    for value in (0.0, 1.0):
        pairwise, contextual = similarities(torch.full((9, 4), value, dtype=dtype), 1.0, 5, normalize, relative)
        assert (pairwise == 1).all()
        assert contextual.isfinite().all() and contextual.min() >= 0 and contextual.max() <= 1 + 1e-6


@settings(deadline=None, max_examples=30)
@given(batches(), st.booleans(), st.booleans())
def test_another_order_of_the_patches_only_reorders_the_labels(batch, normalize, relative):
    z, k = batch
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(k))
    w = pseudo_labels(z, 0.5, 1.0, k, normalize, relative)
    again = pseudo_labels(z[order], 0.5, 1.0, k, normalize, relative)
    torch.testing.assert_close(again, w[order][:, order], rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(batches(), st.floats(-20, 20))
def test_unnormalised_similarities_do_not_change_under_translation_and_rotation(batch, shift):
    z, k = batch
    w = pseudo_labels(z, 0.5, 1.0, k, normalize=False)
    for moved in (z + shift, z @ rotation(z.shape[1], k)):
        torch.testing.assert_close(pseudo_labels(moved, 0.5, 1.0, k, normalize=False), w, rtol=0, atol=1e-9)
    turned = pseudo_labels(z @ rotation(z.shape[1], k), 0.5, 1.0, k)
    torch.testing.assert_close(turned, pseudo_labels(z, 0.5, 1.0, k), rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(batches(), st.floats(1e-3, 1e3))
def test_the_scale_of_the_features_does_not_matter_when_normalised_or_with_a_relative_sigma(batch, scale):
    z, k = batch
    for normalize, relative in ((True, False), (False, True), (True, True)):
        w = pseudo_labels(z, 0.5, 1.0, k, normalize, relative)
        again = pseudo_labels(z * scale, 0.5, 1.0, k, normalize, relative)
        torch.testing.assert_close(again, w, rtol=0, atol=1e-9)


def test_the_scale_of_the_features_does_matter_otherwise():
    z = gaussian(12, 4, seed=4)
    assert (pairwise_similarity(3 * z) - pairwise_similarity(z)).abs().max() > 0.1


def test_a_patch_of_length_zero_survives_the_normalisation():
    z = torch.cat([torch.zeros(1, 3), gaussian(7, 3, seed=5, dtype=torch.float32)])
    assert pseudo_labels(z).isfinite().all()


def test_alpha_one_is_pairwise_and_alpha_zero_is_contextual():
    z = gaussian(12, 4, seed=6)
    pairwise, contextual = similarities(z)
    assert torch.equal(pseudo_labels(z, alpha=1.0), pairwise)
    torch.testing.assert_close(pseudo_labels(z, alpha=0.0), contextual)  # other order of addition
    torch.testing.assert_close(pseudo_labels(z), (pairwise + contextual) / 2)


def test_the_parts_agree_with_the_functions_that_give_one_each():
    z = gaussian(20, 4, seed=7)
    pairwise, contextual = similarities(z, 2.0, 4, normalize=False)
    assert torch.equal(pairwise, pairwise_similarity(z, 2.0))
    assert torch.equal(contextual, contextual_similarity(z, 4))


def test_normalisation_is_the_default_and_means_rows_of_length_one():
    z = gaussian(12, 4, seed=8)
    assert torch.equal(pseudo_labels(z), pseudo_labels(F.normalize(z, dim=1), normalize=False))
    assert not torch.allclose(pseudo_labels(z), pseudo_labels(z, normalize=False))


def test_labels_carry_no_gradient_and_leave_the_argument_alone():
    z = gaussian(8, 3, seed=9).requires_grad_()
    before = z.detach().clone()
    for w in (pairwise_similarity(z), contextual_similarity(z), pseudo_labels(z), *similarities(z)):
        assert not w.requires_grad
    assert torch.equal(z.detach(), before)


# --- labels with their means ----------------------------------------------------------------------


def mean_of_pairs(square) -> float:
    """The mean of all entries i ≠ j, one by one."""
    n = len(square)
    return sum(float(square[i, j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


@settings(deadline=None, max_examples=100)
@given(
    batches(most=20) | tied_batches(), st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1), st.floats(0.05, 20),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_labels_with_means_are_the_mix_of_both_similarities_and_their_means(batch, alpha, sigma, normalize, relative):
    z, k = batch
    before = z.clone()
    found = labels_with_means(z, alpha, sigma, k, normalize, relative)
    pairwise, contextual = similarities(z, sigma, k, normalize, relative)
    torch.testing.assert_close(found.w, mix(pairwise, contextual, alpha), rtol=0, atol=EPS)
    assert float(found.pairwise_mean) == pytest.approx(mean_of_pairs(pairwise), rel=0, abs=EPS)
    assert float(found.contextual_mean) == pytest.approx(mean_of_pairs(contextual), rel=0, abs=EPS)
    assert torch.equal(z, before)


@pytest.mark.parametrize("k", [2, 3, 4, 5, 8, 9, 60])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_labels_with_means_of_a_large_batch_equal_the_dense_matrices(k, alpha):
    z = gaussian(60, 6, seed=14)
    pairwise, contextual = slow_pairwise(z, 3.0), dense_contextual(z, k)
    w, pairwise_mean, contextual_mean = labels_with_means(z, alpha, 3.0, k, normalize=False)
    torch.testing.assert_close(w, alpha * pairwise + (1 - alpha) * contextual, rtol=0, atol=1e-9)
    assert float(pairwise_mean) == pytest.approx(mean_of_pairs(pairwise), abs=1e-9)
    assert float(contextual_mean) == pytest.approx(mean_of_pairs(contextual), abs=1e-9)


@pytest.mark.parametrize("k", [4, 5])
def test_the_means_of_four_points_on_a_line_by_hand(k):
    z = torch.tensor([[0.0], [1.0], [3.0], [10.0]], dtype=torch.float64)
    found = labels_with_means(z, 0.0, 2.0, 2, normalize=False)  # w̃, see above: 1 + 1 + ½ + ½ off the diagonal
    assert float(found.contextual_mean) == 3 / 12
    exponents = (0.5, 4.5, 50, 2, 40.5, 24.5)
    assert float(found.pairwise_mean) == pytest.approx(2 * sum(math.exp(-e) for e in exponents) / 12)
    five = torch.cat([z, z[:1] + 11])[:k]
    expected = mean_of_pairs(slow_contextual(five, k))  # k = N: everybody is everybody's neighbour
    assert float(labels_with_means(five, 0.5, 2.0, k, normalize=False).contextual_mean) == expected == 1


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_a_relative_sigma_equal_rows_are_fully_alike(value, normalize, dtype):
    z = torch.full((9, 4), value, dtype=dtype)
    w, pairwise_mean, contextual_mean = labels_with_means(z, 1.0, 0.1, 5, normalize, relative_sigma=True)
    assert (w == 1).all() and float(pairwise_mean) == 1 and 0 <= float(contextual_mean) <= 1
    assert labels_with_means(z, 0.5, 0.1, 5, normalize, relative_sigma=True).w.isfinite().all()


def test_labels_with_means_carry_no_gradient_and_keep_the_type():
    z = gaussian(12, 5, seed=15, dtype=torch.float32).requires_grad_()
    found = labels_with_means(z)
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in found)
    assert [tuple(tensor.shape) for tensor in found] == [(12, 12), (), ()]
    assert torch.equal(found.w, pseudo_labels(z))
    assert torch.equal(found.w, labels_with_means(z, 0.5, 1.0, 5, True, False).w)


@pytest.mark.parametrize("relative", [False, True])
def test_labels_with_means_ask_nothing_of_the_device(relative):
    z = torch.empty(20, 6, device="meta")  # a device that holds no numbers: any question is an error
    assert all(tensor.is_meta for tensor in labels_with_means(z, relative_sigma=relative))


def test_similarities_give_both_parts_without_changing_each_other():
    z = gaussian(15, 4, seed=16)
    pairwise, contextual = similarities(z, 1.5, 4, normalize=False)
    again = contextual_similarity(z, 4), pairwise_similarity(z, 1.5)
    assert torch.equal(contextual, again[0]) and torch.equal(pairwise, again[1])
    assert (pairwise.diagonal() == 1).all()


# --- the traps of the ports -----------------------------------------------------------------------


@pytest.mark.parametrize("bug", [{"masked": False}, {"half": False}, {"left": False}])
def test_each_bug_of_the_ports_changes_contextual_similarity(bug):
    z = gaussian(40, 6, seed=10)
    ours = contextual_similarity(z, 5)
    torch.testing.assert_close(ours, dense_contextual(z, 5), rtol=0, atol=1e-9)
    assert (ours - dense_contextual(z, 5, **bug)).abs().max() > 0.1


@pytest.mark.parametrize("k", [3, 5, 10])
def test_the_bugs_of_the_ports_together_exceed_one_and_ours_does_not(k):
    z = gaussian(60, 3, seed=2)
    assert dense_contextual(z, k, masked=False, half=False, left=False).max() > 1.1
    ours = contextual_similarity(z, k)
    assert 0 <= ours.min() and ours.max() <= 1 + EPS


def test_without_the_mask_strangers_with_a_common_neighbour_are_alike():
    z = torch.tensor([[0.0], [1.0], [1.9], [2.7]], dtype=torch.float64)  # k = 2: N(0) = {0, 1}, N(1) = {1, 2}
    near = slow_neighbours(z, 2)
    assert near[0] == {0, 1} and near[1] == {1, 2}  # 0 is no neighbour of 1, and 2 none of 0
    assert float(contextual_similarity(z, 2)[1, 0]) == 0.25  # ½ (w̃_10 + w̃_01) = ½ (0 + ½)
    assert float(dense_contextual(z, 2, masked=False)[1, 0]) == 0.5


def test_k_three_makes_query_expansion_do_nothing_and_k_four_does_not():
    z = gaussian(30, 5, seed=12)
    for k, idle in ((3, True), (4, False), (5, False)):
        near = [sorted(s) for s in slow_neighbours(z, k)]
        shared = torch.zeros(30, 30, dtype=torch.float64)
        for i in range(30):
            for j in near[i]:
                shared[i, j] = len(set(near[i]) & set(near[j])) / k
        unexpanded = (shared + shared.T) / 2
        assert torch.allclose(contextual_similarity(z, k), unexpanded, atol=1e-9) == idle


def test_sigma_one_on_features_of_realistic_scale_is_the_identity_unless_normalised_or_relative():
    z = gaussian(50, 512, seed=13, dtype=torch.float32)
    off = ~torch.eye(50, dtype=torch.bool)
    ported, _ = similarities(z, 1.0, normalize=False)
    assert (ported[off] == 0).all()
    for options in ({"normalize": True}, {"normalize": False, "relative_sigma": True}):
        pairwise, _ = similarities(z, 1.0, **options)
        assert pairwise[off].min() > 0.05 and pairwise[off].max() < 0.95


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [-1, 0, 1, 9])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match="k must lie"):
        contextual_similarity(gaussian(8, 3), k)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_a_sigma_that_is_not_positive_is_refused(sigma):
    for refuse in (lambda z: pairwise_similarity(z, sigma), lambda z: pseudo_labels(z, sigma=sigma)):
        with pytest.raises(ValueError, match="sigma"):
            refuse(gaussian(8, 3))


def test_a_relative_sigma_of_zero_is_refused():
    with pytest.raises(ValueError, match="sigma"):
        pseudo_labels(gaussian(8, 3), sigma=0.0, relative_sigma=True)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_an_alpha_outside_zero_and_one_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        pseudo_labels(gaussian(8, 3), alpha=alpha)


@pytest.mark.parametrize("z", [torch.zeros(8), torch.zeros(2, 8, 3), torch.zeros(8, 3, dtype=torch.int64)])
def test_rows_of_another_shape_or_kind_are_refused(z):
    for function in (pairwise_similarity, contextual_similarity, pseudo_labels):
        with pytest.raises(ValueError, match="floating-point"):
            function(z)


def test_labels_with_means_refuse_what_pseudo_labels_refuse():
    z = gaussian(8, 3)
    wrong = [{"alpha": -0.1}, {"alpha": math.nan}, {"sigma": 0.0}, {"sigma": -1.0}, {"k": 1}, {"k": 9}]
    wrong += [{"sigma": 0.0, "relative_sigma": True}, {"sigma": math.nan, "relative_sigma": True}]
    for options in wrong:
        with pytest.raises(ValueError, match=f"{next(iter(options))} must"):
            labels_with_means(z, **options)
    for wrong in (torch.zeros(8), torch.zeros(2, 8, 3), torch.zeros(8, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="floating-point"):
            labels_with_means(wrong)
