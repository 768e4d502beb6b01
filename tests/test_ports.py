"""The ports' bugs: each is seen at work, alone, beside the training without it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rcp
import rcp.head
from rcp import BankSettings, ReConPatch, TrainSettings
from rcp.head import EpochEnd, Head, train_head
from rcp.loss import relaxed_contrastive_loss
from rcp.ports import BUGS, SCALE, PortedReConPatch, ported_contextual_similarity
from rcp.similarity import Labels, contextual_similarity, pseudo_labels, similarities

SMALL = TrainSettings(
    dimension=9, projection=6, epochs=3, batch_size=20, learning_rate=1e-2, weight_decay=0.3, momentum=0.9
)
QUICK = replace(SMALL, epochs=2, batch_size=224)  # for the seven photos: three steps an epoch
BANK = BankSettings(coreset=0.1, projection=None, folds=0)
each = pytest.mark.parametrize("bug", BUGS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


ROWS = gaussian(60, 7)


def settings_of(bug: str | None, base: TrainSettings = SMALL) -> TrainSettings:
    return replace(base, **SCALE) if bug in ("scale", "all") else base


def ported(tiny, bug: str | None, **options) -> PortedReConPatch:
    return PortedReConPatch(tiny, bug=bug, **{"training": QUICK, "bank": BANK, "device": "cpu"} | options)


@pytest.fixture(scope="module")
def features(tiny, photos) -> rcp.features.PatchFeatures:
    return rcp.features.PatchExtractor(tiny, device="cpu").extract(photos)


def weights(head: Head) -> list[torch.Tensor]:
    return [layer.weight.detach().clone() for layer in (head.f, head.g, head.teacher_f, head.teacher_g)]


def targets_and_labels(monkeypatch, bug: str | None, options: TrainSettings, rows=ROWS):
    """Per step of a training: (batch, weights before the step, labels)."""
    kind = BUGS[bug] if bug else rcp.head._Run
    seen, step, loss = [], kind._step, rcp.head.loss_and_gradient

    def spying(self, p, *rest):
        seen.append([p.clone(), weights(self.head)])
        return step(self, p, *rest)

    def noting(z, w, margin):
        seen[-1].append(w.clone())
        return loss(z, w, margin)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "_step", spying)
        patch.setattr(rcp.head, "loss_and_gradient", noting)
        train_head(rows, options, seed=1, run_class=kind)
    return seen


# --- slow twins -----------------------------------------------------------------------------------


def slow_ported_contextual(z: torch.Tensor, k: int) -> torch.Tensor:
    """Pair by pair, each bug at its place."""
    rows, n = z.tolist(), len(z)
    near = [set(sorted(range(n), key=lambda j: (j != i, math.dist(rows[i], rows[j])))[:k]) for i in range(n)]
    shared = [[len(near[i] & near[j]) / k for j in range(n)] for i in range(n)]  # no mask
    mutual = [[j for j in range(n) if j in near[i] and i in near[j]] for i in range(n)]  # R_k
    expanded = torch.tensor(
        [[sum(shared[i][m] / len(mutual[m]) for m in mutual[j]) for j in range(n)] for i in range(n)]  # w̃ R, not R w̃
    )
    return (expanded + expanded.T) / 2


@st.composite
def batches(draw):
    n = draw(st.integers(2, 16))
    z = gaussian(n, draw(st.integers(2, 5)), seed=draw(st.integers(0, 10**6)), dtype=torch.float64)
    return z, draw(st.integers(1, n))


@settings(deadline=None, max_examples=40)
@given(batches())
def test_the_ported_similarity_equals_a_pair_by_pair_loop(batch):
    torch.testing.assert_close(ported_contextual_similarity(*batch), slow_ported_contextual(*batch).double(), rtol=0, atol=1e-6)


def slow_training(rows, s: TrainSettings, seed: int, bug: str | None):
    """The training word by word, with the bug at its place; ported labels from the slow twin."""
    generator = seeded(seed)
    head = Head(rows.shape[1], s.dimension, s.projection, generator=generator)
    student = [head.f.weight.detach().clone().requires_grad_(), head.g.weight.detach().clone().requires_grad_()]
    teacher = [w.detach().clone() for w in student]
    optimizer = rcp.head.AdamP(student, lr=s.learning_rate, weight_decay=s.weight_decay)
    steps = len(rows) // s.batch_size
    for epoch in range(s.epochs):
        order = torch.randperm(len(rows), generator=generator)
        for step in range(steps):
            p = rows[order[step * s.batch_size : (step + 1) * s.batch_size]]
            body = student[0].detach() if bug in ("mixed teacher", "all") else teacher[0]
            z = p @ body.T @ teacher[1].T
            relative = not s.normalize if s.relative_sigma is None else s.relative_sigma
            w = pseudo_labels(z, s.alpha, s.sigma, s.k, s.normalize, relative)
            if bug in ("labels", "all"):
                pairwise, _ = similarities(z, s.sigma, s.k, s.normalize, relative)
                unit = torch.nn.functional.normalize(z, dim=1) if s.normalize else z
                w = s.alpha * pairwise + (1 - s.alpha) * slow_ported_contextual(unit, s.k)
            loss = relaxed_contrastive_loss(p @ student[0].T @ student[1].T, w, s.margin)
            optimizer.zero_grad()
            loss.backward()
            progress = (epoch * steps + step) / (s.epochs * steps)
            optimizer.param_groups[0]["lr"] = s.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
            optimizer.step()
            if bug not in ("frozen teacher", "all"):
                teacher = [s.momentum * t + (1 - s.momentum) * w.detach() for t, w in zip(teacher, student, strict=True)]
    return [*(w.detach() for w in student), *teacher]


@pytest.mark.parametrize("change", [{}, {"normalize": False}, {"k": 8, "alpha": 0.2}])
@each
def test_training_with_a_bug_equals_a_plain_loop_with_it(bug, change):
    options = settings_of(bug, replace(SMALL, **change))
    head, _ = train_head(ROWS, options, seed=3, run_class=BUGS[bug])
    for ours, theirs in zip(weights(head), slow_training(ROWS, options, 3, bug), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


# --- each bug at work -----------------------------------------------------------------------------


def test_ported_similarities_exceed_one_and_ours_never_do():
    rows = torch.cat([gaussian(1, 4), gaussian(60, 4, seed=2)]) * torch.tensor([1.0, 0.2, 0.1, 0.1])
    for k in (3, 5, 10):
        wrong, right = ported_contextual_similarity(rows, k), contextual_similarity(rows, k)
        assert wrong.max() > 1.02 and right.max() <= 1 + 1e-6
        assert torch.allclose(wrong, wrong.T) and wrong.min() >= 0


def test_with_wrong_labels_one_minus_w_turns_negative_in_training(monkeypatch):
    options, rows = replace(SMALL, batch_size=60), gaussian(120, 7) * 0.6 ** torch.arange(7)
    wrong, right = (targets_and_labels(monkeypatch, bug, options, rows) for bug in ("labels", None))
    assert max(float(w.max()) for *_, w in wrong) > 1.02
    assert max(float(w.max()) for *_, w in right) <= 1 + 1e-6


def test_with_wrong_labels_the_history_has_the_means_of_both_parts(monkeypatch):
    _, (record,) = train_head(ROWS, replace(SMALL, epochs=1, batch_size=60), seed=0, run_class=BUGS["labels"])
    z = Head(7, 9, 6, generator=seeded(0)).teacher(ROWS)
    off = ~torch.eye(60, dtype=torch.bool)
    pairwise, _ = similarities(z)
    contextual = ported_contextual_similarity(torch.nn.functional.normalize(z, dim=1))
    assert record.pairwise_mean == pytest.approx(float(pairwise[off].mean()), abs=1e-5)
    assert record.contextual_mean == pytest.approx(float(contextual[off].mean()), abs=1e-5)


def test_a_frozen_teacher_is_the_untrained_network_to_the_end():
    head, history = train_head(ROWS, SMALL, seed=0, run_class=BUGS["frozen teacher"])
    untrained = Head(7, 9, 6, generator=seeded(0))
    assert torch.equal(head.teacher_f.weight, untrained.f.weight) and torch.equal(head.teacher_g.weight, untrained.g.weight)
    assert not torch.equal(head.f.weight, untrained.f.weight)
    distances = [record.ema_distance for record in history]
    assert distances == sorted(distances) and distances[0] > 0
    moving, _ = train_head(ROWS, SMALL, seed=0)
    assert not torch.equal(moving.teacher_f.weight, untrained.f.weight)


def test_a_mixed_teacher_labels_by_the_slow_head_on_the_online_body(monkeypatch):
    seen = targets_and_labels(monkeypatch, "mixed teacher", SMALL)
    for p, (f, _, slow_f, slow_g), w in seen[1:]:
        torch.testing.assert_close(w, pseudo_labels(p @ f.T @ slow_g.T), rtol=0, atol=1e-5)
        assert (w - pseudo_labels(p @ slow_f.T @ slow_g.T)).abs().max() > 1e-3
    for p, (_, _, slow_f, slow_g), w in targets_and_labels(monkeypatch, None, SMALL):
        torch.testing.assert_close(w, pseudo_labels(p @ slow_f.T @ slow_g.T), rtol=0, atol=1e-5)


def test_all_bugs_at_once_are_each_of_them(monkeypatch):
    untrained = Head(7, 9, 6, generator=seeded(1))
    options = settings_of("all", replace(SMALL, normalize=True))
    for p, (f, _, slow_f, slow_g), w in targets_and_labels(monkeypatch, "all", options):
        assert torch.equal(slow_f, untrained.f.weight) and torch.equal(slow_g, untrained.g.weight)
        z = p @ f.T @ slow_g.T
        pairwise, _ = similarities(z, options.sigma, options.k, options.normalize, False)
        torch.testing.assert_close(w, 0.5 * pairwise + 0.5 * ported_contextual_similarity(z, options.k), rtol=0, atol=1e-5)


def test_the_scale_of_the_ports_is_theirs_and_the_rest_of_the_settings_is_the_users(tiny):
    detector = ported(tiny, "scale", training=replace(SMALL, sigma=4.0, k=7))
    assert detector.training == replace(SMALL, sigma=1.0, normalize=False, relative_sigma=False, k=3, margin=0.1)
    assert ported(tiny, "all", training=replace(SMALL, sigma=4.0, k=7)).training == detector.training
    assert ported(tiny, "labels").training == QUICK


def test_with_the_scale_of_the_ports_w_p_is_zero_off_the_diagonal_and_no_pair_is_pushed():
    rows = 60 * gaussian(200, 7)  # features as long as a backbone's
    options = replace(SMALL, batch_size=100)
    _, wrong = train_head(rows, settings_of("scale", options), seed=0, run_class=BUGS["scale"])
    _, right = train_head(rows, options, seed=0)
    assert wrong[-1].pairwise_mean < 0.01 and right[-1].pairwise_mean > 0.1
    assert wrong[-1].pushed_share < 0.01 and right[-1].pushed_share > 0.2


# --- paired with the training without a bug -------------------------------------------------------


@each
def test_first_weights_and_batches_are_those_of_the_training_without_the_bug(monkeypatch, bug):
    wrong, right = targets_and_labels(monkeypatch, bug, settings_of(bug)), targets_and_labels(monkeypatch, None, SMALL)
    assert len(wrong) == len(right) == 9
    assert all(torch.equal(a[0], b[0]) for a, b in zip(wrong, right, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(wrong[0][1], right[0][1], strict=True))
    assert not torch.equal(wrong[-1][1][0], right[-1][1][0])


def test_without_a_bug_it_is_reconpatch_to_the_bit(tiny, features):
    ours = ported(tiny, None).fit(features)
    theirs = ReConPatch(tiny, training=QUICK, bank=BANK, device="cpu").fit(features)
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.memory.rows, theirs.memory.rows)
    assert torch.equal(ours.score(features).patch_scores, theirs.score(features).patch_scores)
    assert [r.loss for r in ours.history] == [r.loss for r in theirs.history]


@each
def test_fitting_twice_gives_the_same_bits_and_another_f_than_without_the_bug(tiny, features, bug):
    first, again = ported(tiny, bug).fit(features), ported(tiny, bug).fit(features)
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.score(features).patch_scores, again.score(features).patch_scores)
    assert not torch.equal(first.weight, ported(tiny, None).fit(features).weight)


def test_hard_labels_are_hard_with_a_bug_too(monkeypatch):
    for *_, w in targets_and_labels(monkeypatch, "labels", replace(SMALL, labels="hard")):
        assert set(w.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_wrong_labels_take_no_wrong_alpha(alpha):
    with pytest.raises(ValueError, match="alpha must lie in"):
        train_head(ROWS, replace(SMALL, alpha=alpha), seed=0, run_class=BUGS["labels"])


# --- files ----------------------------------------------------------------------------------------


@each
def test_a_saved_port_comes_back_to_the_bit(tiny, features, tmp_path, bug):
    detector = ported(tiny, bug).fit(features)
    loaded = PortedReConPatch.load(detector.save(tmp_path / "model"), device="cpu")
    assert loaded.bug == bug and loaded.settings() == detector.settings() and loaded.history == detector.history
    assert torch.equal(loaded.score(features).patch_scores, detector.score(features).patch_scores)
    with pytest.raises(ValueError, match="unknown detector 'ported'"):
        rcp.load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match="holds a ported, not a reconpatch"):
        ReConPatch.load(tmp_path / "model", device="cpu")


class Killed(Exception):
    """Stands for whatever ends a process."""


def kill_at_two(event: EpochEnd) -> None:
    if event.epoch == 2:
        raise Killed


@each
def test_a_killed_port_goes_on_to_the_same_bits_and_its_checkpoint_serves_no_other_bug(tmp_path, bug):
    def trained(bug: str | None, **more) -> list[torch.Tensor]:
        return weights(train_head(ROWS, settings_of(bug), seed=4, run_class=BUGS.get(bug), **more)[0])

    whole, path = trained(bug), tmp_path / "training.safetensors"
    with pytest.raises(Killed):
        trained(bug, checkpoint=path, callbacks=[kill_at_two])
    for other in {*BUGS, None} - {bug}:
        with pytest.raises(ValueError, match="belongs to a training with other settings"):
            trained(other, checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(trained(bug, checkpoint=path), whole, strict=True))


def test_the_detector_hands_checkpoints_and_callbacks_on(tiny, features, tmp_path):
    seen, path = [], tmp_path / "training.safetensors"
    ported(tiny, "labels").fit(features, checkpoint=path, callbacks=[lambda event: seen.append(event.epoch)])
    assert seen == [0, 1, 2] and path.is_file()
    with pytest.raises(ValueError, match="other settings"):
        ported(tiny, None).fit(features, checkpoint=path)


def test_batches_of_whole_images_work_with_a_bug(tiny, features):
    options = replace(QUICK, batch="images", batch_size=192)  # two images of 8x12 patches
    assert len(ported(tiny, "labels", training=options).fit(features).history) == 2


def test_an_unknown_bug_is_refused_by_name():
    with pytest.raises(ValueError, match="bug must be one of labels, frozen teacher, mixed teacher, scale, all, or None, got 'nan'"):
        PortedReConPatch(bug="nan")
    with pytest.raises(TypeError, match="bug"):
        PortedReConPatch()


def test_the_labels_of_the_step_are_what_the_history_needs():
    run = BUGS["labels"](torch.empty(60, 7), SMALL, Head(7, 9, 6, generator=seeded()), None, seeded(), None)
    labels = run._labels(gaussian(20, 6, dtype=torch.float64))
    assert isinstance(labels, Labels) and labels.w.shape == (20, 20) and labels.w.dtype == torch.float64
    assert torch.allclose(labels.w, labels.w.T)
