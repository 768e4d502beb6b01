"""The bugs of the public ports of ReConPatch, one at a time or all at once, to ask whether they explain what the ports measured.

No port is tested against the equations, and the one with published numbers finds no gain over PatchCore. Does the method not
help, or do the bugs hide it? Here everything is ours but for the bug, with the same first weights and the same batches for the
same seed: whatever differs comes from the bug.

==================  ==============================================================================================
bug                 what is wrong
==================  ==============================================================================================
"labels"            Eq. 2 without its mask j ∈ N_k(i), Eq. 4 over R_k instead of R_{k/2} and with its product the wrong
                    way round: w^C can exceed 1, then w as well, and 1-w < 0 turns a push into a pull
"frozen teacher"    Eq. 8 is never called: the labels are for ever those of the untrained network
"mixed teacher"     z̄ = ḡ(f(p)): the slow head on the student's own body, so that the labels move with every step
"scale"             σ = 1 on z̄ that is not normalised, k = 3 and a margin of 0.1: w^P follows the scale of the features,
                    query expansion does nothing (k/2 = 1), and next to no pair lies within the margin
"all"               all four: z̄ = ḡ(f(p)) with the ḡ that f began with
==================  ==============================================================================================

A saved detector comes back by `PortedReConPatch.load`; `rcp.load` knows no detector that is wrong on purpose.

Source: the code of the public ports of Hyun et al., ReConPatch, WACV 2024.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from rcp.detectors import BankSettings, ReConPatch
from rcp.features import FeatureSettings
from rcp.head import TrainSettings, _Run
from rcp.similarity import Labels, _nearest, _pairwise, _prepared, mix, neighbours
from rcp.store import MemoryLimit

SCALE = {"sigma": 1.0, "normalize": False, "relative_sigma": False, "k": 3, "margin": 0.1}  # what "scale" sets


@torch.no_grad()
def ported_contextual_similarity(z: Tensor, k: int = 5) -> Tensor:
    """Return w^C as the ports compute it: without the mask of Eq. 2, with R_k, and Eq. 4 the wrong way round.

    Args:
        z: (N, D) teacher outputs z̄.
        k: neighbourhood size, 1 <= k <= N.

    Returns:
        (N, N), symmetric, not negative, but above 1 for patches that are close neighbours of many.

    Source: the ports; Eqs 2-5 are what it should be (`rcp.similarity.contextual_similarity`).
    """
    return _ported(neighbours(z, k), z.dtype)


def _ported(near: Tensor, dtype: torch.dtype) -> Tensor:
    """The same from N_k, (N, k) int64."""
    n, k = near.shape
    rows = torch.arange(n, device=near.device)
    member = torch.zeros(n, n, dtype=dtype, device=near.device).scatter_(0, near.T, 1)  # [l, i] = 1 where l ∈ N_k(i)
    # Both products have a factor with at most k entries a row: they are sums of k rows, not of N.
    shared = F.embedding_bag(near, member, mode="sum") / k  # (N, N) = w̃ of Eq. 2, were it but masked
    mutual = (near[near] == rows[:, None, None]).any(2).to(dtype)  # (N, k): l ∈ R_k(i), where R_{k/2}(i) was meant
    share = mutual / mutual.sum(1)[near]  # (N, k): 1 / |R_k(l)|, where 1 / |R_k(i)| was meant
    expanded = F.embedding_bag(near, shared, mode="sum", per_sample_weights=share)  # (N, N) = ŵ, its indices exchanged
    return (expanded + expanded.T) / 2


class _WrongLabels(_Run):
    """Takes its contextual similarity from the ports."""

    def identity(self) -> dict:
        return super().identity() | {"bug": "labels"}  # the checkpoint of another bug is that of another training

    def _labels(self, z: Tensor) -> Labels:
        s = self.settings
        d2, sigma = _prepared(z, s.sigma, s.normalize, self.relative)
        contextual = _ported(_nearest(d2, s.k), d2.dtype)
        pairwise = _pairwise(d2, sigma, out=d2)
        pairs = len(d2) * (len(d2) - 1)
        means = ((part.sum() - part.diagonal().sum()) / pairs for part in (pairwise, contextual))
        return Labels(mix(pairwise, contextual, s.alpha), *means)


class _FrozenTeacher(_Run):
    """Never moves its teacher."""

    def identity(self) -> dict:
        return super().identity() | {"bug": "frozen teacher"}

    def _update_teacher(self) -> None:
        pass  # the bug


class _MixedTeacher(_Run):
    """Asks the slow head about the student's body."""

    def identity(self) -> dict:
        return super().identity() | {"bug": "mixed teacher"}

    def _target(self, h: Tensor, slow_h: Tensor) -> Tensor:
        return self.head.teacher_g(h)  # ḡ(f(p)); the step runs without gradient, so it does not flow here either


class _AllBugs(_WrongLabels, _FrozenTeacher, _MixedTeacher):
    """Each overrides another method of the training, so that they go together."""

    def identity(self) -> dict:
        return super().identity() | {"bug": "all"}


BUGS = {
    "labels": _WrongLabels, "frozen teacher": _FrozenTeacher, "mixed teacher": _MixedTeacher, "scale": _Run, "all": _AllBugs,
}  # fmt: skip


class PortedReConPatch(ReConPatch):
    """ReConPatch with one bug of the public ports, with all of them, or with none."""

    kind = "ported"

    def __init__(
        self,
        backbone: str | FeatureSettings = "efficientnet_lite0",
        *,
        bug: str | None,
        training: TrainSettings = TrainSettings(),
        bank: BankSettings = BankSettings(),
        reweight: str = "patch",
        seed: int = 0,
        device: str = "auto",
        limit: MemoryLimit = MemoryLimit(),
    ):
        """Choose the settings; nothing is loaded before it is needed.

        Args:
            backbone: a backbone's name, or `FeatureSettings` for all there is to choose.
            bug: "labels", "frozen teacher", "mixed teacher", "scale" or "all", see the module's table; None: `ReConPatch` itself.
            training: `TrainSettings`; "scale" and "all" set sigma, normalize, relative_sigma, k and margin themselves.
            bank, reweight, seed, device, limit: as in `ReConPatch`.

        Raises:
            ValueError: if the bug is unknown.
        """
        if bug is not None and bug not in BUGS:
            raise ValueError(f"bug must be one of {', '.join(BUGS)}, or None, got {bug!r}")
        if bug in ("scale", "all"):
            training = replace(training, **SCALE)
        super().__init__(
            backbone, training=training, bank=bank, reweight=reweight, seed=seed, device=device, limit=limit
        )
        self.bug = bug
        self._run_class = BUGS.get(bug)

    def _settings(self) -> dict:
        return super()._settings() | {"bug": self.bug}

    @classmethod
    def _from_settings(cls, settings: dict, features: FeatureSettings, bank: BankSettings, device: str) -> Self:
        return cls(
            features,
            bug=settings["bug"],
            training=TrainSettings(**settings["training"]),
            bank=bank,
            reweight=settings["reweight"],
            seed=settings["seed"],
            device=device,
        )
