"""A saved detector: `model.json` says what it is, a safetensors file beside it holds the numbers. No pickle.

The tensor file is named after its content and the JSON names it, so replacing the JSON, at once, replaces the detector:
a kill in between leaves the old one whole. The backbone's weights are not copied; their hash is kept and compared.
"""

from __future__ import annotations

import platform
import re
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from rcp.backbones import hash_tensors
from rcp.files import read_json, read_tensors, write_json, write_tensors

SCHEMA = 1
NAME = "model.json"
ENSEMBLE = "ensemble.json"
PARTS = ("kind", "settings", "backbone", "fitted_on", "versions", "tensors")


class VersionWarning(UserWarning):
    """A file was written with other versions of the libraries."""


def versions() -> dict[str, str]:
    """Return the versions on which numbers can depend."""
    names = ("rcp", "torch", "timm", "faiss-cpu", "numpy", "scipy", "pillow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


@dataclass
class ModelFile:
    """What a detector's files hold.

    Attributes:
        kind: which detector.
        settings: its own.
        backbone: tag, source and hash of the weights.
        fitted_on: what it was fitted on.
        tensors: name → tensor.
        path: the folder it was read from.
    """

    kind: str
    settings: dict[str, Any]
    backbone: dict[str, str]
    fitted_on: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)
    path: Path = Path()

    def check_backbone(self, found: dict[str, str]) -> None:
        """Raise a ValueError if the backbone that is here is not the one that made the memory."""
        if found["sha256"] != self.backbone["sha256"]:
            raise ValueError(
                f"{self.path}: fitted with the weights {self.backbone['tag']} ({self.backbone['sha256'][:12]}…, from "
                f"{self.backbone['source']}), but here are {found['tag']} ({found['sha256'][:12]}…, from {found['source']}): "
                "use the same weights, or fit again"
            )

    def check_width(self, name: str, width: int) -> None:
        """Raise a ValueError if a tensor's rows do not have this width."""
        self.check_shape(name, (len(self.tensors.get(name, ())), width))

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise a ValueError if a tensor is missing or has another shape."""
        found = tuple(self.tensors[name].shape) if name in self.tensors else None
        if found != shape:
            raise ValueError(f"{self.path}: the tensor {name!r} should be {shape} by the settings, found {found}")


def write_model(path: str | Path, file: ModelFile) -> Path:
    """Write a detector into a folder, atomically; return the folder."""
    folder = Path(path)
    digest = hash_tensors(file.tensors)
    tensors = folder / f"model-{digest[:16]}.safetensors"
    write_tensors(tensors, file.tensors, {"schema": SCHEMA})
    write_json(folder / NAME, {
        "schema": SCHEMA,
        "kind": file.kind,
        "settings": file.settings,
        "backbone": file.backbone,
        "fitted_on": file.fitted_on,
        "versions": versions(),
        "tensors": {"file": tensors.name, "sha256": digest},
    })  # fmt: skip
    (folder / ENSEMBLE).unlink(missing_ok=True)
    _remove_tensors(folder, keep=tensors)
    return folder


def write_ensemble(path: str | Path, members: list[str]) -> Path:
    """Write the list of an ensemble's members, which lie in subfolders, in place of any other detector there."""
    folder = Path(path)
    write_json(folder / ENSEMBLE, {"schema": SCHEMA, "members": members})
    (folder / NAME).unlink(missing_ok=True)
    _remove_tensors(folder)
    return folder


def read_ensemble(path: str | Path) -> list[Path]:
    """Return the folders of an ensemble's members.

    Raises:
        ValueError: if the file is damaged or of another schema.
    """
    content = _read_own(Path(path), ENSEMBLE, ("members",))
    return [Path(path) / name for name in content["members"]]


def _remove_tensors(folder: Path, keep: Path | None = None) -> None:
    for old in folder.glob("model-*.safetensors"):
        if old != keep and re.fullmatch(r"model-[0-9a-f]{16}\.safetensors", old.name):  # ours, by the form of its name
            old.unlink()


def _read_own(folder: Path, name: str, parts: tuple[str, ...]) -> dict[str, Any]:
    content = read_json(folder / name)
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError(f"{folder / name} is not a file that this project wrote")
    if content["schema"] != SCHEMA:
        raise ValueError(f"{folder}: schema {content['schema']}, this version of rcp reads {SCHEMA}: fit again")
    missing = [part for part in parts if part not in content]
    if missing:
        raise ValueError(f"{folder / name} is damaged: it has no {missing[0]!r}; fit again")
    return content


def read_model(path: str | Path, kind: str | None = None) -> ModelFile:
    """Return what a folder holds, checked.

    Args:
        path: the folder.
        kind: the detector expected, or None for any.

    Returns:
        A `ModelFile`.

    Raises:
        FileNotFoundError: if there is no detector.
        ValueError: if it is damaged, of another schema, or of another kind.
    """
    folder = Path(path)
    if not (folder / NAME).is_file():
        raise FileNotFoundError(f"{folder} holds no saved detector: there is no {NAME} in it")
    content = _read_own(folder, NAME, PARTS)
    if kind is not None and content["kind"] != kind:
        raise ValueError(f"{folder} holds a {content['kind']}, not a {kind}: load it with rcp.load")
    tensors, _ = read_tensors(folder / content["tensors"]["file"])
    if hash_tensors(tensors) != content["tensors"]["sha256"]:
        raise ValueError(f"{folder}: the tensors are not those that {NAME} describes: the file was changed; fit again")
    here = versions()
    other = [f"{n} {v} (here {here.get(n)})" for n, v in content["versions"].items() if here.get(n) != v]
    if other:
        warnings.warn(f"{folder} was written with {', '.join(other)}", VersionWarning, stacklevel=3)
    return ModelFile(
        content["kind"], content["settings"], content["backbone"], content["fitted_on"], tensors, folder
    )
