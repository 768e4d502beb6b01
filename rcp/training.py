"""The training loop of the systems that train a network on good images: steps, a record now and then, a checkpoint.

ReConPatch's head has a loop of its own (`rcp.head`), whose step is written out for speed. Here autograd does the work.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from rcp import progress
from rcp.checkpoint import TrainingState, read_state, write_state

RECORDS = 20  # a training: enough for a curve


@dataclass(frozen=True)
class TrainingOptions:
    """What every training of a network needs; each system has defaults of its own, and its paper's beside them.

    Attributes:
        steps: of the optimizer.
        batch_size: images a step; fewer where there are fewer.
        learning_rate: at the beginning.
        held_out: share of the good images that are not trained on: they tell what normal images score. At least one, if
            there are two.
        smoothing: sigma of the maps' Gaussian, in pixels of the map.
    """

    steps: int = 200
    batch_size: int = 8
    learning_rate: float = 1e-3
    held_out: float = 0.1
    smoothing: float = 4.0

    def __post_init__(self):
        if self.steps < 0 or self.batch_size < 1:
            raise ValueError(f"steps must not be negative, batch_size at least 1, got {self.steps} and {self.batch_size}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is a share in [0, 1), got {self.held_out}; 0.1 holds one image of ten out")
        if self.smoothing < 0:
            raise ValueError(f"smoothing must not be negative, got {self.smoothing}")

    @property
    def stages(self) -> tuple[int, ...]:
        """Steps of each stage; a training of one stage has one."""
        return (self.steps,)

    def shortened(self, steps: int) -> Self:
        """Return the same with no more than so many steps a stage, for a probe of what the whole will take."""
        return replace(self, steps=min(steps, self.steps))


@dataclass(frozen=True)
class StepRecord:
    """What some steps in a row looked like.

    Attributes:
        step: the last of them, from 1.
        losses: name → mean over them; "loss" is what was minimised.
        learning_rate: of the last step, of the first group of parameters.
        seconds: wall time of them all.
    """

    step: int
    losses: dict[str, float]
    learning_rate: float
    seconds: float


Callback = Callable[[StepRecord], None]
Step = Callable[[Tensor, int], dict[str, Tensor]]


def train(
    step: Step,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    images: Tensor,
    options: TrainingOptions,
    generator: torch.Generator,
    identity: dict,
    factor: Callable[[int], float] = lambda number: 1.0,
    what: str = "training",
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
) -> list[StepRecord]:
    """Train in place, and return the history.

    Ctrl-C ends the training at the last record (and a warning); with a `checkpoint` a killed run goes on behind it, to the
    same weights as an uninterrupted one.

    Args:
        step: (indices of the images of a batch, (b,) int64 on the CPU; the number of the step, from 0) → named losses, of
            which "loss" is minimised.
        model: all that is trained, with its buffers; put into training mode here, and into evaluation mode at the end.
        optimizer: Adam, AdamW or AdamP over some of the model's parameters.
        images: (n, …) what the batches are drawn from; a checkpoint of other images is refused.
        options: steps and batch size.
        generator: draws the batches.
        identity: settings and seed; a checkpoint of others is refused.
        factor: number of the step → what the rates are multiplied with.
        what: of the progress bar.
        callbacks: called with every `StepRecord`.
        checkpoint: a file to go on from, if it exists, and written with every record.

    Returns:
        `RECORDS` records at most.

    Raises:
        ValueError: if the checkpoint belongs to other settings or images, or a loss is no number.
    """
    state = TrainingState(model, optimizer, generator, identity, images.flatten(1))
    history = [StepRecord(**record) for record in read_state(checkpoint, state)] if checkpoint else []
    rates = [group["lr"] for group in optimizer.param_groups]
    ends = sorted({math.ceil(options.steps * (i + 1) / RECORDS) for i in range(RECORDS)} - {0})
    model.train()
    with progress.bar(what, options.steps, "step") as shown:
        number = history[-1].step if history else 0
        shown.update(number)
        for end in [one for one in ends if one > number]:
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            try:
                history.append(_stretch(step, optimizer, rates, factor, len(images), options, generator, number, end, shown))
            except KeyboardInterrupt:
                model.load_state_dict(kept)
                warnings.warn(f"{what} was interrupted: what is kept is that of step {number}", stacklevel=2)
                break
            number = end
            if checkpoint:
                write_state(checkpoint, state, [asdict(record) for record in history])
            for callback in callbacks:
                callback(history[-1])
    model.eval()
    return history


def _stretch(step, optimizer, rates, factor, n, options, generator, first, end, shown) -> StepRecord:
    """The steps from `first` to `end`."""
    started, sums = time.perf_counter(), {}
    for number in range(first, end):
        indices = torch.randperm(n, generator=generator)[: options.batch_size]  # (b,)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(number)
        losses = step(indices, number)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if not math.isfinite(sums["loss"]):
            raise ValueError(f"the loss is no number at step {number + 1}: take a smaller learning_rate than {options.learning_rate:g}")
        shown.update(1)
    means = {name: value / (end - first) for name, value in sums.items()}
    return StepRecord(end, means, optimizer.param_groups[0]["lr"], time.perf_counter() - started)


@contextmanager
def drawn_from(generator: torch.Generator) -> Iterator[None]:
    """Let torch's own initialisation of layers draw from a generator; torch's global one stays where it was.

    Args:
        generator: on the CPU; moved on by one number.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def held_out(n: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return which images are trained on, and which are held out to tell what normal images score.

    Args:
        n: images, at least 1.
        share: to hold out; at least one image if the share is above 0 and there are two.
        generator: draws them.

    Returns:
        Indices (n_trained,) and (n_held,), int64, rising.
    """
    count = min(n - 1, max(1, round(n * share))) if share > 0 else 0
    order = torch.randperm(n, generator=generator)
    return order[count:].sort().values, order[:count].sort().values
