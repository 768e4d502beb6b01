"""Distances: rooted and squared against a plain loop, exact zeros, finite gradients where rows coincide."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp.distances import distances, root, squared_distances

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 6), st.integers(0, 10**6))


def gaussian(*shape: int, seed: int = 0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_distances(a, b):
    return torch.tensor([[math.dist(x, y) for y in b.tolist()] for x in a.tolist()], dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(SIZES)
def test_distances_to_other_rows_equal_a_plain_loop(sizes):
    n, m, d, seed = sizes
    a, b = gaussian(n, d, seed=seed), gaussian(m, d, seed=seed + 1)
    torch.testing.assert_close(squared_distances(a, b), slow_distances(a, b) ** 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(distances(a, b), slow_distances(a, b), rtol=0, atol=1e-6)  # near 0 the root loses half


@settings(deadline=None, max_examples=40)
@given(SIZES)
def test_distances_among_rows_equal_a_plain_loop(sizes):
    n, _, d, seed = sizes
    a = gaussian(n, d, seed=seed)
    torch.testing.assert_close(squared_distances(a), slow_distances(a, a) ** 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(distances(a), slow_distances(a, a), rtol=0, atol=1e-6)


def test_distances_are_rooted_and_squared_ones_are_not():
    a = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert distances(a).tolist() == [[0, 5], [5, 0]]
    assert squared_distances(a).tolist() == [[0, 25], [25, 0]]


def test_rows_of_the_result_are_rows_of_the_first_argument():
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [10.0], [20.0]])
    assert distances(a, b).tolist() == [[0, 10, 20], [1, 9, 19]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_own_diagonal_is_exactly_zero(dtype):
    for seed in range(20):
        a = gaussian(17, 23, seed=seed, dtype=dtype) * 100 + 1000
        assert (squared_distances(a).diagonal() == 0).all()
        assert (distances(a).diagonal() == 0).all()


def test_rounding_never_makes_a_squared_distance_negative():
    for seed in range(20):
        a = gaussian(40, 30, seed=seed, dtype=torch.float32)
        twice = torch.cat([a, a])
        assert (squared_distances(twice) >= 0).all()
        assert (squared_distances(twice, a) >= 0).all()
        assert distances(twice, a).isfinite().all()


def test_the_plain_matrix_product_goes_wrong_far_from_the_origin_and_ours_does_not():
    near = gaussian(30, 8, seed=1, dtype=torch.float32)
    far = near + 1024  # exact enough: the rows keep 13 bits behind the point
    truth = slow_distances(far, far)
    plain = (far.square().sum(1)[:, None] + far.square().sum(1) - 2 * far @ far.T).clamp_min(0).sqrt()
    assert (plain - truth).abs().max() > 0.1
    assert (distances(far) - truth).abs().max() < 1e-4
    assert (distances(far, far[:7]) - truth[:, :7]).abs().max() < 2e-3


def test_a_constant_added_to_both_arguments_changes_nothing():
    a, b = gaussian(9, 4, seed=2), gaussian(5, 4, seed=3)
    torch.testing.assert_close(squared_distances(a + 50, b + 50), squared_distances(a, b), rtol=0, atol=1e-10)


def test_the_arguments_are_not_changed():
    a, b = gaussian(6, 3, seed=4), gaussian(4, 3, seed=5)
    copies = a.clone(), b.clone()
    distances(a), distances(a, b), squared_distances(a, b)
    assert torch.equal(a, copies[0]) and torch.equal(b, copies[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_stays(dtype):
    a = gaussian(3, 2, dtype=dtype)
    assert squared_distances(a).dtype == distances(a, a[:1]).dtype == dtype


def test_one_row_is_at_distance_zero_from_itself():
    assert distances(gaussian(1, 5)).tolist() == [[0.0]]


def test_root_is_the_square_root_with_gradient_zero_at_zero():
    x = torch.tensor([0.0, 4.0, 9.0], requires_grad=True)
    root(x).sum().backward()
    assert root(x).tolist() == [0, 2, 3]
    torch.testing.assert_close(x.grad, torch.tensor([0, 1 / 4, 1 / 6]))


def test_rows_that_are_near_but_not_equal_keep_their_distance():
    x = torch.tensor([1e-30, 1e-12, 1e-6], dtype=torch.float64)
    torch.testing.assert_close(root(x), x.sqrt(), rtol=1e-12, atol=0)
    assert float(distances(torch.tensor([[0.0], [2.0**-40]]))[0, 1]) == 2.0**-40


def test_the_plain_square_root_gives_nan_gradients_where_rows_coincide_and_ours_does_not():
    rows = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    plain, ours = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    (plain[:, None] - plain).square().sum(2).sqrt().sum().backward()
    distances(ours).sum().backward()
    assert plain.grad.isnan().any()
    torch.testing.assert_close(ours.grad, torch.tensor([[-1.2, -1.6], [-1.2, -1.6], [2.4, 3.2]]))


def test_gradients_equal_finite_differences():
    a, b = gaussian(5, 3, seed=6).requires_grad_(), gaussian(4, 3, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(squared_distances, (a, b))
    assert torch.autograd.gradcheck(distances, (a, b))
    assert torch.autograd.gradcheck(distances, (a,))


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-2), (torch.float64, 1e-6)])
def test_exact_copies_pull_on_nobody(dtype, close):
    a = gaussian(10, 16, seed=8, dtype=dtype).repeat(4, 1).requires_grad_()
    distances(a).sum().backward()
    lines = a.detach()[:, None] - a.detach()  # the gradient is the sum of 2 unit vectors to every row that is elsewhere
    expected = 2 * torch.nn.functional.normalize(lines, dim=2).sum(1)
    torch.testing.assert_close(a.grad, expected, rtol=0, atol=close)
