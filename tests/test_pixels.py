"""Decoded images: the same as streamed, in order, under a bound, with what could not be read."""

import re

import pytest
import torch

import rcp
from rcp.images import Geometry, ImageError, read_image
from rcp.pixels import AT_A_TIME, load_pixels, stream_pixels

GEOMETRY = Geometry(72, (64, 96))


def test_pixels_are_the_files_resized_and_cropped_one_by_one(photos):
    pixels = load_pixels(photos, GEOMETRY)
    assert pixels.values.shape == (7, 3, 64, 96) and pixels.values.dtype == torch.uint8 and len(pixels) == 7
    for i, path in enumerate(photos):
        alone = torch.from_numpy(GEOMETRY.apply(read_image(path)).copy()).permute(2, 0, 1)
        assert torch.equal(pixels.values[i], alone)
        assert pixels.sizes[i] == read_image(path).shape[:2]
    assert pixels.indices == list(range(7)) and pixels.paths == photos and pixels.geometry == GEOMETRY


def test_streamed_and_loaded_are_the_same_numbers(photos):
    many = photos * 3
    batches = list(stream_pixels(many, GEOMETRY, workers=0))
    assert [len(batch.indices) for batch in batches] == [AT_A_TIME, AT_A_TIME, 21 - 2 * AT_A_TIME]
    assert torch.equal(torch.cat([batch.pixels for batch in batches]), load_pixels(many, GEOMETRY).values)


def test_beyond_the_bound_they_lie_in_a_file_and_are_the_same(photos, tmp_path):
    bound = load_pixels(photos, GEOMETRY, limit=rcp.MemoryLimit(1, tmp_path))
    assert torch.equal(bound.values, load_pixels(photos, GEOMETRY).values)


def test_unreadable_files_raise_or_are_skipped_and_listed(photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    paths = [photos[0], broken, *photos[1:]]
    with pytest.raises(ImageError, match=re.escape(str(broken))):
        load_pixels(paths, GEOMETRY)
    pixels = load_pixels(paths, GEOMETRY, on_error="skip")
    assert pixels.indices == [0, 2, 3, 4, 5, 6, 7] and [path for path, _ in pixels.skipped] == [broken]
    assert torch.equal(pixels.values, load_pixels(photos, GEOMETRY).values)
    with pytest.raises(ImageError, match="none of the 1 images could be read"):
        load_pixels([broken], GEOMETRY, on_error="skip")
    with pytest.raises(ValueError, match="there are no images"):
        load_pixels([], GEOMETRY)
