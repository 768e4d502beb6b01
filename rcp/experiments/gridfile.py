"""A grid from a TOML file: short, and every name in it is checked.

    title = "Does the share that the memory keeps matter?"
    seeds = [0, 1, 2]

    [[data]]
    name = "embedded"                       # or a name whose folder the command line gives: --data mvtec=DIR
    categories = ["brick", "terminal"]      # default: all that are found

    [[backbones]]
    name = "Lite0"
    backbone = "efficientnet_lite0"         # and any other field of FeatureSettings

    [[methods]]
    name = "PatchCore"
    detector = "patchcore"
    vary = { "bank.coreset" = [0.25, 0.1, 0.01] }
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rcp.exact import exact
from rcp.experiments.grid import OPTIONS, Data, Grid, Method
from rcp.features import FeatureSettings
from rcp.quality import QUALITIES, Quality


def read_grid(path: str | Path) -> Grid:
    """Return the grid that a TOML file describes; see the module for its form.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no TOML, or says something unknown or impossible; the message names the file and the place.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no grid file {path}")
    try:
        grid = _grid(tomllib.loads(path.read_text(encoding="utf-8")))
        grid.cells(lambda data: ["any"])  # all settings in it are made once, so that none is out of its range
        return grid
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error


def _grid(content: dict[str, Any]) -> Grid:
    where = "the file"
    _known(content, _names(Grid), where)
    _types(content, where, {"title": str, "protocol": str, "bank": dict, "training": dict, "seeds": list})
    backbones: dict[str, FeatureSettings] = {}
    for table in _tables(content, "backbones"):
        name, features = _backbone(table)
        if name in backbones:
            raise ValueError(f"two of [[backbones]] are called {name!r}: tables could not tell them apart")
        backbones[name] = features
    return Grid(
        title=_needed(content, "title", where),
        data=tuple(_data(one) for one in _tables(content, "data")),
        backbones=backbones,
        methods=tuple(_method(one) for one in _tables(content, "methods")),
        **{k: tuple(v) if k == "seeds" else v for k, v in content.items() if k in ("seeds", "bank", "training", "protocol")},
    )


def _data(table: dict[str, Any]) -> Data:
    where = f"[[data]] {table.get('name', '')!r}"
    _known(table, _names(Data), where)
    _types(table, where, {"name": str, "categories": list, "quality": (str, dict), "sides": str, "pooled": bool})
    name, names, quality = _needed(table, "name", where), table.get("categories"), table.get("quality")
    if isinstance(quality, str):
        if quality not in QUALITIES:
            raise ValueError(f"{where}: quality must be a table or one of {', '.join(QUALITIES)}, got {quality!r}")
        quality = QUALITIES[quality]
    elif quality is not None:
        _known(quality, _names(Quality), f"{where}, quality")
        quality = _made(Quality, quality, f"{where}, quality")
    if quality is None and "sides" in table:
        raise ValueError(f"{where}: sides has no effect without quality")
    return _made(Data, {"name": name, "categories": tuple(names) if names is not None else None, "quality": quality}
                 | {key: table[key] for key in ("sides", "pooled") if key in table}, where)


def _backbone(table: dict[str, Any]) -> tuple[str, FeatureSettings]:
    where = f"[[backbones]] {table.get('name', '')!r}"
    _known(table, _names(FeatureSettings) | {"name"}, where)
    _types(table, where, {"name": str})
    given = {k: v for k, v in table.items() if k != "name"}
    return _needed(table, "name", where), _made(lambda **given: FeatureSettings(**exact(FeatureSettings, given)), given, where)


def _method(table: dict[str, Any]) -> Method:
    where = f"[[methods]] {table.get('name', '')!r}"
    own = _names(Method) - {"options"}
    _types(table, where, {key: str for key in ("name", "detector", "member")}
           | {key: dict for key in ("features", "bank", "training", "vary")}
           | {key: list for key in ("snapshots", "members", "data", "backbones", "seeds")})  # fmt: skip
    name, detector = _needed(table, "name", where), _needed(table, "detector", where)
    options = set(OPTIONS.get(detector, ())) if detector != "ensemble" else {"member", *itertools.chain(*OPTIONS.values())}
    _known(table, own | options, where)
    given = {key: value for key, value in table.items() if key in own}
    for key in ("snapshots", "members", "data", "backbones", "seeds"):
        if key in given:
            given[key] = tuple(given[key])
    return Method(options={key: value for key, value in table.items() if key in options}, **given | {"name": name})


def _tables(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    tables = content.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{key} must be tables, each under a line [[{key}]]")
    return tables


def _made(kind: Callable[..., Any], given: dict[str, Any], where: str) -> Any:
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _types(table: Mapping[str, Any], where: str, kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    """Each value must be what is expected of its key, where the key is there."""
    words = {str: "a text", list: "a list", dict: "a table", bool: "true or false", (str, dict): "a text or a table"}
    for key, kind in kinds.items():
        if key in table and not isinstance(table[key], kind):
            raise ValueError(f"{where}: {key} must be {words[kind]}, got {table[key]!r}")


def _needed(table: dict[str, Any], key: str, where: str) -> Any:
    if key not in table:
        raise ValueError(f"{where} has no {key!r}")
    return table[key]


def _known(table: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise ValueError(f"{where}: unknown {unknown[0]!r}; known: {', '.join(sorted(known))}")


def _names(settings: type) -> set[str]:
    return {one.name for one in fields(settings)}
