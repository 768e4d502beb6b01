"""AdamP against timm's, in each of its three cases: at a right angle row by row, only as a whole, or not at all."""

from __future__ import annotations

import math

import pytest
import timm.optim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from rcp.adamp import BETAS, DECAY_SHARE, EPS, RIGHT_ANGLE, AdamP
from rcp.checkpoint import MOMENTS

SHAPES = [(9, 6), (4, 17), (1, 8), (5, 1)]
CASES = ("rows", "whole", "neither")
TOLERANCE = {torch.float64: {"rtol": 0, "atol": 1e-12}, torch.float32: {"rtol": 1e-5, "atol": 1e-6}}


def gaussian(*shape: int, seed: int = 0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def across(p, g):
    """g without the part along p, taken as one long vector."""
    return g - p * (g * p).sum() / p.square().sum()


def gradient(p, case: str, seed: int):
    """A gradient at a right angle to every row of p, to p as a whole but to no row, or to neither."""
    p = p.detach().double()
    g = gaussian(*p.shape, seed=seed)
    if case == "rows":
        return torch.stack([across(row, part) for row, part in zip(p, g, strict=True)])
    along = p * gaussian(len(p), 1, seed=seed + 1).sign() * (1 + gaussian(len(p), 1, seed=seed + 2).abs())
    return across(p, along) if case == "whole" else 0.1 * g + p


def cosines(p, g) -> tuple[float, float]:
    """The largest |cos| of a row, over its limit, and that of the whole."""
    p, g = p.detach().double(), g.double()
    rows = ((p * g).sum(1) / (p.norm(dim=1) * g.norm(dim=1)).clamp_min(EPS)).abs()
    whole = float((p * g).sum().abs() / (p.norm() * g.norm()).clamp_min(EPS))
    return float(rows.max()) / (RIGHT_ANGLE / p.shape[1] ** 0.5), whole / (RIGHT_ANGLE / p.numel() ** 0.5)


class Race:
    """Our optimiser and timm's, side by side, from the same matrices with the same gradients."""

    def __init__(self, *starts, lr: float = 1e-2, weight_decay: float = 0.3):
        self.ours, self.theirs = ([start.clone().requires_grad_() for start in starts] for _ in range(2))
        self.fast = AdamP(self.ours, lr=lr, weight_decay=weight_decay)
        self.slow = timm.optim.AdamP(
            self.theirs, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.999), eps=1e-8, delta=0.1, wd_ratio=0.1
        )

    def step(self, gradients, lr: float | None = None) -> None:
        for p, twin, g in zip(self.ours, self.theirs, gradients, strict=True):
            p.grad, twin.grad = g.to(p), g.to(p)
        for optimizer in (self.fast, self.slow):
            optimizer.param_groups[0]["lr"] = lr or optimizer.param_groups[0]["lr"]
            optimizer.step()

    def check(self) -> None:
        for p, twin in zip(self.ours, self.theirs, strict=True):
            torch.testing.assert_close(p, twin, **TOLERANCE[p.dtype])


# --- against timm ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(9, 6), (4, 17)])
@pytest.mark.parametrize("case", CASES)
def test_many_steps_equal_timms_in_each_case(case, shape, weight_decay, dtype):
    race = Race(gaussian(*shape, seed=1, dtype=dtype), weight_decay=weight_decay)
    for step in range(50):
        g = gradient(race.theirs[0], case, 2 * step)
        row, whole = cosines(race.theirs[0], g)
        assert {"rows": row < 1e-3, "whole": row > 2 and whole < 1e-3, "neither": row > 2 and whole > 2}[case]
        race.step([g])
        race.check()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(SHAPES), st.integers(0, 10**6), st.lists(st.sampled_from(CASES), min_size=1, max_size=12),
    st.sampled_from([0.0, 1e-2, 0.5]), st.floats(1e-3, 1e3),
)  # fmt: skip
def test_any_sequence_of_cases_equals_timms_at_any_scale_while_the_learning_rate_changes(
    shape, seed, sequence, weight_decay, scale
):
    race = Race(gaussian(*shape, seed=seed), weight_decay=weight_decay)
    for step, case in enumerate(sequence):
        race.step([scale * gradient(race.theirs[0], case, seed + 2 * step)], lr=1e-2 * (1 + math.cos(step)))
        race.check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_random_gradients_along_a_cosine_of_learning_rates_equal_timms_on_several_matrices(dtype):
    race = Race(*(gaussian(*shape, seed=i, dtype=dtype) for i, shape in enumerate(SHAPES)))
    for step in range(100):
        gradients = [gaussian(*p.shape, seed=10 * step + i) * 10**-i for i, p in enumerate(race.ours)]
        race.step(gradients, lr=1e-2 * (1 + math.cos(math.pi * step / 100)))
    race.check()
    for p, twin in zip(race.ours, race.theirs, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(race.fast.state[p][name], race.slow.state[twin][name], **TOLERANCE[dtype])


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_rows_of_any_length_close_to_a_right_angle_equal_timms(share):
    race = Race(gaussian(5, 6, seed=2) * torch.tensor([1e-2, 1, 1e2, 1, 1e-1], dtype=torch.float64)[:, None])
    for step in range(10):
        p, g = race.theirs[0].detach(), gradient(race.theirs[0], "rows", step)
        tangent = torch.full((5, 1), 0.9, dtype=torch.float64) * RIGHT_ANGLE / 6**0.5
        tangent[0] *= share / 0.9  # the shortest row decides
        g = g / g.norm(dim=1, keepdim=True) + tangent * p / p.norm(dim=1, keepdim=True)
        assert (cosines(p, g)[0] < 1) is (share < 1)
        race.step([g])
        race.check()


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_weights_close_to_a_right_angle_as_a_whole_equal_timms(share):
    race = Race(gaussian(5, 6, seed=2))
    for step in range(10):
        p, g = race.theirs[0].detach(), gradient(race.theirs[0], "rows", step)
        g[2] *= 0.1
        along = torch.zeros_like(p)
        along[2] = p[2]  # one row is far from a right angle, and decides about the whole
        g = g / g.norm() + along * share * RIGHT_ANGLE / 30**0.5 * float(p.norm()) / float(p[2].norm()) ** 2
        row, whole = cosines(p, g)
        assert row > 1 and (whole < 1) is (share < 1)
        race.step([g])
        race.check()


@pytest.mark.parametrize("kind", ["all", "a row", "weights"])
def test_gradients_and_weights_of_zero_equal_timms(kind):
    start = gaussian(5, 7, seed=3)
    if kind == "weights":
        start[1] = 0
    race = Race(start)
    for step in range(5):
        g = gaussian(5, 7, seed=step)
        g[slice(None) if kind == "all" else 2] *= kind == "weights"
        race.step([g])
        race.check()
    assert race.ours[0].isfinite().all()


# --- what it is for -------------------------------------------------------------------------------


def test_one_step_by_hand_when_every_row_is_at_a_right_angle():
    p, g = torch.tensor([[3.0, 0], [0, 2]]).double(), torch.tensor([[0.0, 5], [-1, 0]]).double()
    moved = p.clone().requires_grad_()
    moved.grad = g
    AdamP([moved], lr=0.1, weight_decay=0.5).step()  # Adam's first step is the sign of the gradient
    expected = torch.tensor([[3.0, -0.1], [0.1, 2]]).double()
    expected[[0, 1], [0, 1]] *= 1 - 0.1 * 0.5 * DECAY_SHARE  # and points across already
    torch.testing.assert_close(moved.detach(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("case", "groups"), [("rows", 1), ("whole", 0)])
def test_what_moves_is_at_a_right_angle_to_the_weights(case, groups):
    p = gaussian(9, 6, seed=4).requires_grad_()
    optimizer = AdamP([p], lr=1e-3, weight_decay=0.0)
    for step in range(6):
        before = p.detach().clone()
        p.grad = gradient(p, case, 2 * step)
        optimizer.step()
        products = (before * (p.detach() - before)).sum(1)
        assert float((products if groups else products.sum()).abs().max()) < 1e-9
    assert float((p.detach() - gaussian(9, 6, seed=4)).norm()) > 1e-2


def test_without_a_right_angle_it_is_adam_with_decoupled_decay():
    start = gaussian(6, 4, seed=5)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    fast = AdamP([ours], lr=1e-2, weight_decay=0.2)
    slow = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.2, betas=BETAS, eps=EPS)
    for step in range(20):
        ours.grad, theirs.grad = (gradient(theirs, "neither", step) for _ in range(2))
        fast.step(), slow.step()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


# --- its state ------------------------------------------------------------------------------------


def test_the_state_has_the_names_that_a_checkpoint_keeps_and_one_of_it_goes_on():
    whole, first = (Race(gaussian(9, 6, seed=6)) for _ in range(2))
    for step in range(7):
        whole.step([gaussian(9, 6, seed=step)])
    for step in range(3):
        first.step([gaussian(9, 6, seed=step)])
    state = first.fast.state[first.ours[0]]
    assert set(state) == {"step", *MOMENTS} == {"step", "exp_avg", "exp_avg_sq"} and state["step"] == 3
    resumed = Race(first.ours[0].detach())
    resumed.fast.state[resumed.ours[0]] = {k: v.clone() if k in MOMENTS else v for k, v in state.items()}
    for step in range(3, 7):
        resumed.ours[0].grad = gaussian(9, 6, seed=step)
        resumed.fast.step()
    assert torch.equal(resumed.ours[0], whole.ours[0])


def test_a_step_leaves_the_gradient_alone_and_the_matrix_where_it_lies():
    p = gaussian(9, 6).requires_grad_()
    p.grad = gaussian(9, 6, seed=1)
    place, before = p.data_ptr(), p.grad.clone()
    optimizer = AdamP([p], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.step()
    assert p.data_ptr() == place and torch.equal(p.grad, before) and p.requires_grad


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match=r"moves matrices, got a parameter of shape \("):
        AdamP([torch.zeros(2, 2), torch.zeros(shape)], lr=0.1, weight_decay=0.0)


# --- what would be slow ---------------------------------------------------------------------------


class Log(TorchDispatchMode):
    """The names of all operations, and the results that lie in room of their own."""

    def __init__(self, *known):
        super().__init__()
        self.places = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.names: set[str] = set()
        self.fresh: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.add(function.overloadpacket._qualified_op_name)
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.places:
                self.fresh.append(tensor.numel())
        return result


def test_a_step_makes_no_matrix():
    p = gaussian(64, 32).requires_grad_()
    p.grad = gaussian(64, 32, seed=1)
    optimizer = AdamP([p], lr=0.1, weight_decay=0.1)
    optimizer.step()
    state = optimizer.state[p]
    with Log(p, p.grad, state["exp_avg"], state["exp_avg_sq"], *optimizer._room.values()) as log:
        optimizer.step()
    assert log.names and max(log.fresh) <= 64  # a number a row


def test_a_step_asks_nothing_of_the_device():
    p = torch.empty(9, 6, device="meta").requires_grad_()  # a device that holds no numbers: any question is an error
    p.grad = torch.empty(9, 6, device="meta")
    optimizer = AdamP([p], lr=0.1, weight_decay=0.1)
    optimizer.step(), optimizer.step()
    assert optimizer.state[p]["exp_avg"].is_meta and optimizer.state[p]["step"] == 2


def test_the_check_above_finds_timms_questions():
    p = torch.empty(9, 6, device="meta").requires_grad_()
    p.grad = torch.empty(9, 6, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        timm.optim.AdamP([p], lr=0.1).step()
