"""The relaxed contrastive loss: soft pseudo-labels pull and push (Eq. 7).

Distances are taken relative to each patch's mean distance to the batch, so that the margin means the same whatever the
scale of the features. A pair with label w is pulled together with weight w, and pushed apart with weight 1-w as long as
it is nearer than the margin.

Taught in notebook 03. Source: Hyun et al., ReConPatch, WACV 2024; the loss itself is Kim et al., *Embedding Transfer with
Label Relaxation*, CVPR 2021.
"""

from __future__ import annotations

from torch import Tensor

from rcp.distances import distances


def relative_distances(z: Tensor) -> Tensor:
    """Return δ, the L2 distances divided by each row's mean distance to the whole batch.

    Args:
        z: (N, D) student outputs, N >= 2; the gradient flows through the mean, too.

    Returns:
        (N, N), rows of mean 1, diagonal 0; not symmetric. All 0 if all rows are equal.

    Source: the definition of δ_ij above Eq. 7; the mean runs over all N rows, itself included.
    """
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"z must be (N, D) with at least two rows, got {tuple(z.shape)}")
    d = distances(z)  # (N, N)
    mean = d.mean(1, keepdim=True)  # (N, 1)
    return d / mean.masked_fill(mean == 0, 1)


def relaxed_contrastive_loss(z: Tensor, w: Tensor, margin: float = 1.0) -> Tensor:
    """Return L_RC, the relaxed contrastive loss of a batch of patches (Eq. 7).

    Args:
        z: (N, D) student outputs z = g(f(p)).
        w: (N, N) pseudo-labels in [0, 1], without gradient.
        margin: m, in relative distance.

    Returns:
        A scalar. It is divided by N, not by N².

    Raises:
        ValueError: if w does not fit z, or the margin is negative.

    Source: Eq. 7.
    """
    if w.shape != (len(z), len(z)):
        raise ValueError(f"w must be ({len(z)}, {len(z)}) for {len(z)} patches, got {tuple(w.shape)}")
    if margin < 0:
        raise ValueError(f"margin must not be negative, got {margin}")
    return loss_of_distances(relative_distances(z), w, margin)


def loss_of_distances(delta: Tensor, w: Tensor, margin: float = 1.0) -> Tensor:
    """Return Eq. 7 for relative distances that are already at hand (training records them, too).

    Args:
        delta: (N, N) relative distances.
        w: (N, N) pseudo-labels.
        margin: m.

    Returns:
        A scalar.

    Source: Eq. 7.
    """
    pull = w * delta.square()
    push = (1 - w) * (margin - delta).clamp_min(0).square()
    return (pull + push).sum() / len(delta)


def pushed_share(delta: Tensor, margin: float = 1.0) -> float:
    """Return the share of pairs i ≠ j that lie within the margin, i.e. on which the push term acts at all.

    Args:
        delta: (N, N) relative distances.
        margin: m.

    Returns:
        A share in [0, 1].
    """
    n = len(delta)
    within = (delta < margin).sum() - (delta.diagonal() < margin).sum()
    return float(within) / (n * (n - 1))
