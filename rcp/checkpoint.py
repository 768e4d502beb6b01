"""A training that can be killed: its whole state in one file, written atomically after every epoch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcp.adamp import AdamP
from rcp.files import read_tensors, write_tensors

SCHEMA = 1
MOMENTS = ("exp_avg", "exp_avg_sq")  # what they keep for each parameter, besides its step count


@dataclass(frozen=True)
class TrainingState:
    """Everything that decides how a training goes on.

    Attributes:
        model: the module in training.
        optimizer: AdamP, Adam or AdamW over some of its parameters.
        generator: draws the batches.
        identity: settings and seed; a checkpoint of others is refused.
        rows: the training features; a checkpoint of others is refused.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    identity: dict[str, Any]
    rows: Tensor

    def fingerprint(self) -> str:
        """Return a hash of the identity, and of the shape and some of the rows."""
        some = self.rows[:: max(1, len(self.rows) // 1024)].contiguous()
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode())
        digest.update(f"{tuple(self.rows.shape)}".encode())
        digest.update(some.cpu().view(torch.uint8).numpy())
        return digest.hexdigest()


def write_state(path: str | Path, state: TrainingState, history: list[dict[str, Any]]) -> None:
    """Write the state and the history so far, atomically."""
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors["generator"] = state.generator.get_state()
    steps = []
    for index, parameter in enumerate(_parameters(state.optimizer)):
        moments = state.optimizer.state[parameter]
        tensors |= {f"optimizer.{index}.{name}": moments[name] for name in MOMENTS}
        steps.append(int(moments["step"]))
    header = {"schema": SCHEMA, "fingerprint": state.fingerprint(), "steps": steps, "history": history}
    write_tensors(path, tensors, header)


def read_state(path: str | Path, state: TrainingState) -> list[dict[str, Any]]:
    """Bring model, optimizer and generator to where the file left them; return the history (empty: there is no file).

    Raises:
        ValueError: if the file belongs to other settings, another seed or other features.
    """
    if not Path(path).exists():
        return []
    tensors, header = read_tensors(path)
    header = header if isinstance(header, dict) else {}
    if header.get("schema") != SCHEMA or header.get("fingerprint") != state.fingerprint():
        raise ValueError(
            f"the checkpoint {path} belongs to a training with other settings, seed or features: "
            "delete it to start anew, or name another file"
        )
    state.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    state.generator.set_state(tensors["generator"])
    for index, (parameter, steps) in enumerate(zip(_parameters(state.optimizer), header["steps"], strict=True)):
        moments = {name: tensors[f"optimizer.{index}.{name}"].to(parameter.device) for name in MOMENTS}
        # AdamP counts steps in a number, torch's own optimizers in a tensor.
        own = steps if isinstance(state.optimizer, AdamP) else torch.tensor(float(steps))
        state.optimizer.state[parameter] = moments | {"step": own}
    return header["history"]


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
