"""The relaxed contrastive loss (Eq. 7) against a pair-by-pair loop, its gradient, and the traps of the public ports."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rcp.loss
from rcp.distances import distances, squared_distances
from rcp.loss import (
    loss_and_gradient,
    loss_of_distances,
    pushed_share,
    relative_distances,
    relaxed_contrastive_loss,
)

VECTOR = json.loads((Path(__file__).parent / "data" / "similarity.json").read_text(encoding="utf-8"))
BATCHES = st.tuples(st.integers(2, 10), st.integers(2, 6), st.integers(0, 10**6))  # rows, columns, seed
MARGINS = st.floats(0, 3)


def gaussian(*shape: int, seed: int = 0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(n: int, seed: int = 0):
    return torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d: int, seed: int = 0):
    return torch.linalg.qr(gaussian(d, d, seed=seed)).Q


# --- slow twin: the definitions, pair by pair -----------------------------------------------------


def slow_relative(z) -> list[list[float]]:
    z = z.tolist()
    n = len(z)
    return [[math.dist(z[i], z[j]) / (sum(math.dist(z[i], r) for r in z) / n) for j in range(n)] for i in range(n)]


def slow_loss(z, w, margin: float) -> float:
    delta, n = slow_relative(z), len(z)
    total = 0.0
    for i in range(n):
        for j in range(n):
            wij = float(w[i, j])
            total += wij * delta[i][j] ** 2 + (1 - wij) * max(margin - delta[i][j], 0.0) ** 2
    return total / n


# --- the bugs of the ports ------------------------------------------------------------------------


def ported_squared_relative(z):
    """Squared distances where Eq. 7 has rooted ones."""
    d2 = squared_distances(z)
    return d2 / d2.mean(1, keepdim=True)


def ported_detached_relative(z):
    """The mean distance as a constant: another gradient."""
    d = distances(z)
    return d / d.mean(1, keepdim=True).detach()


def ported_loss_over_pairs(z, w, margin=1.0):
    """1/N² where Eq. 7 has 1/N."""
    return relaxed_contrastive_loss(z, w, margin) / len(z)


# --- Eq. 7 ----------------------------------------------------------------------------------------


def test_the_loss_equals_the_spec_test_vector():
    z, w = (torch.tensor(VECTOR[name], dtype=torch.float64) for name in ("z", "w"))
    assert float(relaxed_contrastive_loss(z, w, VECTOR["m"])) == pytest.approx(VECTOR["loss"], rel=0, abs=1e-12)


def test_the_slow_twin_equals_the_spec_test_vector():
    z, w = (torch.tensor(VECTOR[name], dtype=torch.float64) for name in ("z", "w"))
    assert slow_loss(z, w, VECTOR["m"]) == pytest.approx(VECTOR["loss"], rel=0, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(BATCHES, MARGINS)
def test_the_loss_equals_a_pair_by_pair_loop(batch, margin):
    n, d, seed = batch
    z, w = gaussian(n, d, seed=seed), labels(n, seed)
    assert float(relaxed_contrastive_loss(z, w, margin)) == pytest.approx(slow_loss(z, w, margin), rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(BATCHES)
def test_relative_distances_equal_a_pair_by_pair_loop_with_rows_of_mean_one(batch):
    n, d, seed = batch
    delta = relative_distances(gaussian(n, d, seed=seed))
    slow = torch.tensor(slow_relative(gaussian(n, d, seed=seed)), dtype=torch.float64)
    torch.testing.assert_close(delta, slow, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(delta.mean(1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (delta.diagonal() == 0).all()


def test_relative_distances_of_three_points_on_a_line_by_hand():
    delta = relative_distances(torch.tensor([[0.0], [1.0], [3.0]]))
    expected = torch.tensor([[0, 3 / 4, 9 / 4], [1, 0, 2], [9 / 5, 6 / 5, 0]])
    torch.testing.assert_close(delta, expected)
    assert not torch.allclose(delta, delta.T)  # row i is divided by the mean of row i


def test_the_loss_of_two_points_by_hand():
    z = torch.tensor([[0.0], [5.0]])  # δ off the diagonal: 5 / (5/2) = 2
    w = torch.tensor([[0.75, 0.5], [0.25, 1.0]])
    assert float(relaxed_contrastive_loss(z, w, margin=1.0)) == pytest.approx((0.25 + 0.5 * 4 + 0.25 * 4) / 2)
    pushed = 0.25 * 9 + (0.5 * 4 + 0.5) + (0.25 * 4 + 0.75)
    assert float(relaxed_contrastive_loss(z, w, margin=3.0)) == pytest.approx(pushed / 2)


def test_w_one_only_pulls_and_w_zero_only_pushes():
    z, n = gaussian(7, 3, seed=1), 7
    delta = relative_distances(z)
    pull = relaxed_contrastive_loss(z, torch.ones(n, n, dtype=z.dtype), 1.0)
    push = relaxed_contrastive_loss(z, torch.zeros(n, n, dtype=z.dtype), 1.0)
    torch.testing.assert_close(pull, delta.square().sum() / n)
    torch.testing.assert_close(push, (1 - delta).clamp_min(0).square().sum() / n)


def test_loss_of_distances_is_the_loss_of_relative_distances():
    z, w = gaussian(8, 4, seed=2), labels(8, 2)
    assert torch.equal(loss_of_distances(relative_distances(z), w, 0.7), relaxed_contrastive_loss(z, w, 0.7))


def test_the_margin_is_one_unless_said():
    z, w = gaussian(8, 4, seed=3), labels(8, 3)
    assert torch.equal(relaxed_contrastive_loss(z, w), relaxed_contrastive_loss(z, w, 1.0))
    delta = relative_distances(z)
    assert torch.equal(loss_of_distances(delta, w), loss_of_distances(delta, w, 1.0))
    assert pushed_share(delta) == pushed_share(delta, 1.0)


@settings(deadline=None, max_examples=40)
@given(BATCHES, st.floats(1e-3, 1e3))
def test_the_loss_does_not_change_with_scale_translation_and_rotation_of_z(batch, scale):
    n, d, seed = batch
    z, w = gaussian(n, d, seed=seed), labels(n, seed)
    loss = float(relaxed_contrastive_loss(z, w))
    for moved in (z * scale, z + 7, z @ rotation(d, seed + 1)):
        assert float(relaxed_contrastive_loss(moved, w)) == pytest.approx(loss, rel=1e-8)


@settings(deadline=None, max_examples=30)
@given(BATCHES)
def test_the_loss_does_not_change_with_the_order_of_the_patches(batch):
    n, d, seed = batch
    z, w = gaussian(n, d, seed=seed), labels(n, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    again = relaxed_contrastive_loss(z[order], w[order][:, order])
    assert float(again) == pytest.approx(float(relaxed_contrastive_loss(z, w)), rel=1e-9)


# --- gradient -------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.1, 1.0, 2.5])
def test_the_gradient_equals_finite_differences(margin):
    z, w = gaussian(6, 3, seed=4).requires_grad_(), labels(6, 4)
    assert torch.autograd.gradcheck(lambda z: relaxed_contrastive_loss(z, w, margin), (z,))


def test_the_gradient_flows_through_the_mean_distance():
    w = labels(6, 5)
    ours, detached = (gaussian(6, 3, seed=5).requires_grad_() for _ in range(2))
    loss = relaxed_contrastive_loss(ours, w)
    ported = loss_of_distances(ported_detached_relative(detached), w)
    loss.backward(), ported.backward()
    assert loss.item() == pytest.approx(ported.item())  # the value tells nothing: only the gradient differs
    assert (ours.grad - detached.grad).norm() > 0.1 * ours.grad.norm()
    # A loss that does not change with scale has no gradient along z itself: with the mean held fixed it has.
    assert abs((ours.grad * ours).sum().item()) < 1e-10
    assert abs((detached.grad * detached).sum().item()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_of_a_row_give_no_nan(dtype):
    z = gaussian(6, 5, seed=6, dtype=dtype)
    for copies in (torch.cat([z, z[:2], z[:1]]), torch.cat([z, z]), (z * 4).round().repeat(3, 1)):
        copies = copies.requires_grad_()
        loss = relaxed_contrastive_loss(copies, labels(len(copies), 6).to(dtype))
        loss.backward()
        assert loss.isfinite() and copies.grad.isfinite().all()


def test_a_batch_of_equal_rows_has_distances_zero_and_no_gradient():
    z, w = torch.ones(4, 3, dtype=torch.float64).requires_grad_(), labels(4, 7)
    assert (relative_distances(z) == 0).all()
    loss = relaxed_contrastive_loss(z, w, margin=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(4 * (1 - w).sum().item() / 4)  # m² (1 - w), over N
    assert (z.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_equal_arbitrary_rows_stays_finite(dtype):
    for seed in range(20):
        z = (gaussian(1, 9, seed=seed, dtype=dtype) * 30).repeat(13, 1).requires_grad_()
        loss = relaxed_contrastive_loss(z, labels(13, seed).to(dtype))
        loss.backward()
        assert loss.isfinite() and z.grad.isfinite().all()


def test_the_pair_labels_get_no_gradient_of_their_own():
    z, w = gaussian(5, 2, seed=8).requires_grad_(), labels(5, 8)
    relaxed_contrastive_loss(z, w).backward()
    assert w.grad is None and not w.requires_grad


def test_descending_the_loss_with_fixed_labels_separates_two_mixed_clusters():
    z = gaussian(12, 2, seed=9).requires_grad_()
    kind = torch.arange(12) % 2
    w = (kind[:, None] == kind).double()
    optimizer = torch.optim.SGD([z], lr=0.05)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = relaxed_contrastive_loss(z, w)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    d = distances(z.detach())
    assert losses[-1] < losses[0] / 10
    assert d[w == 1].max() < d[w == 0].min() / 2


# --- the gradient by hand -------------------------------------------------------------------------


def by_autograd(z, w, margin: float):
    """(loss, gradient, δ) as autograd has them."""
    z = z.detach().clone().requires_grad_()
    loss = relaxed_contrastive_loss(z, w, margin)
    loss.backward()
    return loss.detach(), z.grad, relative_distances(z.detach())


def assert_as_autograd(z, w, margin: float, **tolerance):
    for ours, theirs in zip(loss_and_gradient(z, w, margin), by_autograd(z, w, margin), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@st.composite
def labelled(draw, n: int):
    """Labels of n patches: all 0, all 1, the same for all pairs, or at random, and then not symmetric."""
    kind = draw(st.sampled_from(["zeros", "ones", "equal", "random", "corners"]))
    if kind == "random":
        return labels(n, draw(st.integers(0, 10**6)))
    if kind == "corners":
        return labels(n, draw(st.integers(0, 10**6))).round()
    return torch.full((n, n), {"zeros": 0.0, "ones": 1.0}.get(kind) or draw(st.floats(0, 1)), dtype=torch.float64)


@st.composite
def symmetric_batches(draw):
    """Small whole numbers around 0, each row with its mirror image: copies have a distance of exactly 0."""
    n, d = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(st.integers(-2, 2), min_size=d, max_size=d), min_size=n, max_size=n))
    z = torch.tensor(rows, dtype=torch.float64)
    z = torch.cat([z, -z, torch.zeros(draw(st.integers(0, 2)), d, dtype=torch.float64)])
    return z[torch.randperm(len(z), generator=torch.Generator().manual_seed(draw(st.integers(0, 100))))]


@settings(deadline=None, max_examples=100)
@given(BATCHES, st.sampled_from([0.0, 0.1, 1.0]) | MARGINS, st.data())
def test_loss_and_gradient_equal_autograd(batch, margin, data):
    n, d, seed = batch
    assert_as_autograd(gaussian(n, d, seed=seed), data.draw(labelled(n)), margin, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=100)
@given(symmetric_batches(), st.sampled_from([0.0, 0.5, 1.0, 2.0]) | MARGINS, st.data())
def test_loss_and_gradient_equal_autograd_beside_exact_copies(z, margin, data):
    assert_as_autograd(z, data.draw(labelled(len(z))), margin, rtol=1e-10, atol=1e-10)


def test_copies_whose_distance_is_not_exactly_zero_get_the_gradient_of_autograd_to_rounding():
    z = gaussian(20, 8, seed=14)
    z = torch.cat([z, z[:7], z[:3]]) + 3
    assert 0 < int((distances(z) < 1e-6).sum()) - 30
    assert_as_autograd(z, labels(30, 14), 1.0, rtol=0, atol=1e-7)


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-4])
def test_two_rows_that_are_all_but_copies_push_each_other(apart):
    z, w = gaussian(9, 4, seed=21), labels(9, 21)
    z[1] = z[0] + apart * torch.eye(4, dtype=torch.float64)[2]
    assert_as_autograd(z, w, 1.0, rtol=0, atol=1e-6)
    without = w.clone()
    without[0, 1] = without[1, 0] = 1  # the label of the two alone is worth more than that
    assert (loss_and_gradient(z, w).gradient - loss_and_gradient(z, without).gradient).abs().max() > 1e-2


@pytest.mark.parametrize("n", [3, 4, 5, 8, 9, 13])
def test_in_blocks_the_gradient_is_the_same(n, monkeypatch):
    monkeypatch.setattr(rcp.loss, "BLOCK", 4)
    z, w = gaussian(n, 3, seed=22), labels(n, 22)
    z[1], before = z[0], w.clone()
    assert_as_autograd(z, w, 1.0, rtol=0, atol=1e-7)
    assert_as_autograd(z[1:], w[1:, 1:], 1.0, rtol=1e-10, atol=1e-10)
    assert torch.equal(w, before)


@pytest.mark.parametrize("n", [2, 3, 50, 1200])
def test_loss_and_gradient_equal_autograd_in_float32_and_in_large_batches(n):
    z, w = gaussian(n, 40, seed=15, dtype=torch.float32), labels(n, 15).float()
    assert_as_autograd(z, w, 1.0, rtol=1e-4, atol=1e-6)
    loss, gradient, delta = loss_and_gradient(z, w)
    assert loss.shape == () and gradient.shape == z.shape and delta.shape == w.shape
    assert loss.dtype == gradient.dtype == delta.dtype == torch.float32


def test_the_gradient_by_hand_equals_finite_differences_of_the_loop():
    z, w, step = gaussian(5, 3, seed=16), labels(5, 16), 1e-6
    gradient = loss_and_gradient(z, w, 1.2).gradient
    for i in range(5):
        for j in range(3):
            up, down = z.clone(), z.clone()
            up[i, j] += step
            down[i, j] -= step
            slope = (slow_loss(up, w, 1.2) - slow_loss(down, w, 1.2)) / (2 * step)
            assert float(gradient[i, j]) == pytest.approx(slope, abs=1e-7)


def test_loss_and_gradient_equal_the_spec_test_vector():
    z, w = (torch.tensor(VECTOR[name], dtype=torch.float64) for name in ("z", "w"))
    assert float(loss_and_gradient(z, w, VECTOR["m"]).loss) == pytest.approx(VECTOR["loss"], rel=0, abs=1e-12)


def test_the_margin_of_loss_and_gradient_is_one_unless_said():
    z, w = gaussian(8, 4, seed=17), labels(8, 17)
    for ours, theirs in zip(loss_and_gradient(z, w), loss_and_gradient(z, w, 1.0), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equal_rows_the_loss_is_the_margins_and_there_is_no_gradient(value, dtype):
    w = labels(4, 18).to(dtype)
    loss, gradient, delta = loss_and_gradient(torch.full((4, 3), value, dtype=dtype), w, margin=2.0)
    torch.testing.assert_close(loss, 4 * (1 - w).sum() / 4)
    assert (gradient == 0).all() and (delta == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_and_equal_arbitrary_rows_stay_finite_without_autograd(dtype):
    for seed in range(20):
        z = gaussian(6, 9, seed=seed, dtype=dtype) * 30
        for rows in (z[:1].repeat(13, 1), torch.cat([z, z[:2], z[:1]]), z.repeat(2, 1), (z / 10).round().repeat(3, 1)):
            loss, gradient, delta = loss_and_gradient(rows, labels(len(rows), seed).to(dtype))
            assert loss.isfinite() and gradient.isfinite().all() and delta.isfinite().all()


@pytest.mark.parametrize("shift", [0.0, 1e2, 1e4])
def test_far_from_the_origin_the_gradient_stays_accurate(shift):
    z, w = gaussian(40, 16, seed=19), labels(40, 19)
    far = (z + shift).float()  # what of z is lost here, is lost before
    loss, gradient, _ = by_autograd(far.double(), w, 1.0)
    ours = loss_and_gradient(far, w.float())
    assert float(ours.loss) == pytest.approx(float(loss), rel=1e-5)
    assert float((ours.gradient - gradient).norm()) < 1e-5 * float(gradient.norm())


@settings(deadline=None, max_examples=30)
@given(BATCHES)
def test_the_gradient_by_hand_moves_neither_the_middle_nor_the_scale(batch):
    n, d, seed = batch
    z = gaussian(n, d, seed=seed)
    gradient = loss_and_gradient(z, labels(n, seed)).gradient
    assert float(gradient.sum(0).abs().max()) < 1e-10 and abs(float((gradient * z).sum())) < 1e-10


def test_loss_and_gradient_change_nothing_that_they_are_given_and_record_no_gradient():
    z, w = gaussian(7, 3, seed=20).requires_grad_(), labels(7, 20)
    before = z.detach().clone(), w.clone()
    found = loss_and_gradient(z, w)
    assert torch.equal(z.detach(), before[0]) and torch.equal(w, before[1]) and z.grad is None
    assert not any(tensor.requires_grad for tensor in found)


# --- the traps of the ports -----------------------------------------------------------------------


def test_the_loss_is_divided_by_n_so_a_doubled_batch_doubles_it():
    z, w = gaussian(6, 3, seed=10), labels(6, 10)
    twice, w4 = torch.cat([z, z]), w.repeat(2, 2)  # δ stays: every mean stays
    ours = relaxed_contrastive_loss(twice, w4) / relaxed_contrastive_loss(z, w)
    ported = ported_loss_over_pairs(twice, w4) / ported_loss_over_pairs(z, w)
    assert float(ours) == pytest.approx(2, abs=1e-6)
    assert float(ported) == pytest.approx(1, abs=1e-6)


def test_relative_distances_are_rooted_so_a_point_twice_as_far_counts_twice():
    z = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    ours, ported = relative_distances(z), ported_squared_relative(z)
    assert float(ours[0, 2] / ours[0, 1]) == pytest.approx(2)
    assert float(ported[0, 2] / ported[0, 1]) == pytest.approx(4)
    z, w = gaussian(8, 3, seed=11), labels(8, 11)
    wrong = float(loss_of_distances(ported_squared_relative(z), w))
    assert abs(wrong - slow_loss(z, w, 1.0)) > 0.1
    assert float(relaxed_contrastive_loss(z, w)) == pytest.approx(slow_loss(z, w, 1.0), abs=1e-9)


def test_margin_a_tenth_pushes_next_to_nothing_and_margin_one_about_a_third_of_gaussian_features():
    delta = relative_distances(gaussian(64, 512, seed=12, dtype=torch.float32))
    assert pushed_share(delta, 0.1) == 0
    assert 0.2 < pushed_share(delta, 1.0) < 0.45
    wide = relative_distances(gaussian(200, 32, seed=12, dtype=torch.float32))
    assert pushed_share(wide, 0.1) == 0
    assert 0.2 < pushed_share(wide, 1.0) < 0.55


def test_with_margin_a_tenth_a_batch_without_labels_has_no_gradient_at_all():
    apart = torch.eye(64, dtype=torch.float64)  # every pair unlike
    norms = []
    for margin in (0.1, 1.0):
        z = gaussian(64, 128, seed=13).requires_grad_()
        relaxed_contrastive_loss(z, apart, margin).backward()
        norms.append(float(z.grad.norm()))
    assert norms[0] == 0 and norms[1] > 1e-3


# --- the share of pushed pairs --------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(BATCHES, MARGINS)
def test_the_pushed_share_equals_a_loop_over_pairs(batch, margin):
    n, d, seed = batch
    delta = relative_distances(gaussian(n, d, seed=seed))
    pairs = [float(delta[i, j]) < margin for i in range(n) for j in range(n) if i != j]
    assert pushed_share(delta, margin) == pytest.approx(sum(pairs) / len(pairs))


def test_the_pushed_share_leaves_the_diagonal_out_and_counts_only_strictly_nearer_pairs():
    delta = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    assert pushed_share(delta, 1.0) == 0.5
    assert pushed_share(delta, 0.5) == 0
    assert pushed_share(delta, 0.0) == 0
    assert pushed_share(delta, 1.5) == 1


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (1, 5), (0, 5), (2, 3, 4)])
def test_a_batch_that_is_no_batch_is_refused(shape):
    with pytest.raises(ValueError, match="at least two rows"):
        relative_distances(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(5, 4), (4,), (3, 3)])
def test_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="w must be"):
        relaxed_contrastive_loss(torch.zeros(4, 2), torch.zeros(shape))


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match="margin"):
        relaxed_contrastive_loss(torch.zeros(4, 2), torch.zeros(4, 4), -0.1)


def test_loss_and_gradient_refuse_what_the_loss_refuses():
    for shape in ((5,), (1, 5), (0, 5), (2, 3, 4)):
        with pytest.raises(ValueError, match="at least two rows"):
            loss_and_gradient(torch.zeros(shape), torch.zeros(2, 2))
    for shape in ((5, 4), (4,), (3, 3), (4, 4, 1)):
        with pytest.raises(ValueError, match=r"w must be \(4, 4\) for 4 patches"):
            loss_and_gradient(torch.zeros(4, 2), torch.zeros(shape))
    with pytest.raises(ValueError, match="margin must not be negative, got -0.1"):
        loss_and_gradient(torch.zeros(4, 2), torch.zeros(4, 4), -0.1)
