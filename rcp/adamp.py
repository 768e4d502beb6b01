"""AdamP: Adam that does not let weights grow where only their direction counts.

The relaxed contrastive loss measures distances relative to their mean: multiply f or g by two, and nothing changes. For such
weights the gradient stands at a right angle to them, so that every step of Adam makes them longer, and the next one turns
them less. AdamP takes the part of the step that points along the weights out, wherever gradient and weights stand at
(nearly) a right angle.

timm has this optimiser, too (the tests hold ours against it). It asks the weights *whether* to project, a question that the
host has to wait for at every step on a GPU, and it passes over them about thirty times; here both answers are computed as
tensors, in a dozen passes.

Source: Heo et al., *AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights*, ICLR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BETAS = (0.9, 0.999)  # of the running means of gradient and squared gradient
EPS = 1e-8
RIGHT_ANGLE = 0.1  # δ of the paper: |cos| below δ / √n counts as a right angle
DECAY_SHARE = 0.1  # of the weight decay, for weights whose step was projected


class AdamP(torch.optim.Optimizer):
    """AdamP for matrices, with the constants of its paper."""

    def __init__(self, parameters: Sequence[Tensor], lr: float, weight_decay: float):
        """Take the matrices to move.

        Args:
            parameters: (rows, columns) each, floating point, with `grad` set before each step.
            lr: learning rate; `param_groups[0]["lr"]` may be changed between steps.
            weight_decay: share of the weights that lr = 1 would take away a step.

        Raises:
            ValueError: if a parameter is not a matrix.
        """
        for parameter in parameters:
            if parameter.ndim != 2:
                raise ValueError(f"this AdamP moves matrices, got a parameter of shape {tuple(parameter.shape)}")
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

        # Two matrices to work in, kept: fresh ones of this size cost more in page faults than in arithmetic.
        self._room = {parameter: torch.empty(2, *parameter.shape).to(parameter) for parameter in parameters}

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter by its gradient; nothing is read back to the host."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
                state["step"] += 1
                _move(
                    parameter, parameter.grad, **state, lr=group["lr"], weight_decay=group["weight_decay"],
                    room=self._room[parameter],
                )  # fmt: skip


def _move(
    p: Tensor,
    grad: Tensor,
    step: int,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float,
    weight_decay: float,
    room: Tensor,
) -> None:
    """One step for one matrix (rows, columns); algorithm 2 of the paper. `room`: (2, rows, columns), written over."""
    first, second = room
    # Is the gradient at a right angle to each row? If not, is it to the matrix as a whole?
    dot = torch.mul(p, grad, out=first).sum(1)  # (rows,)
    pp, gg = (torch.linalg.vector_norm(x, dim=1).square() for x in (p, grad))  # (rows,) each
    by_row = (_cosine(dot, pp, gg) < RIGHT_ANGLE / math.sqrt(p.shape[1])).all()
    as_whole = _cosine(dot.sum(), pp.sum(), gg.sum()) < RIGHT_ANGLE / math.sqrt(p.numel())

    exp_avg.lerp_(grad, 1 - BETAS[0])
    exp_avg_sq.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
    root = math.sqrt(1 - BETAS[1] ** step)
    size = lr * root / (1 - BETAS[0] ** step)  # both corrections of the means' start
    torch.sqrt(exp_avg_sq, out=first).add_(EPS * root)
    move = torch.div(exp_avg, first, out=first)  # Adam's step, but for its size

    along = torch.mul(p, move, out=second).sum(1)  # (rows,)
    of_rows = along / (pp.sqrt() + EPS).square()
    of_whole = along.sum() / (pp.sum().sqrt() + EPS).square()
    share = torch.where(by_row, of_rows, torch.where(as_whole, of_whole, 0.0))  # (rows,) of p, to be taken out of the move
    projected = (by_row | as_whole).to(p.dtype)  # as a number: torch.where on two floats would round them to float32
    decay = lr * weight_decay * (1 - (1 - DECAY_SHARE) * projected)
    p.mul_((1 - decay + size * share)[:, None]).add_(move, alpha=-size)


def _cosine(dot: Tensor, pp: Tensor, gg: Tensor) -> Tensor:
    """|cos| of the angle between vectors, from their products."""
    return dot.abs() / (pp.sqrt() * gg.sqrt()).clamp_min(EPS)
