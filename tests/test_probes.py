"""The probes: a feature that is the position, noise, a slow twin, and what must not change the answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rcp import probes
from rcp.probes import PositionProbe, effective_rank, position_probe, position_share


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def rotation(d: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(gaussian(d, d, seed=seed, dtype=torch.float64)).Q


def positions(n: int, h: int, w: int) -> torch.Tensor:
    """(n, h, w, 2): every patch's own row and column."""
    grid = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).float()
    return grid.expand(n, h, w, 2)


def mixed(n: int = 10, h: int = 5, w: int = 8, d: int = 6, noise: float = 1.0) -> torch.Tensor:
    """Features that know a part of the position: more of the row than of the column."""
    return positions(n, h, w) @ gaussian(2, d, seed=1) / torch.tensor(3.0) + noise * gaussian(n, h, w, d, seed=2)


# --- the position ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "w"), [(6, 9), (9, 4), (2, 2)])
def test_a_feature_that_is_the_position_is_read_exactly(h, w):
    found = position_probe(positions(6, h, w), generator=seeded(), ridge=0)
    assert found.rows_r2 == pytest.approx(1, abs=1e-9) and found.columns_r2 == pytest.approx(1, abs=1e-9)
    assert position_probe(positions(6, h, w), generator=seeded()).mean_r2 > 0.999


def test_rows_and_columns_are_told_apart_when_the_grid_is_not_square():
    rows_only = positions(6, 5, 9)[..., :1]
    found = position_probe(torch.cat([rows_only, gaussian(6, 5, 9, 1)], -1), generator=seeded())
    assert found.rows_r2 > 0.999 and abs(found.columns_r2) < 0.05
    turned = position_probe(rows_only.transpose(1, 2), generator=seeded())
    assert turned.columns_r2 > 0.999 and abs(turned.rows_r2) < 0.05


def test_noise_knows_nothing_and_is_a_little_worse_than_the_mean_on_unseen_images():
    found = position_probe(gaussian(20, 10, 12, 40), generator=seeded())
    assert -0.2 < found.rows_r2 < 0 and -0.2 < found.columns_r2 < 0


def test_what_only_the_images_fitted_on_know_does_not_count():
    """A probe measured on its own images would read the position off features as many as patches."""
    values = gaussian(2, 4, 5, 30)
    assert position_probe(values, generator=seeded()).mean_r2 < 0.3
    twice = values[:1].expand(2, 4, 5, 30)  # the unseen image is the one fitted on
    assert position_probe(twice, generator=seeded(), ridge=1e-9).mean_r2 > 0.99


def test_the_probe_equals_ridge_regression_by_numpy_with_an_augmented_system():
    values = mixed().double()
    order = torch.randperm(10, generator=seeded(3))
    place = positions(10, 5, 8).double()
    x, y = (t[order[:7]].reshape(-1, t.shape[-1]).numpy() for t in (values, place))
    unseen, truth = (t[order[7:]].reshape(-1, t.shape[-1]).numpy() for t in (values, place))
    mean, spread = y.mean(0), y.std(0)
    centre = x.mean(0)
    penalty = math.sqrt(0.5 * ((x - centre) ** 2).sum() / 6)  # 0.5 of the mean variance, times the rows
    system = np.vstack([x - centre, penalty * np.eye(6)])
    weights = np.linalg.lstsq(system, np.vstack([(y - mean) / spread, np.zeros((6, 2))]), rcond=None)[0]
    target, guess = (truth - mean) / spread, (unseen - centre) @ weights
    r2 = 1 - ((target - guess) ** 2).sum(0) / ((target - target.mean(0)) ** 2).sum(0)
    found = position_probe(values, generator=seeded(3), train_share=0.7, ridge=0.5)
    assert (found.rows_r2, found.columns_r2) == pytest.approx(tuple(r2), abs=1e-10)
    assert 0.05 < found.mean_r2 < 0.95


def test_rotation_shift_and_scale_of_the_feature_space_change_nothing():
    values = mixed().double()
    before = position_probe(values, generator=seeded(), ridge=0.1)
    for moved in (values @ rotation(6), values * 1e-3, values * 1e4, values + 7, values @ rotation(6) * 20 - 3):
        after = position_probe(moved, generator=seeded(), ridge=0.1)
        assert (after.rows_r2, after.columns_r2) == pytest.approx((before.rows_r2, before.columns_r2), abs=1e-9)


def test_another_scale_of_one_direction_does_change_the_penalised_probe():
    values = mixed()
    stretched = values * torch.tensor([30.0, 1, 1, 1, 1, 1])
    before, after = (position_probe(v, generator=seeded(), ridge=0.1).mean_r2 for v in (values, stretched))
    assert abs(before - after) > 0.01


def test_features_that_depend_on_one_another_need_no_penalty():
    values = mixed()
    doubled = torch.cat([values, values, torch.zeros(10, 5, 8, 2)], -1)
    expected = position_probe(values, generator=seeded(), ridge=0).mean_r2
    assert position_probe(doubled, generator=seeded(), ridge=0).mean_r2 == pytest.approx(expected, abs=1e-6)


def test_the_generator_decides_and_nothing_else():
    values, state = mixed(noise=3.0), torch.get_rng_state()
    first, again, other = (position_probe(values, generator=seeded(s), rows=50) for s in (0, 0, 1))
    assert first == again and first != other
    assert torch.equal(torch.get_rng_state(), state)


def test_subsampled_patches_give_nearly_the_same():
    values = mixed(n=40)
    whole, some = (position_probe(values, generator=seeded(), rows=rows).mean_r2 for rows in (10**6, 500))
    assert some != whole and some == pytest.approx(whole, abs=0.05)


def test_no_image_lends_patches_to_both_sides_and_no_patch_is_taken_twice(monkeypatch):
    named = torch.arange(6.0)[:, None, None, None].expand(6, 4, 5, 1)  # every patch says which image it is of
    seen, original = [], probes._sample

    def spying(*arguments):
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(probes, "_sample", spying)
    position_probe(named, generator=seeded(), rows=15, train_share=0.34)
    (train, _), (test, place) = seen
    assert len(train) == len(test) == 15
    assert len(train.unique()) == 2 and not set(train.flatten().tolist()) & set(test.flatten().tolist())
    assert place.max(0).values.tolist() == [3, 4] and len(torch.cat([test, place], 1).unique(dim=0)) == 15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_probed_as_the_same_numbers(dtype):
    values = mixed().to(dtype)
    assert position_probe(values, generator=seeded()) == position_probe(values.double(), generator=seeded())


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_at_least_one_image_is_left_on_either_side(share):
    assert math.isfinite(position_probe(mixed(n=2), generator=seeded(), train_share=share).mean_r2)


def test_equal_features_know_nothing():
    found = position_probe(torch.ones(4, 3, 5, 2), generator=seeded())
    assert found == PositionProbe(pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))


def test_the_mean_is_of_both():
    assert PositionProbe(0.25, 0.75).mean_r2 == 0.5


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (torch.ones(1, 3, 4, 2), {}, "values must be .* got .1, 3, 4, 2."),
        (torch.ones(3, 1, 4, 2), {}, "values must be"),
        (torch.ones(3, 4, 1, 2), {}, "values must be"),
        (torch.ones(12, 2), {}, "values must be"),
        (torch.ones(3, 3, 4, 2), {"train_share": 1.0}, "train_share must lie between 0 and 1, got 1.0"),
        (torch.ones(3, 3, 4, 2), {"train_share": 0.0}, "train_share"),
        (torch.ones(3, 3, 4, 2), {"ridge": -1.0}, "ridge must not be negative, got -1.0"),
        (torch.ones(3, 3, 4, 2), {"ridge": math.nan}, "ridge"),
        (torch.ones(3, 3, 4, 2), {"rows": 1}, "rows must be at least 2, got 1"),
    ],
)
def test_what_cannot_be_probed_is_refused_in_one_sentence(values, options, message):
    with pytest.raises(ValueError, match=message):
        position_probe(values, generator=seeded(), **options)


def test_a_linear_map_adds_nothing_to_an_unpenalised_probe_and_much_to_a_penalised_one():
    values = torch.cat([positions(10, 5, 8) * 0.01, gaussian(10, 5, 8, 4)], -1).double()  # it knows, but hardly shows it
    shown = values * torch.tensor([100.0, 100, 1, 1, 1, 1])
    free, penalised = ([position_probe(v, generator=seeded(), ridge=r).mean_r2 for v in (values, shown)] for r in (0, 0.1))
    assert free[0] == pytest.approx(free[1], abs=1e-6) and penalised[0] < 0.1 and penalised[1] > 0.9


# --- the share of the position --------------------------------------------------------------------


def test_the_share_of_the_position_is_one_if_all_images_are_equal_and_about_none_in_noise():
    assert position_share(positions(4, 3, 5)) == 1
    assert abs(position_share(gaussian(10, 9, 12, 30))) < 0.01


@pytest.mark.parametrize("ratio", [0.25, 1.0, 9.0])
def test_the_share_of_the_position_is_that_of_the_variances_mixed(ratio):
    place = math.sqrt(ratio) * gaussian(30, 40, 20, seed=1)  # (H, W, D), the same in every image
    found = position_share(place + gaussian(3, 30, 40, 20, seed=2))
    assert found == pytest.approx(ratio / (ratio + 1), abs=0.02)


def test_the_share_of_the_position_equals_a_loop_over_positions():
    values = mixed(n=4, h=3, w=5)
    n, cells = 4, [values[:, i, j].double().numpy() for i in range(3) for j in range(5)]
    within = np.mean([cell.var(0, ddof=1).sum() for cell in cells])
    between = np.stack([cell.mean(0) for cell in cells]).var(0, ddof=1).sum() - within / n
    assert position_share(values) == pytest.approx(between / (between + within), rel=1e-9)


def test_rotation_shift_and_scale_leave_the_share_of_the_position_and_stretching_does_not():
    values = mixed().double()
    before = position_share(values)
    for moved in (values @ rotation(6), values * 1e-3, values + 7, values @ rotation(6) * 20 - 3):
        assert position_share(moved) == pytest.approx(before, rel=1e-9)
    mostly = torch.cat([positions(10, 5, 8) * 0.01, gaussian(10, 5, 8, 4)], -1)
    assert position_share(mostly) < 0.05 and position_share(mostly * torch.tensor([1e4, 1e4, 1, 1, 1, 1])) > 0.95


def test_equal_features_have_no_share_and_too_few_images_or_positions_are_refused():
    assert math.isnan(position_share(torch.ones(3, 2, 4, 5)))
    for shape in ((1, 3, 4, 2), (3, 1, 1, 2), (6, 2)):
        with pytest.raises(ValueError, match="values must be .* got"):
            position_share(torch.ones(shape))


# --- the effective rank ---------------------------------------------------------------------------


def test_the_effective_rank_counts_directions_that_vary_alike():
    corners = torch.cat([torch.eye(5), -torch.eye(5)])
    assert effective_rank(corners) == pytest.approx(5, rel=1e-5)
    assert effective_rank(torch.cat([corners, torch.zeros(10, 3)], 1)) == pytest.approx(5, rel=1e-5)
    line = torch.arange(9.0)[:, None] * torch.tensor([1.0, 2.0, -1.0])
    assert effective_rank(line) == pytest.approx(1, rel=1e-4)


def test_the_effective_rank_equals_the_definition_by_singular_values():
    rows = gaussian(70, 6, dtype=torch.float64) * torch.tensor([4.0, 2, 1, 1, 0.5, 0.1], dtype=torch.float64) + 3
    singular = np.linalg.svd((rows - rows.mean(0)).numpy(), compute_uv=False)
    share = singular**2 / (singular**2).sum()
    assert effective_rank(rows) == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)), rel=1e-9)


def test_rotation_shift_and_scale_leave_the_effective_rank():
    rows = gaussian(80, 6, dtype=torch.float64) * torch.arange(1.0, 7)
    before = effective_rank(rows)
    assert 1 < before < 6
    for moved in (rows @ rotation(6), rows * 1e-4, rows + 5, rows @ rotation(6) * 100 + 1):
        assert effective_rank(moved) == pytest.approx(before, rel=1e-8)


def test_equal_rows_have_no_rank():
    assert effective_rank(torch.ones(5, 3)) == effective_rank(torch.zeros(1, 3)) == 0
