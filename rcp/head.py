"""The head: two linear layers, their slow twins, and the training (Eq. 8 and the loop around Eqs 1-7).

f makes the features that the memory keeps, g is dropped after training. The *teacher* (f̄, ḡ) is an exponential moving
average of the *student* (f, g): it gives the pseudo-labels and gets no gradient. Because the teacher moves, the loss may
rise while training works: that is not a fault.

Taught in notebook 03. Source: Hyun et al., ReConPatch, WACV 2024; what the paper leaves open (γ, batch, initialisation,
width of g) is our choice and an option here.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from rcp import progress
from rcp.adamp import AdamP
from rcp.checkpoint import TrainingState, read_state, write_state
from rcp.loss import loss_and_gradient, pushed_share
from rcp.similarity import Labels, labels_with_means

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LOOKS = 8  # steps of an epoch at which the batch statistics are recorded


@dataclass(frozen=True)
class TrainSettings:
    """How f is trained. Defaults: the paper's where it states them, else ours (marked *ours*).

    Attributes:
        dimension: width of f, i.e. of the features in the memory.
        projection: width of g (ours).
        epochs: passes over all patches; 0 leaves f as it was drawn. The paper has 120; 10 is for a laptop (ours).
        steps: steps an epoch, if it is to see only a random part of the patches (ours); None: all patches once.
        batch: "patches", drawn from all training images, or "images", whole ones (ours: the paper does not say).
        batch_size: patches a step (ours: 784, an image at 224); with "images", as many whole images as fit, at least one.
        learning_rate, weight_decay: of AdamP; the rate falls to 0 along a cosine, step by step.
        momentum: γ of Eq. 8 (ours).
        k, margin, alpha, sigma: of Eqs 2, 7, 6 and 1 (second-hand: the defaults of the method's ancestor).
        normalize: z̄ is brought to length 1 before Eqs 1-5 (ours).
        relative_sigma: sigma counts in mean squared distances; None: exactly if z̄ is not normalised (ours).
        labels: "soft", w of Eq. 6 as it is; or "hard", 1 where w >= 0.5 and else 0 (an ablation).
    """

    dimension: int = 512
    projection: int = 512
    epochs: int = 10
    steps: int | None = None
    batch: str = "patches"
    batch_size: int = 784
    learning_rate: float = 1e-5
    weight_decay: float = 1e-2
    momentum: float = 0.999
    k: int = 5
    margin: float = 1.0
    alpha: float = 0.5
    sigma: float = 1.0
    normalize: bool = True
    relative_sigma: bool | None = None
    labels: str = "soft"

    def __post_init__(self):
        if self.labels not in ("soft", "hard"):
            raise ValueError(f"labels must be 'soft' or 'hard', got {self.labels!r}")
        if self.batch not in ("patches", "images"):
            raise ValueError(f"batch must be 'patches' or 'images', got {self.batch!r}")
        if min(self.dimension, self.projection, self.batch_size - 1) < 1 or self.epochs < 0:
            raise ValueError("dimension and projection must be positive, batch_size at least 2, epochs not negative")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be positive or None, got {self.steps}")
        if self.margin < 0:
            raise ValueError(f"margin must not be negative, got {self.margin}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum (γ) must lie in [0, 1), got {self.momentum}")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError("learning_rate must be positive, weight_decay not negative")


PAPER_SINGLE = TrainSettings(epochs=120)  # the paper's single models
PAPER_ENSEMBLE = TrainSettings(dimension=384, epochs=60, learning_rate=1e-6)  # each member of its ensembles


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch looked like. Batch statistics are means over at most 8 evenly spaced steps.

    Attributes:
        epoch: from 1.
        loss: mean L_RC of all steps.
        pushed_share: share of pairs i ≠ j nearer than the margin.
        pairwise_mean, contextual_mean: mean w^P and w^C of pairs i ≠ j.
        delta_quantiles: 5, 25, 50, 75 and 95 % quantile of δ, i ≠ j.
        ema_distance: ‖θ_teacher - θ_student‖ / ‖θ_student‖, at the end.
        learning_rate: of the last step.
        seconds: wall time.
    """

    epoch: int
    loss: float
    pushed_share: float
    pairwise_mean: float
    contextual_mean: float
    delta_quantiles: tuple[float, ...]
    ema_distance: float
    learning_rate: float
    seconds: float

    @classmethod
    def of(cls, plain: dict) -> Self:
        """Return the record that JSON made plain data of."""
        return cls(**plain | {"delta_quantiles": tuple(plain["delta_quantiles"])})


class Head(nn.Module):
    """f and g, linear without bias, and their exponential moving averages f̄ and ḡ."""

    def __init__(self, width: int, dimension: int = 512, projection: int = 512, *, generator: torch.Generator):
        """Draw f and g uniformly from ±1/√inputs (torch's default for linear layers); teacher = student.

        Args:
            width: C of the patch features.
            dimension: of f.
            projection: of g.
            generator: draws the weights, on the CPU.
        """
        super().__init__()
        # No bias: it would move all rows alike and change no distance. skip_init: the weights are drawn below, from our
        # own generator, and torch's global one stays where it was.
        self.f = nn.utils.skip_init(nn.Linear, width, dimension, bias=False)
        self.g = nn.utils.skip_init(nn.Linear, dimension, projection, bias=False)
        with torch.no_grad():
            for layer in (self.f, self.g):
                bound = layer.in_features**-0.5
                layer.weight.copy_(torch.rand(layer.weight.shape, generator=generator) * 2 * bound - bound)
        self.teacher_f = copy.deepcopy(self.f).requires_grad_(False)
        self.teacher_g = copy.deepcopy(self.g).requires_grad_(False)

    def student(self, p: Tensor) -> Tensor:
        """Return z = g(f(p)): (N, C) → (N, projection)."""
        return self.g(self.f(p))

    @torch.no_grad()
    def teacher(self, p: Tensor) -> Tensor:
        """Return z̄ = ḡ(f̄(p)), without gradient: (N, C) → (N, projection)."""
        return self.teacher_g(self.teacher_f(p))

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher by (1-γ) of the way to the student (Eq. 8)."""
        for slow, fast in ((self.teacher_f, self.f), (self.teacher_g, self.g)):
            slow.weight.lerp_(fast.weight, 1 - momentum)

    @torch.no_grad()
    def ema_distance(self) -> float:
        """Return ‖θ_teacher - θ_student‖ / ‖θ_student‖ over both layers."""
        student = torch.cat([self.f.weight.flatten(), self.g.weight.flatten()])
        teacher = torch.cat([self.teacher_f.weight.flatten(), self.teacher_g.weight.flatten()])
        return float((teacher - student).norm() / student.norm())


@dataclass(frozen=True)
class EpochEnd:
    """What a callback gets: where training stands.

    Attributes:
        epoch: 0 before the first step, then 1, 2, …
        head: with the current f (`head.f`); copy what you keep.
        record: of the epoch, None for epoch 0.
    """

    epoch: int
    head: Head
    record: EpochRecord | None


Callback = Callable[[EpochEnd], None]


def train_head(
    rows: Tensor,
    settings: TrainSettings = TrainSettings(),
    *,
    seed: int,
    patches_per_image: int | None = None,
    device: torch.device | str = "cpu",
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    run_class: type[_Run] | None = None,
) -> tuple[Head, list[EpochRecord]]:
    """Return a trained head and its history.

    Ctrl-C ends the training with the last full epoch (and a warning). With a `checkpoint`, a killed run goes on behind its
    last full epoch, to the same weights as an uninterrupted one.

    Args:
        rows: (N, C) patch features of normal images, image by image, float32 or half as wide, in memory or in a mapped
            file; batches travel from there to the device, in float32. (If a GPU has room for all rows, they move there.)
        settings: `TrainSettings`.
        seed: draws the weights and the batches.
        patches_per_image: H·W, needed for batches of whole images.
        device: where the head is trained.
        callbacks: called before the first step and after every epoch with an `EpochEnd`.
        checkpoint: a file to go on from, if it exists, and written after every epoch.
        run_class: whose steps to take; None: those of the paper. (`rcp.ports` has others.)

    Returns:
        The `Head`, and one `EpochRecord` an epoch.

    Raises:
        ValueError: if there are fewer than two or than k rows, or the checkpoint belongs to other settings or features.

    Source: ReConPatch, Eqs 1-8; AdamP with cosine annealing as its section 4.1 states.
    """
    if len(rows) < max(2, settings.k):
        raise ValueError(f"training needs at least {max(2, settings.k)} patches (k = {settings.k}), got {len(rows)}")
    rows = _beside(rows, torch.device(device))
    generator = torch.Generator().manual_seed(seed)
    head = Head(rows.shape[1], settings.dimension, settings.projection, generator=generator).to(device)
    parameters = [head.f.weight, head.g.weight]
    optimizer = AdamP(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    run = (run_class or _Run)(rows, settings, head, optimizer, generator, patches_per_image)
    state = TrainingState(head, optimizer, generator, run.identity() | {"seed": seed}, rows)
    history = [EpochRecord.of(record) for record in read_state(checkpoint, state)] if checkpoint else []
    if not history:
        _call(callbacks, EpochEnd(0, head, None))
    with progress.bar("training", settings.epochs * run.steps, "step") as shown:
        shown.update(len(history) * run.steps)
        while len(history) < settings.epochs:
            done, kept = len(history), copy.deepcopy(head.state_dict())
            try:
                history.append(run.epoch(done + 1, shown))
                if checkpoint:
                    write_state(checkpoint, state, [asdict(record) for record in history])
                _call(callbacks, EpochEnd(len(history), head, history[-1]))
            except KeyboardInterrupt:
                if len(history) == done:  # in the middle of an epoch: back to its start
                    head.load_state_dict(kept)
                warnings.warn(f"training was interrupted: f is that of epoch {len(history)}", stacklevel=2)
                break
    head.f.weight.data, head.teacher_f.weight.data = head.f.weight.data.clone(), head.teacher_f.weight.data.clone()
    return head.requires_grad_(False).eval(), history


def _beside(rows: Tensor, device: torch.device) -> Tensor:
    """The rows on the GPU where the training runs, if they take at most half of its free memory; else where they are."""
    if device.type != "cuda" or rows.device == device or rows.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return rows
    return rows.to(device)


def _call(callbacks: Sequence[Callback], event: EpochEnd) -> None:
    for callback in callbacks:
        callback(event)


class _Run:
    """One training: the batches of an epoch, and a step."""

    def __init__(self, rows, settings, head, optimizer, generator, patches_per_image):
        self.rows, self.settings, self.head = rows, settings, head
        self.optimizer, self.generator = optimizer, generator
        self.unit = 1  # rows that are drawn together
        if settings.batch == "images":
            if not patches_per_image or len(rows) % patches_per_image:
                raise ValueError(
                    f"batches of whole images need patches_per_image to divide {len(rows)} rows, got {patches_per_image}"
                )
            self.unit = patches_per_image
        self.units = len(rows) // self.unit
        self.draw = min(self.units, max(1, settings.batch_size // self.unit))  # units a step
        full = self.units // self.draw  # the rest is left out; it is another rest every epoch
        self.steps = min(full, settings.steps or full)
        # f and f̄ lie one under the other in one matrix (2·dimension, C), so that one product serves both.
        self.both = torch.cat([head.f.weight.detach(), head.teacher_f.weight])
        head.f.weight.data, head.teacher_f.weight.data = self.both.tensor_split(2)
        self.relative = settings.relative_sigma if settings.relative_sigma is not None else not settings.normalize

    def identity(self) -> dict:
        """What a checkpoint has to agree with."""
        settings = asdict(self.settings)
        if self.settings.labels == "soft":
            del settings["labels"]  # so that checkpoints from before there was a choice still fit
        return {"settings": settings, "patches_per_image": self.unit}

    def epoch(self, number: int, shown) -> EpochRecord:
        started = time.perf_counter()
        order = torch.randperm(self.units, generator=self.generator).to(self.rows.device)
        looks = set(torch.linspace(0, self.steps - 1, min(LOOKS, self.steps)).round().int().tolist())
        losses, seen = [], []
        for step in range(self.steps):
            rate = self._rate((number - 1) * self.steps + step)
            loss, statistics = self._step(self._batch(order, step), rate, step in looks)
            losses.append(loss)
            seen += statistics
            shown.update(1)
        loss = float(torch.stack(losses).mean())
        pushed, pairwise, contextual, *quantiles = torch.tensor(seen).mean(0).tolist()
        seconds = time.perf_counter() - started
        return EpochRecord(
            number, loss, pushed, pairwise, contextual, tuple(quantiles), self.head.ema_distance(), rate, seconds
        )

    def _rate(self, step: int) -> float:
        """Cosine annealing from the learning rate to 0 over all steps of the training."""
        total = self.settings.epochs * self.steps
        return self.settings.learning_rate * (1 + math.cos(math.pi * step / total)) / 2

    def _batch(self, order: Tensor, step: int) -> Tensor:
        units = order[step * self.draw : (step + 1) * self.draw]
        whole = self.rows.view(self.units, -1).index_select(0, units).view(-1, self.rows.shape[1])  # (N, C)
        return whole.to(self.head.f.weight.device, non_blocking=True).float()

    @torch.no_grad()
    def _step(self, p: Tensor, rate: float, look: bool) -> tuple[Tensor, list[list[float]]]:
        s, head = self.settings, self.head
        # One product for student and teacher, as both begin with p; the gradients of two linear layers are written out.
        h, slow_h = (p @ self.both.T).tensor_split(2, 1)  # (N, dimension) each
        labels = self._labels(self._target(h, slow_h))
        if s.labels == "hard":
            labels.w.ge_(0.5)  # in place: 1 or 0
        loss, back, delta = loss_and_gradient(head.g(h), labels.w, s.margin)  # Eq. 7; back: (N, projection) = ∂L/∂z
        head.g.weight.grad = back.T @ h
        head.f.weight.grad = (back @ head.g.weight).T @ p
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self._update_teacher()
        return loss, [self._look(delta, labels)] if look else []

    def _target(self, h: Tensor, slow_h: Tensor) -> Tensor:
        """z̄ from f(p) and f̄(p): (N, dimension) each → (N, projection)."""
        return self.head.teacher_g(slow_h)

    def _labels(self, z: Tensor) -> Labels:
        """z̄ (N, projection) → labels, Eqs 1-6."""
        s = self.settings
        return labels_with_means(z, s.alpha, s.sigma, s.k, s.normalize, self.relative)

    def _update_teacher(self) -> None:
        self.head.update_teacher(self.settings.momentum)  # Eq. 8

    def _look(self, delta: Tensor, labels: Labels) -> list[float]:
        others = _off_diagonal(delta)  # (N-1, N), a view
        picks = torch.arange(0, others.numel(), max(1, others.numel() // 50_000), device=others.device)
        some = others[picks // others.shape[1], picks % others.shape[1]]  # enough for quantiles, and cheap to sort
        quantiles = torch.quantile(some, torch.tensor(QUANTILES, dtype=some.dtype, device=some.device)).tolist()
        share = pushed_share(delta, self.settings.margin)
        return [share, float(labels.pairwise_mean), float(labels.contextual_mean), *quantiles]


def _off_diagonal(square: Tensor) -> Tensor:
    """(N, N) → (N-1, N): all entries but the diagonal, as a view: they lie between its entries, N at a time."""
    n = len(square)
    return square.contiguous().flatten()[1:].view(n - 1, n + 1)[:, :-1]
