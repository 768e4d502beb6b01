"""Files that are whole or not there: atomic writes, and tensors with JSON beside them (no pickle anywhere)."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then put it in place at once; a kill leaves the old file.

    Args:
        path: the file to make; missing folders are made.
        write: gets the temporary path.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, content: Any, *, compact: bool = False) -> Path:
    """Write content as JSON, atomically; not-a-number becomes null, as JSON has no other word for it.

    Args:
        path: the file.
        content: plain data.
        compact: without line breaks, for long arrays of numbers; else indented, to be read.
    """
    form = {"separators": (",", ":")} if compact else {"indent": 2}
    text = json.dumps(_plain(content), **form, ensure_ascii=False, allow_nan=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file; a ValueError names the file if it is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def write_tensors(path: str | Path, tensors: dict[str, Tensor], header: Any) -> Path:
    """Write named tensors, with a JSON header in the same file, atomically."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"header": json.dumps(_plain(header), ensure_ascii=False, allow_nan=False)}
    return write_atomically(path, lambda temporary: safetensors.torch.save_file(ready, temporary, metadata))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the header of a file that `write_tensors` wrote.

    Raises:
        ValueError: if the file is not such a file; FileNotFoundError if there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["header"])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a file that this project wrote: {error}") from error


def _plain(value: Any) -> Any:
    """Paths to strings, tuples to lists, nan and infinity to None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return None
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
