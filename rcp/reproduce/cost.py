"""What a table will take, said before the work: cells, bytes of features at this size, trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rcp.backbones import Backbone, WeightsError, load_backbone
from rcp.estimate import size
from rcp.features import STORED, FeatureSettings
from rcp.reproduce.pace import Training, of_cells
from rcp.reproduce.sheet import Sheet, name_of


@dataclass(frozen=True)
class Cost:
    """A prediction for one table.

    Attributes:
        number: of the table.
        cells, groups: how many results, and sets of features that they share.
        largest: of each set of features: what it is, the largest category, bytes of its training and test features.
        trainings: the different ones, by what decides them.
    """

    number: int
    cells: int
    groups: int
    largest: tuple[tuple[str, str, int], ...]
    trainings: Mapping[tuple, Training]

    def __str__(self) -> str:
        lines = [f"{name_of(self.number)}: {self.cells} cells that share {self.groups} sets of features; of these, in bytes at most:"]
        lines += [f"  {what}: {size(count)} ({category})" for what, category, count in self.largest]
        return "\n".join(lines)


def predict(sheet: Sheet, images: Mapping[str, tuple[int, int]], loaded: dict[FeatureSettings, tuple[int, int]]) -> Cost:
    """Return what a table will take.

    Args:
        sheet: the table.
        images: category → number of training and test images.
        loaded: settings → finest stride and numbers a patch; what is not in it yet is loaded and put there.

    Raises:
        WeightsError: if the weights of a backbone cannot be had; the message says what to do.
    """
    cells = sheet.grid.cells(lambda data: list(images))
    largest = {}
    for features, pixels in dict.fromkeys((cell.features, cell.looks_at_pixels) for cell in cells):
        a_picture = _pixels(features[0]) if pixels else sum(_bytes(one, loaded) for one in features)
        what = "decoded images, {}x{}".format(*_crop(features[0])) if pixels else _what(features, loaded)
        counts = {name: sum(images[name]) * a_picture for name in images}
        name = max(counts, key=counts.get)
        largest[what] = (what, name, counts[name])
    groups = {(cell.data, cell.category, cell.features, cell.looks_at_pixels) for cell in cells}
    train = {name: train for name, (train, _) in images.items()}
    grids = {one: grid_of(one, loaded) for cell in cells for one in cell.features}
    return Cost(sheet.number, len(cells), len(groups), tuple(largest.values()), of_cells(cells, train, grids))


def grid_of(features: FeatureSettings, loaded: dict[FeatureSettings, tuple[int, int]]) -> tuple[int, int]:
    """Return patches an image, and numbers a patch; arguments and errors as for `predict`."""
    if features not in loaded:
        loaded[features] = _stride_and_width(features)
    h, w = _patches(features, loaded[features][0])
    return h * w, loaded[features][1]


def _bytes(features: FeatureSettings, loaded: dict[FeatureSettings, tuple[int, int]]) -> int:
    """Of one image."""
    patches, width = grid_of(features, loaded)
    return patches * width * STORED[features.stored].itemsize


def _stride_and_width(features: FeatureSettings) -> tuple[int, int]:
    try:
        backbone: Backbone = load_backbone(
            features.backbone, levels=features.levels, strides=features.strides, pretrained=features.pretrained,
            weights=features.weights,
        )  # fmt: skip
    except WeightsError as error:
        if features.weights:  # the file is what is wrong
            raise
        raise WeightsError(
            f"the weights of {features.backbone} cannot be had on this machine: connect once to the internet, give a local file "
            f"with --weights {features.backbone}=FILE, or take --backbone embedded, whose numbers do not compare with the paper's"
        ) from error
    return backbone.strides[0], features.pooled_width if features.merge == "pool" else sum(backbone.channels)


def _patches(features: FeatureSettings, stride: int) -> tuple[int, int]:
    h, w = _crop(features)
    return -(-h // stride), -(-w // stride)


def _crop(features: FeatureSettings) -> tuple[int, int]:
    return features.crop if isinstance(features.crop, tuple) else (features.crop, features.crop)


def _pixels(features: FeatureSettings) -> int:
    """Bytes of one decoded image."""
    h, w = _crop(features)
    return 3 * h * w


def _what(features: Sequence[FeatureSettings], loaded: dict[FeatureSettings, tuple[int, int]]) -> str:
    h, w = _patches(features[0], loaded[features[0]][0])
    widths = " + ".join(str(loaded[one][1]) for one in features)
    return f"{' + '.join(one.backbone for one in features)}, {h}x{w} patches x {widths} numbers, {features[0].stored}"


def check_images(data: str, images: Mapping[str, tuple[int, int]]) -> None:
    """Raise a ValueError if a category has no test images, before anything is computed."""
    empty = [name for name, (_, test) in images.items() if test == 0]
    if empty:
        raise ValueError(f"{empty[0]} of --data {data} has no test images: nothing can be measured")
