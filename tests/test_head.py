"""The head: teacher and student, the training loop against a plain one, interruptions, and checkpoints."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from dataclasses import asdict, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import AdamP
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rcp.adamp
import rcp.files
import rcp.head
from rcp.checkpoint import TrainingState, read_state, write_state
from rcp.files import read_tensors, write_tensors
from rcp.head import EpochEnd, Head, TrainSettings, train_head
from rcp.loss import relaxed_contrastive_loss, relative_distances
from rcp.similarity import pseudo_labels, similarities
from rcp.store import MemoryLimit

SMALL = TrainSettings(
    dimension=5, projection=4, epochs=4, batch_size=12, learning_rate=1e-2, weight_decay=0.3, momentum=0.9
)


class Killed(Exception):
    """Stands for whatever ends a process."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=seeded(seed))


ROWS = gaussian(60, 7)


def weights(head: Head) -> list[torch.Tensor]:
    """Student f and g, teacher f and g."""
    return [layer.weight.detach().clone() for layer in (head.f, head.g, head.teacher_f, head.teacher_g)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def timeless(history) -> list[tuple]:
    """The records without what depends on the clock; a quantile list read from a file counts as the tuple it was."""
    records = [asdict(replace(record, seconds=0.0)) for record in history]
    return [(*record.pop("delta_quantiles"), *record.values()) for record in records]


class Recorder:
    """A callback that keeps a copy of what it was shown."""

    def __init__(self):
        self.epochs: list[int] = []
        self.weights: list[list[torch.Tensor]] = []
        self.records = []

    def __call__(self, event: EpochEnd) -> None:
        self.epochs.append(event.epoch)
        self.weights.append(weights(event.head))
        self.records.append(event.record)


def kill_at(epoch: int, error=Killed):
    def callback(event: EpochEnd) -> None:
        if event.epoch == epoch:
            raise error

    return callback


def fail_at_step(monkeypatch, step: int, error) -> None:
    """Let the update of the teacher fail in the given step of the training, counted from 1."""
    update, count = Head.update_teacher, [0]

    def failing(self, momentum):
        count[0] += 1
        if count[0] == step:
            raise error
        update(self, momentum)

    monkeypatch.setattr(Head, "update_teacher", failing)


def batches_of(monkeypatch, rows, options: TrainSettings, **more) -> list[torch.Tensor]:
    """The batches of a training's steps."""
    seen, step = [], rcp.head._Run._step

    def spying(self, p, *rest):
        seen.append(p.clone())
        return step(self, p, *rest)

    monkeypatch.setattr(rcp.head._Run, "_step", spying)
    train_head(rows, options, seed=0, **more)
    return seen


# --- slow twin ------------------------------------------------------------------------------------


def slow_training(rows, s: TrainSettings, seed: int, unit: int = 1):
    """The training word by word: draw, shuffle, teacher labels, loss, AdamP on a cosine, moving average."""
    generator = seeded(seed)
    head = Head(rows.shape[1], s.dimension, s.projection, generator=generator)
    student = [head.f.weight.detach().clone().requires_grad_(), head.g.weight.detach().clone().requires_grad_()]
    teacher = [w.detach().clone() for w in student]
    optimizer = AdamP(student, lr=s.learning_rate, weight_decay=s.weight_decay)
    images = rows.reshape(-1, unit, rows.shape[1])
    draw = max(1, s.batch_size // unit)
    steps = min(len(images) // draw, s.steps or 10**9)
    losses = []
    for epoch in range(s.epochs):
        order = torch.randperm(len(images), generator=generator)
        losses.append(0.0)
        for step in range(steps):
            p = torch.cat([images[i] for i in order[step * draw : (step + 1) * draw]])
            relative = (not s.normalize) if s.relative_sigma is None else s.relative_sigma
            w = pseudo_labels(p @ teacher[0].T @ teacher[1].T, s.alpha, s.sigma, s.k, s.normalize, relative)
            if s.labels == "hard":
                w = torch.tensor([[1.0 if value >= 0.5 else 0.0 for value in row] for row in w.tolist()])
            loss = relaxed_contrastive_loss(p @ student[0].T @ student[1].T, w, s.margin)
            optimizer.zero_grad()
            loss.backward()
            progress = (epoch * steps + step) / (s.epochs * steps)
            optimizer.param_groups[0]["lr"] = s.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
            optimizer.step()
            teacher = [s.momentum * t + (1 - s.momentum) * w.detach() for t, w in zip(teacher, student, strict=True)]
            losses[-1] += loss.item() / steps
    return [*(w.detach() for w in student), *teacher], losses


@pytest.mark.parametrize(
    ("change", "unit"),
    [
        ({}, 1),
        ({"normalize": False}, 1),
        ({"normalize": False, "relative_sigma": False, "sigma": 3.0}, 1),
        ({"relative_sigma": True, "sigma": 0.5}, 1),
        ({"k": 8, "alpha": 0.2, "margin": 1.4, "momentum": 0.5}, 1),
        ({"weight_decay": 0.0, "steps": 2, "epochs": 3}, 1),
        ({"labels": "hard"}, 1),
        ({"labels": "hard", "momentum": 0.0, "alpha": 0.9, "normalize": False}, 1),
        ({"batch": "images", "batch_size": 13}, 6),
        ({"batch": "images", "batch_size": 2, "steps": 4}, 10),
    ],
)
def test_training_equals_a_plain_loop(change, unit):
    options = replace(SMALL, **change)
    head, history = train_head(ROWS, options, seed=3, patches_per_image=unit)
    slow, losses = slow_training(ROWS, options, 3, unit)
    for ours, theirs in zip(weights(head), slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert [record.loss for record in history] == pytest.approx(losses, rel=1e-4)


def test_weight_decay_and_adamp_are_what_is_used(monkeypatch):
    made = []

    class Spy(AdamP):
        def __init__(self, parameters, **options):
            super().__init__(parameters, **options)
            made.append((len(self.param_groups[0]["params"]), options))

    monkeypatch.setattr(rcp.head, "AdamP", Spy)
    decayed, _ = train_head(ROWS, SMALL, seed=0)
    assert made == [(2, {"lr": 1e-2, "weight_decay": 0.3})]  # f and g alone
    free, _ = train_head(ROWS, replace(SMALL, weight_decay=0.0), seed=0)
    assert decayed.f.weight.norm() < free.f.weight.norm()


# --- the head -------------------------------------------------------------------------------------


def test_the_head_is_two_linear_layers_without_bias_drawn_within_one_over_root_inputs():
    head = Head(50, 40, 30, generator=seeded())
    assert [(n, tuple(p.shape)) for n, p in head.named_parameters() if p.requires_grad] == [
        ("f.weight", (40, 50)),
        ("g.weight", (30, 40)),
    ]
    for layer, inputs in ((head.f, 50), (head.g, 40)):
        bound = inputs**-0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert abs(float(layer.weight.detach().mean())) < 0.1 * bound


def test_student_and_teacher_are_products_of_their_own_two_layers():
    head, p = Head(7, 5, 4, generator=seeded()), gaussian(9, 7)
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(gaussian(*weight.shape, seed=weight.numel()))
        head.teacher_f.weight.mul_(2)
    f, g, slow_f, slow_g = weights(head)
    torch.testing.assert_close(head.student(p), p @ f.T @ g.T)
    torch.testing.assert_close(head.teacher(p), p @ slow_f.T @ slow_g.T)


def test_the_teacher_equals_the_student_at_step_zero_and_shares_no_memory_with_it():
    head = Head(7, 5, 4, generator=seeded())
    f, g, slow_f, slow_g = weights(head)
    assert torch.equal(f, slow_f) and torch.equal(g, slow_g)
    assert head.ema_distance() == 0
    with torch.no_grad():
        head.f.weight.add_(1), head.g.weight.add_(1)
    assert same(weights(head)[2:], [slow_f, slow_g])


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 0.9999), st.integers(0, 10**6))
def test_the_teacher_moves_by_exactly_one_minus_gamma_of_the_difference(momentum, seed):
    head = Head(6, 5, 4, generator=seeded(seed)).double()
    with torch.no_grad():
        head.f.weight.add_(gaussian(5, 6, seed=seed)), head.g.weight.add_(gaussian(4, 5, seed=seed))
    f, g, slow_f, slow_g = weights(head)
    head.update_teacher(momentum)
    new = weights(head)
    assert same(new[:2], [f, g])
    for before, after, student in ((slow_f, new[2], f), (slow_g, new[3], g)):
        torch.testing.assert_close(after - before, (1 - momentum) * (student - before), rtol=0, atol=1e-14)


def test_the_distance_to_the_student_is_over_both_layers_and_relative_to_it():
    head = Head(6, 5, 4, generator=seeded())
    with torch.no_grad():
        head.teacher_f.weight.zero_()
    f, g, *_ = weights(head)
    expected = math.sqrt(float(f.square().sum()) / float(f.square().sum() + g.square().sum()))
    assert head.ema_distance() == pytest.approx(expected, rel=1e-5)


def test_the_labels_come_from_both_teacher_layers_and_from_nothing_of_the_student():
    head, p = Head(7, 5, 4, generator=seeded()), gaussian(20, 7)
    before = pseudo_labels(head.teacher(p))
    with torch.no_grad():
        head.f.weight.copy_(gaussian(5, 7, seed=1)), head.g.weight.copy_(gaussian(4, 5, seed=2))
    assert torch.equal(pseudo_labels(head.teacher(p)), before)
    for layer in (head.teacher_f, head.teacher_g):
        kept = layer.weight.clone()
        layer.weight.copy_(gaussian(*layer.weight.shape, seed=3))
        assert (pseudo_labels(head.teacher(p)) - before).abs().max() > 0.01
        layer.weight.copy_(kept)


def test_the_ported_target_of_slow_head_on_online_body_changes_with_the_student_and_ours_does_not():
    head, p = Head(7, 5, 4, generator=seeded()), gaussian(20, 7)

    def ported(p):
        return head.teacher_g(head.f(p))  # the EMA head on the online body

    before = pseudo_labels(head.teacher(p)), pseudo_labels(ported(p))
    with torch.no_grad():
        head.f.weight.copy_(gaussian(5, 7, seed=1))
    assert torch.equal(pseudo_labels(head.teacher(p)), before[0])
    assert (pseudo_labels(ported(p)) - before[1]).abs().max() > 0.01


def test_the_teacher_gets_no_gradient():
    head, p = Head(7, 5, 4, generator=seeded()), gaussian(20, 7)
    assert not head.teacher(p).requires_grad and head.student(p).requires_grad
    relaxed_contrastive_loss(head.student(p), pseudo_labels(head.teacher(p))).backward()
    for layer in (head.teacher_f, head.teacher_g):
        assert not layer.weight.requires_grad and layer.weight.grad is None
    for layer in (head.f, head.g):
        assert layer.weight.grad.abs().max() > 0


def test_the_teacher_gets_no_gradient_in_training_and_moves_all_the_same():
    seen = []

    def callback(event: EpochEnd) -> None:
        slow = (event.head.teacher_f.weight, event.head.teacher_g.weight)
        seen.append([weight.grad is None and not weight.requires_grad for weight in slow])

    recorder = Recorder()
    train_head(ROWS, SMALL, seed=0, callbacks=[callback, recorder])
    assert all(map(all, seen))
    for now, then in zip(recorder.weights[1], recorder.weights[0], strict=True):
        assert not torch.equal(now, then)


def test_the_update_of_the_teacher_is_called_once_a_step_with_gamma(monkeypatch):
    calls, update = [], Head.update_teacher
    monkeypatch.setattr(Head, "update_teacher", lambda self, momentum: (calls.append(momentum), update(self, momentum)))
    train_head(ROWS, SMALL, seed=0)
    assert calls == [0.9] * 20  # 4 epochs of 60 // 12 steps


def test_a_momentum_of_zero_is_no_moving_average_the_teacher_is_the_student_after_each_step(monkeypatch):
    equal, update = [], Head.update_teacher

    def spying(self, momentum):
        update(self, momentum)
        equal.append(same(weights(self)[:2], weights(self)[2:]))

    monkeypatch.setattr(Head, "update_teacher", spying)
    head, history = train_head(ROWS, replace(SMALL, momentum=0.0), seed=0)
    assert equal == [True] * 20 and same(weights(head)[:2], weights(head)[2:])
    assert [record.ema_distance for record in history] == [0.0] * 4
    assert not torch.equal(head.f.weight, Head(7, 5, 4, generator=seeded(0)).f.weight)


def labels_seen(monkeypatch, options: TrainSettings) -> list[torch.Tensor]:
    """The labels that the loss gets in a training's steps."""
    seen, loss = [], rcp.head.loss_and_gradient
    with monkeypatch.context() as patch:
        patch.setattr(rcp.head, "loss_and_gradient", lambda z, w, margin: (seen.append(w.clone()), loss(z, w, margin))[1])
        train_head(ROWS, options, seed=0)
    return seen


def test_hard_labels_are_the_soft_ones_rounded_at_one_half(monkeypatch):
    soft, hard = (labels_seen(monkeypatch, replace(SMALL, labels=kind)) for kind in ("soft", "hard"))
    assert len(soft) == len(hard) == 20
    assert all(set(w.unique().tolist()) == {0.0, 1.0} for w in hard)
    assert all(len(w.unique()) > 20 and w.dtype == torch.float32 for w in soft)
    assert torch.equal(hard[0], (soft[0] >= 0.5).float())  # before the first step both have the same weights
    assert not torch.equal(*(train_head(ROWS, replace(SMALL, labels=kind), seed=0)[0].f.weight for kind in ("soft", "hard")))


def test_a_label_of_exactly_one_half_counts_as_one(monkeypatch):
    half = rcp.head.Labels(torch.full((12, 12), 0.5).fill_diagonal_(0.49), torch.tensor(0.5), torch.tensor(0.5))
    monkeypatch.setattr(rcp.head, "labels_with_means", lambda *_: half._replace(w=half.w.clone()))
    assert torch.equal(labels_seen(monkeypatch, replace(SMALL, labels="hard"))[0], 1 - torch.eye(12))


def test_hard_labels_leave_the_means_of_the_history_those_of_the_similarities():
    first = [train_head(ROWS, replace(SMALL, labels=kind, epochs=1, steps=1), seed=0)[1][0] for kind in ("soft", "hard")]
    assert first[0].pairwise_mean == first[1].pairwise_mean and first[0].contextual_mean == first[1].contextual_mean
    assert first[0].loss != first[1].loss


# --- training -------------------------------------------------------------------------------------


def test_training_is_reproducible_per_seed_and_seeds_differ():
    (a, first), (b, second), (c, _) = (train_head(ROWS, SMALL, seed=s) for s in (1, 1, 2))
    assert same(weights(a), weights(b)) and timeless(first) == timeless(second)
    assert not torch.allclose(a.f.weight, c.f.weight)


def test_making_a_head_touches_no_global_random_state():
    before = torch.get_rng_state()
    Head(7, 5, 4, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_training_behind_the_making_of_the_head_touches_no_global_random_state():
    states = []
    train_head(ROWS, SMALL, seed=0, callbacks=[lambda event: states.append(torch.get_rng_state())])
    assert len(states) == 5 and all(torch.equal(states[0], state) for state in states)


def test_the_global_random_state_decides_nothing():
    torch.manual_seed(1)
    a, _ = train_head(ROWS, SMALL, seed=0)
    torch.manual_seed(2)
    b, _ = train_head(ROWS, SMALL, seed=0)
    assert same(weights(a), weights(b))


def test_zero_epochs_return_f_as_it_was_drawn():
    recorder = Recorder()
    head, history = train_head(ROWS, replace(SMALL, epochs=0), seed=5, callbacks=[recorder])
    assert history == [] and recorder.epochs == [0]
    assert same(weights(head), weights(Head(7, 5, 4, generator=seeded(5))))


def test_the_returned_head_is_done_with_training():
    head, _ = train_head(ROWS, SMALL, seed=0)
    assert not head.training and not any(p.requires_grad for p in head.parameters())


def test_the_rows_are_not_changed():
    rows = ROWS.clone()
    train_head(rows, SMALL, seed=0)
    assert torch.equal(rows, ROWS)


def test_callbacks_are_called_before_the_first_step_and_after_every_epoch_with_the_current_head():
    recorder = Recorder()
    head, history = train_head(ROWS, SMALL, seed=7, callbacks=[recorder, Recorder()])
    assert recorder.epochs == [0, 1, 2, 3, 4]
    assert recorder.records == [None, *history]
    assert same(recorder.weights[0], weights(Head(7, 5, 4, generator=seeded(7))))
    assert same(recorder.weights[-1], weights(head))
    for earlier, later in zip(recorder.weights, recorder.weights[1:], strict=False):
        assert not torch.equal(earlier[0], later[0])


def test_the_history_is_plausible():
    _, history = train_head(ROWS, SMALL, seed=0)
    assert [record.epoch for record in history] == [1, 2, 3, 4]
    for record in history:
        assert math.isfinite(record.loss) and record.loss > 0
        assert 0 < record.pushed_share < 1
        assert 0 < record.pairwise_mean < 1 and 0 < record.contextual_mean < 1
        assert len(record.delta_quantiles) == 5 and list(record.delta_quantiles) == sorted(record.delta_quantiles)
        assert record.delta_quantiles[0] > 0
        assert 0 < record.ema_distance < 1
        assert record.seconds > 0
    assert len({record.loss for record in history}) == 4


def test_the_statistics_of_a_one_step_epoch_are_those_of_its_batch():
    options = replace(SMALL, epochs=1, batch_size=60)
    _, (record,) = train_head(ROWS, options, seed=0)
    head = Head(7, 5, 4, generator=seeded(0))
    off = ~torch.eye(60, dtype=torch.bool)
    z = head.student(ROWS).detach()
    d = torch.cdist(z, z)
    delta = (d / d.mean(1, keepdim=True))[off]
    assert record.pushed_share == pytest.approx(float((delta < 1).float().mean()), abs=1e-3)
    quantiles = torch.quantile(delta, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    assert record.delta_quantiles == pytest.approx(quantiles.tolist(), abs=1e-3)
    for name, alpha in (("pairwise_mean", 1.0), ("contextual_mean", 0.0)):
        expected = pseudo_labels(head.teacher(ROWS), alpha=alpha)[off].mean()
        assert getattr(record, name) == pytest.approx(float(expected), abs=1e-3)
    assert record.learning_rate == pytest.approx(1e-2)


def test_the_learning_rate_falls_from_its_value_to_next_to_nothing_along_a_cosine(monkeypatch):
    rates, step = [], rcp.head.AdamP.step
    monkeypatch.setattr(rcp.head.AdamP, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)))
    _, history = train_head(ROWS, SMALL, seed=0)
    total = 20
    assert rates == pytest.approx([5e-3 * (1 + math.cos(math.pi * t / total)) for t in range(total)])
    assert rates[0] == 1e-2 and rates[10] == pytest.approx(5e-3)
    assert 0 < rates[-1] < 1e-2 * (math.pi / 2 / total) ** 2 * 1.01
    assert [record.learning_rate for record in history] == rates[4::5]


def test_an_epoch_sees_every_row_once_and_in_another_order_each_time(monkeypatch):
    rows = torch.cat([torch.arange(60.0)[:, None], ROWS], 1)
    batches = batches_of(monkeypatch, rows, replace(SMALL, epochs=2))
    assert [tuple(b.shape) for b in batches] == [(12, 8)] * 10
    epochs = [torch.cat(batches[at : at + 5])[:, 0] for at in (0, 5)]
    assert all(sorted(epoch.tolist()) == list(range(60)) for epoch in epochs)
    assert not torch.equal(*epochs) and not torch.equal(epochs[0], torch.arange(60.0))


def test_a_rest_smaller_than_a_batch_is_left_out_and_is_another_one_each_epoch(monkeypatch):
    rows = torch.cat([torch.arange(60.0)[:, None], ROWS], 1)
    batches = batches_of(monkeypatch, rows, replace(SMALL, epochs=2, batch_size=25))
    assert [len(b) for b in batches] == [25] * 4
    seen = [set(torch.cat(batches[at : at + 2])[:, 0].tolist()) for at in (0, 2)]
    assert len(seen[0]) == len(seen[1]) == 50 and seen[0] != seen[1]


def test_fewer_rows_than_a_batch_are_one_batch(monkeypatch):
    assert [len(b) for b in batches_of(monkeypatch, ROWS, replace(SMALL, batch_size=784))] == [60] * 4


@pytest.mark.parametrize(("steps", "expected"), [(1, 1), (3, 3), (5, 5), (99, 5), (None, 5)])
def test_steps_limit_an_epoch(monkeypatch, steps, expected):
    assert len(batches_of(monkeypatch, ROWS, replace(SMALL, epochs=2, steps=steps))) == 2 * expected


@pytest.mark.parametrize(("batch_size", "images"), [(12, 2), (17, 2), (18, 3), (2, 1), (784, 10)])
def test_batches_of_images_are_whole_images_with_their_rows_together(monkeypatch, batch_size, images):
    rows = torch.stack([torch.arange(60) // 6, torch.arange(60) % 6]).T.float()
    rows = torch.cat([rows, ROWS], 1)
    options = replace(SMALL, epochs=1, batch="images", batch_size=batch_size)
    batches = batches_of(monkeypatch, rows, options, patches_per_image=6)
    assert len(batches) == 10 // images
    seen = []
    for batch in batches:
        assert len(batch) == 6 * images
        for part in batch.split(6):
            assert part[:, 1].tolist() == [0, 1, 2, 3, 4, 5]
            assert len(set(part[:, 0].tolist())) == 1
            seen.append(int(part[0, 0]))
    assert len(set(seen)) == len(seen) and seen != sorted(seen) or images == 10


def test_batches_of_patches_mix_images(monkeypatch):
    rows = torch.cat([(torch.arange(60.0) // 6)[:, None], ROWS], 1)
    batches = batches_of(monkeypatch, rows, SMALL, patches_per_image=6)
    assert all(len(set(batch[:, 0].tolist())) > 2 for batch in batches)


@pytest.mark.parametrize("seed", range(3))
def test_with_a_teacher_that_stands_still_the_labels_stay_and_training_lowers_the_loss(seed):
    rows = gaussian(60, 10, seed=1)
    rows[::2, 0] += 6  # two groups
    options = TrainSettings(10, 10, epochs=60, batch_size=60, learning_rate=1e-2, momentum=1 - 1e-9)
    recorder = Recorder()
    _, history = train_head(rows, options, seed=seed, callbacks=[recorder])
    assert history[-1].loss < 0.98 * history[0].loss
    assert history[-1].ema_distance > 0.05  # the student went away, the teacher did not
    torch.testing.assert_close(recorder.weights[-1][2:], recorder.weights[0][2:], rtol=0, atol=1e-6)
    for name in ("pairwise_mean", "contextual_mean"):
        assert getattr(history[-1], name) == pytest.approx(getattr(history[0], name), abs=1e-5)


# --- a step ---------------------------------------------------------------------------------------

VARIANTS = [
    {},
    {"normalize": False},
    {"relative_sigma": True, "sigma": 0.5},
    {"normalize": False, "relative_sigma": False, "sigma": 3.0},
    {"k": 4, "alpha": 0.0, "margin": 0.0, "weight_decay": 0.0},
    {"k": 8, "alpha": 1.0, "margin": 2.0},
    {"labels": "hard"},
]
WAITING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2")
BY_PLACES = ("index", "index_put", "index_put_")


class Log(TorchDispatchMode):
    """What a GPU would make the host wait for, and the numbers of the largest result."""

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []
        self.count = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name.removeprefix("aten::")
        places = [place for place in args[1] if place is not None] if name in BY_PLACES else []
        if name in WAITING or any(place.dtype == torch.bool for place in places):  # a mask: nonzero looks at it inside
            self.waits.append(name)
        result = function(*args, **(kwargs or {}))
        self.count += 1
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            self.largest = max(self.largest, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return result


def run_of(width: int, options: TrainSettings, device: str = "cpu", dtype=torch.float32) -> rcp.head._Run:
    """A training before its first step, with a teacher that is not the student."""
    head = Head(width, options.dimension, options.projection, generator=seeded(8)).to(device, dtype)
    with torch.no_grad():
        for layer in (head.teacher_f, head.teacher_g):
            layer.weight.add_(0.3 * gaussian(*layer.weight.shape, seed=9).to(layer.weight))
    parameters = [head.f.weight, head.g.weight]
    optimizer = rcp.head.AdamP(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    return rcp.head._Run(torch.empty(60, width), options, head, optimizer, seeded(), None)


@pytest.mark.parametrize("change", VARIANTS)
def test_a_step_has_the_loss_and_the_gradients_of_autograd_and_moves_as_timm_does(change):
    options = replace(SMALL, **change)
    run, p = run_of(7, options, dtype=torch.float64), gaussian(20, 7, seed=5).double()
    f, g, slow_f, slow_g = weights(run.head)
    relative = not options.normalize if options.relative_sigma is None else options.relative_sigma
    similar = {"sigma": options.sigma, "k": options.k, "normalize": options.normalize, "relative_sigma": relative}
    labels = pseudo_labels(p @ slow_f.T @ slow_g.T, options.alpha, **similar)
    labels = (labels >= 0.5).double() if options.labels == "hard" else labels
    student = [f.clone().requires_grad_(), g.clone().requires_grad_()]
    expected = relaxed_contrastive_loss(p @ student[0].T @ student[1].T, labels, options.margin)
    expected.backward()
    optimizer = AdamP(student, lr=3e-3, weight_decay=options.weight_decay)
    gradients = [weight.grad.clone() for weight in student]
    optimizer.step()

    loss, (seen,) = run._step(p, 3e-3, True)
    assert float(loss) == pytest.approx(expected.item(), rel=0, abs=1e-10) and not loss.requires_grad
    for ours, theirs in zip((run.head.f.weight.grad, run.head.g.weight.grad), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    moved = weights(run.head)
    for ours, theirs in zip(moved[:2], student, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-9)
    for slow, before, fast in zip(moved[2:], (slow_f, slow_g), moved[:2], strict=True):
        torch.testing.assert_close(slow, 0.9 * before + 0.1 * fast, rtol=0, atol=1e-12)

    off = ~torch.eye(20, dtype=torch.bool)
    pairwise, contextual = similarities(p @ slow_f.T @ slow_g.T, **similar)
    delta = relative_distances(p @ f.T @ g.T)[off]
    quantiles = torch.quantile(delta, torch.tensor(rcp.head.QUANTILES, dtype=torch.float64))
    shares = [(delta < options.margin).double().mean(), pairwise[off].mean(), contextual[off].mean()]
    assert seen == pytest.approx([float(x) for x in (*shares, *quantiles)], abs=1e-9)
    assert run._step(p, 3e-3, False)[1] == []


@pytest.mark.parametrize("change", VARIANTS)
def test_a_step_never_makes_the_host_wait_for_the_device(change):
    run, p = run_of(7, replace(SMALL, **change)), gaussian(20, 7)
    with Log() as log:
        for _ in range(2):
            run._step(p, 1e-2, False)
    assert log.count > 40 and log.waits == []


@pytest.mark.parametrize("change", VARIANTS)
def test_a_step_works_on_a_device_that_answers_no_question(change):
    run, p = run_of(7, replace(SMALL, **change), device="meta"), torch.empty(20, 7, device="meta")
    for _ in range(2):
        loss, _ = run._step(p, 1e-2, False)
    assert loss.is_meta and run.head.teacher_g.weight.is_meta


QUESTIONS = [
    lambda x: float(x.sum()), lambda x: bool((x > 0).all()), lambda x: x[x > 0], lambda x: (x > 0).nonzero(),
    lambda x: x.masked_select(x > 0), lambda x: torch.equal(x, x + 1), lambda x: x.unique(), lambda x: x.sum().tolist(),
    lambda x: x.__setitem__(x > 0, torch.ones(1)), lambda x: x.cpu(), lambda x: x.numpy(),
]  # fmt: skip


@pytest.mark.parametrize("ask", QUESTIONS)
def test_one_of_the_two_checks_above_finds_every_kind_of_question(ask):
    with Log() as log:
        ask(torch.arange(-3.0, 3))
    try:
        ask(torch.arange(-3.0, 3, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError):
        log.waits.append("meta")
    assert log.waits


@pytest.mark.parametrize(("n", "change"), [(2048, {}), (1024, {"normalize": False}), (64, {"dimension": 160})])
def test_a_step_holds_nothing_larger_than_the_distances_the_features_or_the_weights(n, change):
    options = replace(SMALL, **{"dimension": 24, "projection": 16} | change)
    run, p = run_of(48, options), gaussian(n, 48)
    with Log() as log:
        run._step(p, 1e-2, False)
    assert n * n <= log.largest <= max(n * n, n * 2 * options.dimension, run.both.numel())


def test_the_optimiser_of_the_training_is_ours():
    assert rcp.head.AdamP is rcp.adamp.AdamP


# --- student and teacher in one matrix ------------------------------------------------------------


@pytest.fixture
def spied(monkeypatch) -> list[list[torch.Tensor]]:
    """The weights before each step; there, f and the teacher's f must lie one under the other in one matrix."""
    seen, step = [], rcp.head._Run._step

    def spying(self, *rest):
        f, slow = self.head.f.weight, self.head.teacher_f.weight
        assert self.both.shape == (2 * len(f), f.shape[1]) and self.both.is_contiguous()
        assert f.data_ptr() == self.both.data_ptr() and slow.data_ptr() == f.data_ptr() + f.nbytes
        seen.append(weights(self.head))
        return step(self, *rest)

    monkeypatch.setattr(rcp.head._Run, "_step", spying)
    return seen


def assert_own_memory(head: Head) -> None:
    every = [layer.weight for layer in (head.f, head.g, head.teacher_f, head.teacher_g)]
    assert len({weight.untyped_storage().data_ptr() for weight in every}) == 4
    for weight in every:
        assert weight.untyped_storage().nbytes() == weight.nbytes and weight.is_contiguous()


def test_f_and_its_teacher_lie_in_one_matrix_while_they_are_trained_and_apart_afterwards(spied):
    recorder = Recorder()
    head, _ = train_head(ROWS, SMALL, seed=4, callbacks=[recorder])
    assert len(spied) == 20 and same(spied[0], recorder.weights[0]) and same(spied[5], recorder.weights[1])
    assert_own_memory(head)
    assert same(weights(head), recorder.weights[-1])


def test_they_lie_in_one_matrix_behind_a_checkpoint_too(spied, tmp_path):
    path, recorder = tmp_path / "training.safetensors", Recorder()
    with pytest.raises(Killed):
        train_head(ROWS, SMALL, seed=4, checkpoint=path, callbacks=[recorder, kill_at(2)])
    spied.clear()
    head, _ = train_head(ROWS, SMALL, seed=4, checkpoint=path)
    assert len(spied) == 10 and same(spied[0], recorder.weights[2])
    assert_own_memory(head)
    again, _ = train_head(ROWS, SMALL, seed=4, checkpoint=path)  # nothing left to do
    assert_own_memory(again)
    assert same(weights(again), weights(head))


def test_an_interrupted_or_untrained_head_owns_its_memory_too(monkeypatch):
    recorder = Recorder()
    with monkeypatch.context() as patch:
        fail_at_step(patch, 8, KeyboardInterrupt)
        with pytest.warns(UserWarning, match="epoch 1"):
            head, _ = train_head(ROWS, SMALL, seed=4, callbacks=[recorder])
    assert_own_memory(head)
    assert same(weights(head), recorder.weights[1])
    assert_own_memory(train_head(ROWS, replace(SMALL, epochs=0), seed=4)[0])


# --- where the rows lie, and how exactly ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("change", "unit"), [({}, 1), ({"batch": "images", "batch_size": 13}, 6)])
def test_half_precise_rows_train_as_the_same_numbers_in_float32(dtype, change, unit):
    rows, options = ROWS.to(dtype), replace(SMALL, **change)
    half, first = train_head(rows, options, seed=4, patches_per_image=unit)
    full, second = train_head(rows.float(), options, seed=4, patches_per_image=unit)
    assert same(weights(half), weights(full)) and timeless(first) == timeless(second)
    assert half.f.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("change", "unit"), [({}, 1), ({"batch": "images", "batch_size": 13}, 6)])
def test_rows_in_a_mapped_file_train_as_in_memory(tmp_path, dtype, change, unit):
    rows, options = ROWS.to(dtype), replace(SMALL, **change)
    store = MemoryLimit(1, tmp_path).empty(rows.shape, dtype)
    store.values.copy_(rows)
    store.release()
    assert store.file is not None
    mapped, first = train_head(store.values, options, seed=4, patches_per_image=unit)
    kept, second = train_head(rows, options, seed=4, patches_per_image=unit)
    assert same(weights(mapped), weights(kept)) and timeless(first) == timeless(second)
    assert torch.equal(store.values, rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_of_half_precise_rows_goes_on_bit_by_bit_and_refuses_other_rows(tmp_path, dtype):
    path, rows = tmp_path / "training.safetensors", ROWS.to(dtype)
    whole, _ = train_head(rows, SMALL, seed=4)
    with pytest.raises(Killed):
        train_head(rows, SMALL, seed=4, checkpoint=path, callbacks=[kill_at(2)])
    for other_rows in (rows * 2, ROWS):
        with pytest.raises(ValueError, match="other settings, seed or features"):
            train_head(other_rows, SMALL, seed=4, checkpoint=path)
    resumed, history = train_head(rows, SMALL, seed=4, checkpoint=path)
    assert same(weights(whole), weights(resumed)) and len(history) == 4


def test_batches_reach_the_step_in_float32(monkeypatch):
    assert {batch.dtype for batch in batches_of(monkeypatch, ROWS.bfloat16(), SMALL)} == {torch.float32}


class Elsewhere:
    """Rows of some size on some device."""

    def __init__(self, device: str, nbytes: int):
        self.device, self.nbytes = torch.device(device), nbytes

    def to(self, device):
        return Elsewhere(device, self.nbytes)


@pytest.mark.parametrize(
    ("here", "there", "nbytes", "moves"),
    [("cpu", "cuda", 500, True), ("cpu", "cuda", 501, False), ("cuda", "cuda", 10, False), ("cpu", "cpu", 10, False),
     ("cpu", "mps", 10, False)],
)  # fmt: skip
def test_rows_move_to_a_gpu_if_they_take_at_most_half_of_its_room(monkeypatch, here, there, nbytes, moves):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    rows = Elsewhere(here, nbytes)
    found = rcp.head._beside(rows, torch.device(there))
    assert found.device.type == there if moves else found is rows


# --- interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "kept"), [(1, 0), (5, 0), (6, 1), (8, 1), (20, 3)])
def test_an_interrupt_in_the_middle_of_an_epoch_keeps_the_last_full_one_with_a_warning(monkeypatch, step, kept):
    recorder = Recorder()
    fail_at_step(monkeypatch, step, KeyboardInterrupt)
    with pytest.warns(UserWarning, match=f"interrupted.*epoch {kept}"):
        head, history = train_head(ROWS, SMALL, seed=0, callbacks=[recorder])
    assert recorder.epochs == list(range(kept + 1))
    assert [record.epoch for record in history] == recorder.epochs[1:]
    assert same(weights(head), recorder.weights[kept])
    assert not any(p.requires_grad for p in head.parameters())


def test_an_interrupt_in_a_callback_keeps_the_last_full_epoch_with_a_warning():
    recorder = Recorder()
    try:
        with pytest.warns(UserWarning, match="interrupted"):
            head, history = train_head(ROWS, SMALL, seed=0, callbacks=[recorder, kill_at(2, KeyboardInterrupt)])
    except KeyboardInterrupt:
        pytest.fail("the interrupt came through, and the training is lost")
    assert [record.epoch for record in history] == [1, 2]
    assert same(weights(head), recorder.weights[2])


def test_another_error_comes_through():
    with pytest.raises(Killed):
        train_head(ROWS, SMALL, seed=0, callbacks=[kill_at(2)])


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "more"), [({}, {}), ({"batch": "images", "steps": 3, "weight_decay": 0.0}, {"patches_per_image": 6})]
)
@pytest.mark.parametrize("step", [None, 7, 11])
def test_a_run_killed_and_resumed_equals_an_uninterrupted_one_bit_by_bit(tmp_path, monkeypatch, change, more, step):
    options, path = replace(SMALL, **change), tmp_path / "training.safetensors"
    whole, history = train_head(ROWS, options, seed=4, **more)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if step:
            fail_at_step(patch, step, Killed)
        train_head(ROWS, options, seed=4, checkpoint=path, callbacks=[kill_at(2 if step is None else 99)], **more)
    recorder = Recorder()
    resumed, again = train_head(ROWS, options, seed=4, checkpoint=path, callbacks=[recorder], **more)
    assert same(weights(whole), weights(resumed))
    assert timeless(history) == timeless(again)
    assert recorder.epochs[-1] == 4 and 0 not in recorder.epochs and 1 not in recorder.epochs


def test_an_interrupted_run_goes_on_from_its_checkpoint_bit_by_bit(tmp_path, monkeypatch):
    path = tmp_path / "training.safetensors"
    whole, _ = train_head(ROWS, SMALL, seed=4)
    with monkeypatch.context() as patch:
        fail_at_step(patch, 13, KeyboardInterrupt)
        with pytest.warns(UserWarning, match="epoch 2"):
            train_head(ROWS, SMALL, seed=4, checkpoint=path)
    resumed, history = train_head(ROWS, SMALL, seed=4, checkpoint=path)
    assert same(weights(whole), weights(resumed)) and len(history) == 4


def test_a_checkpoint_changes_nothing_in_a_run_that_is_not_killed(tmp_path):
    plain, _ = train_head(ROWS, SMALL, seed=4)
    written, _ = train_head(ROWS, SMALL, seed=4, checkpoint=tmp_path / "a" / "training.safetensors")
    assert same(weights(plain), weights(written))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["training.safetensors"]


def test_a_finished_checkpoint_gives_the_head_back_without_a_step(tmp_path, monkeypatch):
    path = tmp_path / "training.safetensors"
    done, history = train_head(ROWS, SMALL, seed=4, checkpoint=path)
    fail_at_step(monkeypatch, 1, Killed)
    again, records = train_head(ROWS, SMALL, seed=4, checkpoint=path)
    assert same(weights(done), weights(again)) and timeless(history) == timeless(records)


def other(value):
    """Return another valid value of a setting."""
    if isinstance(value, float):
        return value * 0.5
    return {"patches": "images", "soft": "hard", None: True, True: False}.get(value, 7)


@pytest.mark.parametrize("name", [field.name for field in fields(TrainSettings)])
def test_a_checkpoint_of_another_setting_is_refused(tmp_path, name):
    path = tmp_path / "training.safetensors"
    train_head(ROWS, SMALL, seed=4, checkpoint=path, patches_per_image=6)
    changed = replace(SMALL, **{name: other(getattr(SMALL, name))})
    assert changed != SMALL
    with pytest.raises(ValueError, match="training.safetensors belongs to .* other settings, seed or features"):
        train_head(ROWS, changed, seed=4, checkpoint=path, patches_per_image=6)


@pytest.mark.parametrize(
    ("rows", "seed"), [(ROWS, 5), (ROWS[:48], 4), (ROWS + 1e-3, 4), (ROWS.flip(0), 4), (ROWS.view(70, 6), 4)]
)
def test_a_checkpoint_of_another_seed_or_other_rows_is_refused(tmp_path, rows, seed):
    path = tmp_path / "training.safetensors"
    train_head(ROWS, SMALL, seed=4, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="other settings, seed or features"):
        train_head(rows, SMALL, seed=seed, checkpoint=path)
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_number_of_patches_per_image_is_refused(tmp_path):
    path, options = tmp_path / "training.safetensors", replace(SMALL, batch="images")
    with pytest.raises(Killed):
        train_head(ROWS, options, seed=4, checkpoint=path, patches_per_image=6, callbacks=[kill_at(2)])
    with pytest.raises(ValueError, match="checkpoint"):
        train_head(ROWS, options, seed=4, checkpoint=path, patches_per_image=10)


def test_records_read_from_a_checkpoint_equal_the_records_written(tmp_path):
    path = tmp_path / "training.safetensors"
    _, written = train_head(ROWS, SMALL, seed=4, checkpoint=path)
    _, read = train_head(ROWS, SMALL, seed=4, checkpoint=path)
    assert read == written


class Trap:
    """Unpickling this would be an arrest."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


@pytest.mark.parametrize("kind", ["empty", "short", "half", "junk", "zeros", "text", "pickle", "torch"])
def test_a_file_that_is_no_checkpoint_is_a_value_error_that_names_it_and_is_never_unpickled(tmp_path, kind):
    path = tmp_path / "training.safetensors"
    train_head(ROWS, SMALL, seed=4, checkpoint=path)
    whole = path.read_bytes()
    if kind == "torch":
        torch.save({"model": Trap()}, path)
    else:
        junk = bytes(range(256)) * 4
        content = {"empty": b"", "short": whole[:5], "half": whole[: len(whole) // 2], "junk": junk, "zeros": bytes(64)}
        path.write_bytes((content | {"text": b"{}", "pickle": pickle.dumps(Trap())})[kind])
    with pytest.raises(ValueError, match="training.safetensors is not a file that this project wrote"):
        train_head(ROWS, SMALL, seed=4, checkpoint=path)
    assert not Trap.sprung


def test_a_checkpoint_cut_anywhere_is_a_value_error(tmp_path):
    path = tmp_path / "training.safetensors"
    train_head(ROWS, SMALL, seed=4, checkpoint=path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="training.safetensors"):
            train_head(ROWS, replace(SMALL, epochs=4), seed=4, checkpoint=path)


def test_a_tensor_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "training.safetensors"
    write_tensors(path, {"a": torch.ones(2)}, {"kind": "model"})
    with pytest.raises(ValueError, match="training.safetensors"):
        train_head(ROWS, SMALL, seed=4, checkpoint=path)


def test_a_checkpoint_of_another_schema_is_refused(tmp_path):
    path = tmp_path / "training.safetensors"
    train_head(ROWS, SMALL, seed=4, checkpoint=path)
    tensors, header = read_tensors(path)
    write_tensors(path, tensors, header | {"schema": header["schema"] + 1})
    with pytest.raises(ValueError, match="training.safetensors"):
        train_head(ROWS, SMALL, seed=4, checkpoint=path)


def test_a_failing_write_leaves_the_last_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    path, save, count = tmp_path / "training.safetensors", rcp.files.safetensors.torch.save_file, [0]

    def failing(tensors, name, metadata):
        count[0] += 1
        save(tensors, name, metadata)
        if count[0] == 3:
            name.write_bytes(name.read_bytes()[:100])
            raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(rcp.files.safetensors.torch, "save_file", failing)
        train_head(ROWS, SMALL, seed=4, checkpoint=path)
    assert [p.name for p in tmp_path.iterdir()] == ["training.safetensors"]
    recorder = Recorder()
    resumed, _ = train_head(ROWS, SMALL, seed=4, checkpoint=path, callbacks=[recorder])
    assert recorder.epochs == [3, 4]
    assert same(weights(resumed), weights(train_head(ROWS, SMALL, seed=4)[0]))


def state_of(seed: int) -> TrainingState:
    head = Head(7, 5, 4, generator=seeded(seed))
    optimizer = AdamP([head.f.weight, head.g.weight], lr=1e-2)
    return TrainingState(head, optimizer, seeded(seed + 100), {"seed": 0}, ROWS)


def test_a_state_comes_back_whole(tmp_path):
    state, fresh = state_of(1), state_of(2)
    for _ in range(3):
        state.model.student(ROWS).square().sum().backward()
        state.optimizer.step()
    torch.rand(5, generator=state.generator)
    write_state(tmp_path / "s", state, [{"epoch": 1, "loss": 0.1 + 0.2}])
    assert read_state(tmp_path / "s", fresh) == [{"epoch": 1, "loss": 0.1 + 0.2}]
    assert same(weights(state.model), weights(fresh.model))
    assert torch.equal(state.generator.get_state(), fresh.generator.get_state())
    ours, theirs = (list(s.optimizer.state.values()) for s in (state, fresh))
    assert [m["step"] for m in theirs] == [3, 3]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a["exp_avg"], b["exp_avg"]) and torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])


def test_the_state_of_our_optimiser_comes_back_whole(tmp_path):
    kept, fresh = run_of(7, SMALL), run_of(7, SMALL)
    for batch in ROWS.split(20):
        kept._step(batch, 1e-2, False)
    states = [TrainingState(run.head, run.optimizer, run.generator, {}, ROWS) for run in (kept, fresh)]
    write_state(tmp_path / "s", states[0], [])
    read_state(tmp_path / "s", states[1])
    assert same(weights(kept.head), weights(fresh.head))
    assert not same(weights(kept.head), weights(run_of(7, SMALL).head))
    for run in (kept, fresh):
        run._step(ROWS[:20], 5e-3, False)
    assert same(weights(kept.head), weights(fresh.head))
    assert [state["step"] for state in fresh.optimizer.state.values()] == [4, 4]


def test_no_file_is_an_empty_history_and_changes_nothing(tmp_path):
    state = state_of(1)
    before = weights(state.model)
    assert read_state(tmp_path / "none", state) == []
    assert same(before, weights(state.model)) and not state.optimizer.state


def test_a_refused_file_changes_nothing(tmp_path):
    done = state_of(1)
    done.model.student(ROWS).sum().backward()
    done.optimizer.step()
    write_state(tmp_path / "s", done, [])
    fresh = replace(state_of(2), identity={"seed": 1})
    before = weights(fresh.model)
    with pytest.raises(ValueError, match="other settings"):
        read_state(tmp_path / "s", fresh)
    assert same(before, weights(fresh.model)) and not fresh.optimizer.state


def test_the_fingerprint_depends_on_the_identity_and_on_the_rows_and_on_nothing_else():
    base = state_of(1)
    assert base.fingerprint() == state_of(2).fingerprint()
    reordered = json.loads('{"b": 1, "a": 2}'), json.loads('{"a": 2, "b": 1}')
    assert replace(base, identity=reordered[0]).fingerprint() == replace(base, identity=reordered[1]).fingerprint()
    for changed in ({"identity": {"seed": 1}}, {"rows": ROWS * 2}, {"rows": ROWS[1:]}, {"rows": ROWS[:, :6]}):
        assert replace(base, **changed).fingerprint() != base.fingerprint()
    assert replace(base, rows=gaussian(5000, 2)).fingerprint() != replace(base, rows=gaussian(5001, 2)).fingerprint()


def test_a_checkpoint_from_before_labels_could_be_hard_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "training.safetensors"
    whole, _ = train_head(ROWS, SMALL, seed=4)
    older = {name: value for name, value in asdict(SMALL).items() if name != "labels"}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(rcp.head._Run, "identity", lambda self: {"settings": older, "patches_per_image": self.unit})
        train_head(ROWS, SMALL, seed=4, checkpoint=path, callbacks=[kill_at(2)])
    recorder = Recorder()
    resumed, _ = train_head(ROWS, SMALL, seed=4, checkpoint=path, callbacks=[recorder])
    assert recorder.epochs == [3, 4] and same(weights(resumed), weights(whole))
    with pytest.raises(ValueError, match="other settings"):
        train_head(ROWS, replace(SMALL, labels="hard"), seed=4, checkpoint=path)


def test_a_model_from_before_labels_could_be_hard_comes_back_with_soft_ones(tiny, photos, tmp_path):
    bank = rcp.BankSettings(coreset=0.1, projection=None, folds=0)
    detector = rcp.ReConPatch(tiny, training=SMALL, bank=bank, device="cpu").fit(photos)
    file = detector.save(tmp_path / "model") / "model.json"
    content = rcp.files.read_json(file)
    assert content["settings"]["training"].pop("labels") == "soft"
    rcp.files.write_json(file, content)
    loaded = rcp.load(tmp_path / "model", device="cpu")
    assert loaded.training == SMALL
    assert torch.equal(loaded.score(photos).image_scores, detector.score(photos).image_scores)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": "pixels"},
        {"dimension": 0},
        {"projection": 0},
        {"batch_size": 1},
        {"epochs": -1},
        {"steps": 0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"learning_rate": 0.0},
        {"weight_decay": -1e-3},
        {"labels": "firm"},
    ],
)
def test_settings_out_of_range_are_refused_when_they_are_made(wrong):
    with pytest.raises(ValueError):
        TrainSettings(**wrong)


@pytest.mark.parametrize("wrong", [{"alpha": 1.5}, {"sigma": 0.0}, {"k": 1}, {"k": 13, "batch_size": 12}])
def test_settings_of_the_equations_out_of_range_are_refused_in_training(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        train_head(ROWS, replace(SMALL, **wrong), seed=0)


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match="margin"):
        train_head(ROWS, replace(SMALL, margin=-1.0), seed=0)


def test_a_misspelt_setting_is_an_error():
    with pytest.raises(TypeError):
        TrainSettings(epoch=3)


@pytest.mark.parametrize("n", [0, 1, 4])
def test_fewer_rows_than_neighbours_are_refused(n):
    with pytest.raises(ValueError, match="at least 5 patches"):
        train_head(ROWS[:n], SMALL, seed=0)


@pytest.mark.parametrize("patches", [None, 0, 7])
def test_batches_of_images_need_a_number_of_patches_that_divides_the_rows(patches):
    with pytest.raises(ValueError, match="patches_per_image"):
        train_head(ROWS, replace(SMALL, batch="images"), seed=0, patches_per_image=patches)


def test_the_defaults_are_those_of_the_paper_where_it_states_them():
    s = TrainSettings()
    assert (s.dimension, s.learning_rate, s.weight_decay) == (512, 1e-5, 1e-2)
    assert (s.k, s.margin, s.alpha, s.batch, s.batch_size) == (5, 1.0, 0.5, "patches", 784)
    assert s.normalize and s.relative_sigma is None and s.steps is None


def test_training_rows_of_exact_copies_never_gives_nan():
    rows = torch.cat([ROWS[:3].repeat(15, 1), torch.zeros(15, 7)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head, history = train_head(rows, SMALL, seed=0)
    assert all(weight.isfinite().all() for weight in weights(head))
    assert all(math.isfinite(record.loss) for record in history)
    assert isinstance(head.f, nn.Linear)
