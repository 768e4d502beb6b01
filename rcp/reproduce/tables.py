"""The paper's Tables 1 to 7 as grids, and which of their cells stand beside which published number.

ReConPatch never stands alone: beside it are PatchCore and an f that was not trained, on the same features, with the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rcp import presets, published
from rcp.experiments import Data, Grid, Method
from rcp.presets import Preset
from rcp.published import Number
from rcp.quality import ALL
from rcp.reproduce.setup import Setup, check_weights, label
from rcp.reproduce.sheet import Cells, Line, Sheet

SHARES = (0.25, 0.1, 0.01)
WIDTHS = (1024, 512, 256, 128, 64)
OURS, QUARTER = "ReConPatch", "PatchCore, coreset 25 %"
FITS = {"mvtec": (1, 2, 3, 4, 5, 6), "synthetic": (1, 2, 3, 4, 5, 6), "btad": (7,), "visa": (5,)}
HOW = "The paper does not say how PatchCore's features were brought to this width: its number stands beside each way."
WHICH = "The paper does not say whether test images, training images or both were degraded: its number stands beside each."
SHARE = "The paper's row names no coreset size; 1 % is measured, as ReConPatch has it."
JOINED = "PatchCore with the levels joined as ReConPatch gets them, without Eq. 10; its own code pools to 1024 numbers."


def sheet(number: int, setup: Setup) -> Sheet:
    """Return a table of the paper as what is to be measured and what was published.

    Args:
        number: 1 coreset, 2 width of f, 3 patch size and levels, 4 image quality, 5 categories, 6 ensembles, 7 BTAD.
        setup: data, backbone, seeds.

    Raises:
        ValueError: if the table and the data, the backbone or the weight files do not fit.

    Source:
        Hyun et al., ReConPatch, Tables 1 to 7.
    """
    if why := misfit(number, setup):
        raise ValueError(why)
    found = _TABLES[number](setup)
    check_weights(setup, number, list(found.presets))
    return found


def misfit(number: int, setup: Setup) -> str | None:
    """Return why a table cannot be measured on these data with this backbone, or None if it can."""
    if number not in FITS[setup.data]:
        needs = "BTAD" if number == 7 else "MVTec AD" + " or VisA" * (number == 5)
        return f"table{number} is about {needs}; --data {setup.data} fits {', '.join(f'table{n}' for n in FITS[setup.data])}"
    if number == 6 and setup.backbone not in ("paper", "embedded"):
        return f"table6 is about ensembles of three backbones, so --backbone {setup.backbone} does not do: take paper or embedded"
    return None


def _table1(setup: Setup) -> Sheet:
    preset = setup.preset("single-224")
    grid = _grid(
        setup, "Table 1: the share that the memory keeps", {label(preset): preset.features[0]},
        Method(OURS, "reconpatch", training={"dimension": 1024}, vary={"bank.coreset": SHARES}, snapshots=(0,)),
        Method("PatchCore", "patchcore", vary={"bank.coreset": SHARES}),
        training=setup.training(preset),
    )  # fmt: skip
    lines = []
    for share in SHARES:
        percent, at = f"{100 * share:g}%", _at(preset, setup, {"bank.coreset": share})
        ours = published.select(table=1, method=f"ReConPatch coreset={percent} s=3 L2+3 f=1024")
        theirs = [n for n in published.select(file="headlines", method=f"PatchCore-{percent}") if n.our_metric != "aupro"]
        lines += [
            *_ours(f"{{}}, coreset {100 * share:g} %", at, ours),
            Line(f"PatchCore, coreset {100 * share:g} %", tuple(theirs), at("PatchCore"), (JOINED,)),
        ]
    return _sheet(1, grid, lines, setup, "single-224")


def _table2(setup: Setup) -> Sheet:
    preset = setup.preset("single-224")
    grid = _grid(
        setup, "Table 2: the width of f", {label(preset): preset.features[0]},
        Method(OURS, "reconpatch", vary={"training.dimension": WIDTHS}, snapshots=(0,)),
        Method("random projection", "reduced", options={"method": "random"}, vary={"options.dimension": WIDTHS}),
        Method("PCA", "reduced", options={"method": "pca"}, vary={"options.dimension": WIDTHS}),
        Method("pooled", "patchcore", options={"variant": "paper"}, vary={"features.pooled_width": WIDTHS}),
        training=setup.training(preset),
    )  # fmt: skip
    lines = []
    for width in WIDTHS:
        at = _at(preset, setup, {"training.dimension": width})
        lines += _ours(f"{{}}, f {width} wide", at, published.select(table=2, method=f"ReConPatch f={width} coreset=1%"))
        theirs = tuple(published.select(table=2, method=f"PatchCore f={width}"))
        for name, key, more in (
            ("random projection", "options.dimension", "Gaussian random projection."),
            ("PCA", "options.dimension", "PCA gives at most as many numbers as the features have."),
            ("pooled", "features.pooled_width", "Pooled to this width as PatchCore's code does it, with its Eq. 10 on the image score."),
        ):
            cells = _at(preset, setup, {key: width})(name)
            lines.append(Line(f"PatchCore, {name} to {width}", theirs, cells, (HOW, SHARE, more)))
    return _sheet(2, grid, lines, setup, "single-224")


def _table3(setup: Setup) -> Sheet:
    used = ("single-224", None, "single-224-pixel")  # the second stands between them: s of the one, levels of the other
    first, last = setup.preset(used[0]), setup.preset(used[2])
    middle = replace(first, name="s=5, levels 2+3", features=(replace(first.features[0], patch_size=5),))
    trio = {"s=3 L2+3": first, "s=5 L2+3": middle, "s=5 L1+2+3": last}
    grid = _grid(
        setup, "Table 3: patch size s and levels", {label(one): one.features[0] for one in trio.values()}, *_pair(),
        training=setup.training(first),
    )  # fmt: skip
    lines = []
    for words, preset in trio.items():
        at = _at(preset, setup)
        lines += _ours(f"{{}}, {words}", at, published.select(table=3, method=f"ReConPatch {words} f=512 coreset=1%"))
        lines.append(Line(f"PatchCore, {words}", (), at("PatchCore"), (JOINED,)))
    return _sheet(3, grid, lines, setup, "single-224", "single-224-pixel")


def _table4(setup: Setup) -> Sheet:
    preset = setup.preset("single-224")
    images = Data(setup.data, setup.categories)
    kinds = {"images as they are": images}
    kinds |= {f"degraded {words}": replace(images, quality=ALL, sides=side)
              for side, words in (("test", "test images"), ("train", "training images"), ("both", "test and training images"))}
    grid = _grid(
        setup, "Table 4: image quality", {label(preset): preset.features[0]},
        Method(OURS, "reconpatch", snapshots=(0,)),
        Method("PatchCore", "patchcore", vary={"bank.coreset": (0.25, 0.01)}),
        training=setup.training(preset), data=tuple(kinds.values()),
    )  # fmt: skip
    lines = []
    for words, data in kinds.items():
        with_or_without, notes = ("w/ aug", (WHICH,)) if data.quality else ("w/o aug", ())
        at = _at(preset, setup, data=data.label)
        lines += _ours(f"{{}}, {words}", at, published.select(table=4, method=f"ReConPatch {with_or_without}"), notes)
        for share in (0.25, 0.01):
            theirs = tuple(published.select(table=4, method=f"PatchCore {with_or_without}")) if share == 0.25 else ()
            cells = _at(preset, setup, {"bank.coreset": share}, data=data.label)("PatchCore")
            lines.append(Line(f"PatchCore, coreset {100 * share:g} %, {words}", theirs, cells, (*notes, JOINED)))
    remark = (
        f"The paper states no magnitudes. Ours, fixed beforehand, each drawn evenly up to: rotation {ALL.degrees:g} degrees, shift "
        f"{100 * ALL.shift:g} %, brightness {100 * ALL.brightness:g} %, contrast {100 * ALL.contrast:g} %, Gaussian blur of "
        f"{ALL.blur:g} px for each 256 px of the short side; masks are moved along."
    )
    once = (
        f"Degraded images are one draw (seed {ALL.seed}), the same for all seeds of the table: a deviation over seeds holds that of f, "
        "the batches and the coreset, and not that of the degradation."
    )
    return _sheet(4, grid, lines, setup, "single-224", remarks=(remark, once))


def _table5(setup: Setup) -> Sheet:
    names = ("single-224", "single-224-pixel", "single-480")
    small, pixel, large = used = [setup.preset(name) for name in names]
    grid = _grid(
        setup, "Table 5: single models, a category at a time", {label(one): one.features[0] for one in used}, *_pair(),
        Method(QUARTER, "patchcore", bank={"coreset": 0.25}, backbones=(label(small),)),
        training=setup.training(small),
    )  # fmt: skip
    known = published.table(5) if setup.data != "visa" else []

    def of(method: str, pixels: int | None = None, metric: str | None = None) -> list[Number]:
        return [n for n in known if n.method == method and pixels in (None, n.resolution) and metric in (None, n.our_metric)]

    single, patchcore = "ReConPatch (Ours, single)", "PatchCore (25% coreset)"
    half = "The published row is of two models: its image AUROC stands beside s=3, levels 2+3, its pixel AUROC beside s=5, 1+2+3."
    lines = [
        *_ours(f"{{}}, {label(small)}", _at(small, setup), of(single, 224, "image_auroc"), (half,)),
        Line(f"PatchCore, coreset 1 %, {label(small)}", (), _at(small, setup)("PatchCore"), (JOINED,)),
        Line(f"{QUARTER}, {label(small)}", tuple(of(patchcore)), _at(small, setup)(QUARTER), (JOINED,)),
        *_ours(f"{{}}, {label(pixel)}", _at(pixel, setup), of(single, 224, "pixel_auroc"), (half,)),
        Line(f"PatchCore, coreset 1 %, {label(pixel)}", (), _at(pixel, setup)("PatchCore"), (JOINED,)),
        *_ours(f"{{}}, {label(large)}", _at(large, setup), of(single, 480)),
        Line(f"PatchCore, coreset 1 %, {label(large)}", (), _at(large, setup)("PatchCore"), (JOINED,)),
        *_only_published(known, {single, patchcore}),
    ]  # fmt: skip
    remarks = () if known else ("The paper has no table for VisA: nothing is published to stand beside it.",)
    return _sheet(5, grid, lines, setup, *names, remarks=remarks)


def _table6(setup: Setup) -> Sheet:
    names = ("ensemble-480", "ensemble-320")
    used = [setup.preset(name) for name in names]
    backbones, methods, lines, known = {}, [], [], published.table(6)
    for preset in used:
        members = {f"{name} at {preset.size} px": one for name, one in zip(preset.backbones, preset.features, strict=True)}
        backbones |= members
        kinds = {
            "ReConPatch": ("reconpatch", {}),
            "untrained f": ("reconpatch", {"epochs": 0}),
            "PatchCore": ("patchcore", {}),
        }
        for name, (member, training) in kinds.items():
            method = f"{name} ensemble at {preset.size} px"
            methods.append(Method(method, "ensemble", options={"member": member}, training=training, members=tuple(members)))
            theirs = {"ReConPatch": "ReConPatch ensemble (Ours)", "PatchCore": "PatchCore ensemble"}.get(name)
            numbers = tuple(n for n in known if n.method == theirs and n.resolution == preset.size)
            notes = (JOINED + " Scores are joined as ReConPatch's.",) if name == "PatchCore" else ()
            cells = Cells(method, "+".join(members), setup.data)
            lines.append(Line(f"{name} ensemble, {label(preset)}", numbers, cells, notes))
    grid = _grid(setup, "Table 6: ensembles", backbones, *methods, training=setup.training(used[0]))
    lines += _only_published(known, {"ReConPatch ensemble (Ours)", "PatchCore ensemble"})
    return _sheet(6, grid, lines, setup, *names)


def _table7(setup: Setup) -> Sheet:
    preset, known = setup.preset("btad"), published.table(7)
    grid = _grid(
        setup, "Table 7: BTAD", {label(preset): preset.features[0]}, *_pair(), training=setup.training(preset)
    )
    at = _at(preset, setup)
    unsaid = "The paper states neither backbone, image size nor coreset of this row."
    second = [n for n in known if n.method == "PatchCore"]
    lines = [
        *_ours(f"{{}}, {label(preset)}", at, [n for n in known if n.method == OURS]),
        Line(f"PatchCore, coreset 1 %, {label(preset)}", tuple(second), at("PatchCore"), (unsaid, JOINED)),
        *_only_published(known, {OURS, "PatchCore"}),
    ]  # fmt: skip
    return _sheet(7, grid, lines, setup, "btad")


_TABLES: dict[int, Callable[[Setup], Sheet]] = dict(
    enumerate((_table1, _table2, _table3, _table4, _table5, _table6, _table7), start=1)
)


def _pair() -> tuple[Method, Method]:
    return Method(OURS, "reconpatch", snapshots=(0,)), Method("PatchCore", "patchcore")


def _grid(setup: Setup, title: str, backbones: dict, *methods: Method, training: dict, data: tuple[Data, ...] = ()) -> Grid:
    return Grid(title, data or (Data(setup.data, setup.categories),), backbones, methods, setup.seeds, training=training)


def _sheet(number: int, grid: Grid, lines: Sequence[Line], setup: Setup, *names: str, remarks: tuple[str, ...] = ()) -> Sheet:
    used, paper = (tuple(get(name) for name in names) for get in (setup.preset, presets.get))
    return Sheet(number, grid.title, grid, tuple(lines), used, paper, remarks)


def _at(preset: Preset, setup: Setup, varied: dict | None = None, data: str | None = None) -> Callable[..., Cells]:
    """Method and epoch → the cells of a preset's backbone."""
    return lambda method, epoch=None: Cells(method, label(preset), data or setup.data, varied or {}, epoch)


def _ours(form: str, at: Callable[..., Cells], numbers: Sequence[Number], notes: tuple[str, ...] = ()) -> list[Line]:
    """ReConPatch with the published numbers, and the untrained f below it."""
    return [Line(form.format(OURS), tuple(numbers), at(OURS), notes), Line(form.format("untrained f"), (), at(OURS, 0))]


def _only_published(numbers: Sequence[Number], shown: set[str]) -> list[Line]:
    """The compared systems, which are not measured here, in the table's order."""
    others: dict[str, list[Number]] = {}
    for number in numbers:
        if number.method not in shown:
            others.setdefault(f"{number.method} ({number.backbone}, {number.image_size})", []).append(number)
    return [Line(name.replace(" (not stated in table, not stated in table)", ""), tuple(own)) for name, own in others.items()]
