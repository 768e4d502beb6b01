"""One file to pixels: every mode's rule, damaged files, geometry against slow twins, and the stream.

The slow twin of the stream is `Geometry.apply(read_image(path))`: equal to the bit, or within a stated tolerance for
JPEGs that the decoder reduces (drafts).
"""

import io
import struct
import threading
import time
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin
from torchvision.transforms import functional as tv

from rcp import images
from rcp.images import Geometry, ImageError, read_image, read_mask, stream

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)  # H != W everywhere
GREY_16 = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
GREY_16[0, :3] = 0, 65535, 256


def smooth(h: int, w: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((w, h)))


def save(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def png_16(pixels: np.ndarray, colour_type: int, extra: bytes = b"") -> bytes:
    """Write 16-bit PNG by hand, since Pillow writes no 16-bit colour."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        length, check = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(kind + content))
        return length + kind + content + check
    h, w = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    transparency = chunk(b"tRNS", extra) if extra else b""
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, colour_type, 0, 0, 0))
            + transparency + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


def in_three(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=2)


def slow_grey(values: np.ndarray) -> np.ndarray:
    return np.array([[round(int(v) / 257) for v in row] for row in values], np.uint8)


# --- one image -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("suffix, options", [
    ("png", {}), ("bmp", {}), ("tif", {}), ("tiff", {"compression": "tiff_lzw"}),
    ("webp", {"lossless": True})])
def test_rgb_is_kept(tmp_path, suffix, options):
    pixels = read_image(save(tmp_path / f"a.{suffix}", COLOUR, **options))
    assert pixels.dtype == np.uint8 and pixels.shape == (5, 7, 3) and (pixels == COLOUR).all()
    assert pixels.flags.writeable and pixels.flags.c_contiguous


def test_jpeg_is_close(tmp_path):
    picture = smooth(50, 70)
    assert np.abs(read_image(save(tmp_path / "a.jpg", picture, quality=95)).astype(int) - picture).mean() < 4


def test_grey(tmp_path):
    assert (read_image(save(tmp_path / "a.png", COLOUR[..., 0])) == in_three(COLOUR[..., 0])).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_alpha_goes_on_white(tmp_path, mode, suffix):
    alpha = np.array([[0, 128, 255, 64, 1, 254, 7]] * 5, np.uint8)
    colour = COLOUR if mode == "RGBA" else COLOUR[..., :1]
    pixels = np.dstack([colour, alpha])
    result = read_image(save(tmp_path / f"a.{suffix}", Image.fromarray(pixels, mode)))
    share = alpha[..., None] / 255
    expected = np.broadcast_to(share * colour + (1 - share) * 255, (5, 7, 3))
    assert np.abs(result - expected).max() <= 1
    assert (result[:, 0] == 255).all() and (result[:, 2] == colour[:, 2]).all()


def test_palette(tmp_path):
    palette = Image.fromarray(COLOUR).quantize(8)
    assert (read_image(save(tmp_path / "a.png", palette)) == np.asarray(palette.convert("RGB"))).all()


def test_transparent_palette_and_transparent_grey(tmp_path):
    palette = Image.new("P", (7, 5), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.paste(0, (0, 0, 3, 5))
    result = read_image(save(tmp_path / "a.png", palette, transparency=0))
    assert (result[:, :3] == 255).all() and (result[:, 3:] == (200, 100, 50)).all()
    grey = read_image(save(tmp_path / "b.png", np.array([[7, 8]] * 3, np.uint8), transparency=7))
    assert (grey[:, 0] == 255).all() and (grey[:, 1] == 8).all()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_16_bit_tiff(tmp_path, order, compression):
    tifffile.imwrite(tmp_path / "a.tif", GREY_16, byteorder=order, compression=compression)
    assert (read_image(tmp_path / "a.tif") == in_three(slow_grey(GREY_16))).all()


def test_16_bit_png(tmp_path):
    (tmp_path / "a.png").write_bytes(png_16(GREY_16, 0))
    result = read_image(tmp_path / "a.png")
    assert (result == in_three(slow_grey(GREY_16))).all() and result[0, :3, 0].tolist() == [0, 255, 1]
    (tmp_path / "b.png").write_bytes(png_16(GREY_16, 0, extra=struct.pack(">H", 256)))
    assert (read_image(tmp_path / "b.png")[GREY_16 == 256] == 255).all()


def test_32_bit_integers_within_16_bits(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY_16.astype(np.int32))
    assert (read_image(tmp_path / "a.tif") == in_three(slow_grey(GREY_16))).all()


def test_16_bit_colour_keeps_the_high_byte(tmp_path):
    colour = RNG.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png_16(colour, 2))
    tifffile.imwrite(tmp_path / "b.tif", colour, photometric="rgb")
    tifffile.imwrite(tmp_path / "c.tif", colour, photometric="rgb", compression="deflate", byteorder=">")
    for name in ("a.png", "b.tif", "c.tif"):
        assert (read_image(tmp_path / name) == colour // 256).all()


@pytest.mark.parametrize("values, options, words", [
    (GREY_16.astype(np.float32), {}, "mode 'F'"),
    (GREY_16.astype(np.int32) + 60000, {}, "do not fit 16 bits"),
    (-GREY_16.astype(np.int32), {}, "integers from -65535 to 0"),
    (GREY_16, {"photometric": "miniswhite"}, "0 is white"),
    (RNG.integers(0, 65536, (3, 5, 7)).astype(np.uint16),
     {"photometric": "rgb", "planarconfig": "separate"}, "as planes"),
    (GREY_16.astype(np.int16), {"byteorder": ">", "compression": "deflate"}, "big-endian"),
])
def test_what_has_no_safe_reading_is_refused(tmp_path, values, options, words):
    tifffile.imwrite(tmp_path / "odd.tif", values, **options)
    with pytest.raises(ImageError, match=rf"odd.tif: .*{words}.*convert"):
        read_image(tmp_path / "odd.tif")


def test_12_bit_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "odd.tif", GREY_16)
    content = bytearray((tmp_path / "odd.tif").read_bytes())
    at = content.index(struct.pack("<HHI", 258, 3, 1))  # the tag BitsPerSample
    content[at + 8] = 12
    (tmp_path / "odd.tif").write_bytes(content)
    with pytest.raises(ImageError, match="odd.tif: a TIFF with 12 bits per sample"):
        read_image(tmp_path / "odd.tif")


def test_8_bit_tiff_with_white_zero(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", COLOUR[..., 0], photometric="miniswhite")
    assert (read_image(tmp_path / "a.tif") == in_three(255 - COLOUR[..., 0])).all()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_one_bit(tmp_path, suffix):
    bits = COLOUR[..., 0] > 127
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(bits))
    assert (read_image(path) == in_three(bits * np.uint8(255))).all()


@pytest.mark.parametrize("mode, suffix", [("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "tif")])
def test_other_colour_spaces(tmp_path, mode, suffix):
    picture = smooth(40, 60)
    image = Image.fromarray(picture).convert(mode)
    options = {"quality": 95} if suffix == "jpg" else {}
    result = read_image(save(tmp_path / f"a.{suffix}", image, **options))
    assert np.abs(result.astype(int) - picture).mean() < 4


def test_lab_is_refused(tmp_path):
    path = save(tmp_path / "a.tif", Image.frombytes("LAB", (7, 5), COLOUR.tobytes()))
    for read in (read_image, read_mask):
        with pytest.raises(ImageError, match="a.tif: a file of pixel mode 'LAB', which has no fixed scale"):
            read(path)


# What EXIF says of orientation o: how the stored pixels become the upright ones.
UPRIGHT = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
           5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
           7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a)}


@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize("suffix, options", [
    ("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"}), ("webp", {"lossless": True})])
def test_exif_orientation(tmp_path, turn, suffix, options):
    path = save(tmp_path / f"a.{suffix}", COLOUR, exif=orientation(turn), **options)
    assert (read_image(path) == UPRIGHT[turn](COLOUR)).all()
    mask = save(tmp_path / f"m.{suffix}", COLOUR * (COLOUR > 200), exif=orientation(turn), **options)
    assert (read_mask(mask) == UPRIGHT[turn]((COLOUR > 200).any(axis=2))).all()


@pytest.mark.parametrize("turn", UPRIGHT)
def test_exif_orientation_of_jpeg_and_16_bit(tmp_path, turn):
    picture = smooth(24, 40)
    plain = read_image(save(tmp_path / "a.jpg", picture, quality=95))
    turned = read_image(save(tmp_path / "b.jpg", picture, quality=95, exif=orientation(turn)))
    assert (turned == UPRIGHT[turn](plain)).all()
    path = save(tmp_path / "c.png", Image.fromarray(GREY_16), exif=orientation(turn))
    assert (read_image(path)[..., 0] == UPRIGHT[turn](slow_grey(GREY_16))).all()


def test_pages(tmp_path):
    pages = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    for suffix in ("tif", "png", "webp"):
        path = save(tmp_path / f"a.{suffix}", pages[0], save_all=True, append_images=pages[1:])
        with pytest.raises(ImageError, match=f"a.{suffix}: holds 2 pages or frames.*its own file"):
            read_image(path)
    path = tmp_path / "camera.jpg"
    save(path, Image.fromarray(smooth(40, 60)), format="MPO", save_all=True, append_images=pages[1:])
    assert read_image(path).shape == (40, 60, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path, suffix, share):
    path = save(tmp_path / f"broken.{suffix}", smooth(40, 60))
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * share)])
    for read in (read_image, read_mask):
        words = f"broken.{suffix}: cannot be read as an image.*replace or remove"
        with pytest.raises(ImageError, match=words) as error:
            read(path)
        assert error.value.__cause__ is not None


def test_other_unreadable_files(tmp_path):
    (tmp_path / "text.png").write_text("this is not an image")
    save(tmp_path / "film.png", COLOUR, format="GIF")
    (tmp_path / "folder.png").mkdir()
    for name in ("text.png", "film.png", "folder.png", "missing.png"):
        with pytest.raises(ImageError, match=f"{name}: cannot be read as an image"):
            read_image(str(tmp_path / name))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the damage
def test_random_damage_never_escapes_as_another_error(tmp_path):
    rng, path = np.random.default_rng(1), tmp_path / "hurt"
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(smooth(20, 30)).save(buffer, kind)
        for _ in range(60):
            content = np.frombuffer(buffer.getvalue(), np.uint8).copy()
            content[rng.integers(0, min(len(content), 200), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(content.tobytes())
            try:
                assert read_image(path).dtype == np.uint8
            except ImageError as error:
                assert "hurt" in str(error)


def test_decompression_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match="big.png: .*decompression bomb"):
        read_image(save(tmp_path / "big.png", COLOUR))


def test_each_file_is_decoded_once(tmp_path, monkeypatch):
    kinds = [("png", {}), ("jpg", {}), ("jpg", {"exif": orientation(6)}), ("png", {}), ("jpg", {"progressive": True})]
    paths = [save(tmp_path / f"{i}.{suffix}", smooth(96, 80, i), **options)
             for i, (suffix, options) in enumerate(kinds)]
    opened, decoded, open_, decoder = [], [], Image.open, Image._getdecoder
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(a[0]) or open_(*a, **k))
    monkeypatch.setattr(Image, "_getdecoder", lambda *a: decoded.append(a[1]) or decoder(*a))
    list(stream(paths, Geometry(8, 6), workers=2, batch_size=2))
    assert sorted(opened) == paths and sorted(decoded) == ["jpeg", "jpeg", "jpeg", "zip", "zip"]


# --- masks -----------------------------------------------------------------------------------------------

MASK = COLOUR[..., 0] > 180


@pytest.mark.parametrize("pixels", [
    MASK, MASK * np.uint8(1), MASK * np.uint8(255), MASK * np.uint16(1),
    MASK[..., None] * np.uint8([0, 3, 0]),
    np.dstack([in_three(MASK * np.uint8(9)), np.full((5, 7), 255, np.uint8)]),
    np.dstack([np.full((5, 7, 3), 200, np.uint8), MASK * np.uint8(255)])],
    ids=["1 bit", "0 and 1", "grey", "16 bit", "one channel of colour", "opaque", "transparent outside"])
def test_mask_above_zero(tmp_path, pixels):
    result = read_mask(save(tmp_path / "m.png", pixels), size=(5, 7))
    assert result.dtype == bool and result.shape == (5, 7) and (result == MASK).all()


def test_mask_of_palette_float_and_jpeg(tmp_path):
    palette = Image.fromarray(MASK * np.uint8(1)).convert("P")
    palette.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white: the colour counts, not the index
    assert (read_mask(save(tmp_path / "m.png", palette)) == ~MASK).all()
    tifffile.imwrite(tmp_path / "m.tif", MASK.astype(np.float32) / 2)
    assert (read_mask(tmp_path / "m.tif") == MASK).all()
    square = np.zeros((40, 60), np.uint8)
    square[9:21, 13:37] = 255
    for suffix in ("jpg", "webp"):
        path = save(tmp_path / f"m.{suffix}", square, quality=60)
        assert (read_image(path)[..., 0][square == 0] > 0).any()  # the noise that the threshold is for
        assert (read_mask(path) == (square > 0)).all()


def test_mask_of_another_size(tmp_path):
    with pytest.raises(ImageError, match=r"m.png: the mask is 5x7 pixels .*its image is 7x5"):
        read_mask(save(tmp_path / "m.png", MASK), size=(7, 5))


# --- geometry --------------------------------------------------------------------------------------------

SIZES = st.one_of(st.none(), st.integers(1, 60), st.tuples(st.integers(1, 60), st.integers(1, 60)))
SIDE = st.integers(1, 90)


def slow_resized(geometry: Geometry, h: int, w: int) -> tuple[int, int]:
    if geometry.resize is None:
        return h, w
    if isinstance(geometry.resize, tuple):
        return geometry.resize
    scale = geometry.resize / min(h, w)
    return (int(h * scale + 0.5), geometry.resize) if w <= h else (geometry.resize, int(w * scale + 0.5))


@pytest.mark.parametrize("h, w", [(300, 301), (80, 133), (133, 80), (64, 64), (257, 511)])
@pytest.mark.parametrize("geometry", [
    Geometry(64, 57), Geometry(64, None), Geometry((48, 96), (31, 64)), Geometry(None, (33, 64)),
    Geometry(None, None), Geometry(100, (99, 88)), Geometry((80, 133), None), Geometry((48, 80), None)], ids=str)
def test_apply_against_resize_then_crop(h, w, geometry):
    image = smooth(h, w)
    mask = image[..., 0] > 128
    resized_h, resized_w = slow_resized(geometry, h, w)
    assert geometry.resized_size(h, w) == (resized_h, resized_w)
    expected = Image.fromarray(image).resize((resized_w, resized_h), Image.Resampling.BILINEAR)
    expected_mask = Image.fromarray(mask).resize((resized_w, resized_h), Image.Resampling.NEAREST)
    if geometry.crop is not None:
        crop = [geometry.crop] * 2 if isinstance(geometry.crop, int) else list(geometry.crop)
        expected, expected_mask = tv.center_crop(expected, crop), tv.center_crop(expected_mask, crop)
    result, result_mask = geometry.apply(image), geometry.apply_mask(mask)
    assert (result == np.asarray(expected)).all() and result.flags.c_contiguous and result.dtype == np.uint8
    assert (result_mask == np.asarray(expected_mask)).all() and result_mask.dtype == bool
    assert result.shape[:2] == result_mask.shape == geometry.output_size(h, w)


@given(SIZES, SIZES, SIDE, SIDE)
def test_sizes_and_box_agree(resize, crop, h, w):
    try:
        geometry = Geometry(resize, crop)
        out_h, out_w = geometry.output_size(h, w)
    except ValueError as error:
        assert "larger than" in str(error)
        return
    resized_h, resized_w = geometry.resized_size(h, w)
    top, left, bottom, right = geometry.crop_box(h, w)
    assert 0 <= top < bottom <= h + 1e-9 and 0 <= left < right <= w + 1e-9
    assert (bottom - top) * resized_h / h == pytest.approx(out_h)
    assert (right - left) * resized_w / w == pytest.approx(out_w)
    assert abs((top + bottom) / 2 - h / 2) <= 0.5 * h / resized_h + 1e-9  # centred to half a resized pixel
    assert geometry.apply(np.zeros((h, w, 3), np.uint8)).shape == (out_h, out_w, 3)
    if isinstance(resize, int):
        assert min(resized_h, resized_w) == resize == (resized_h if h <= w else resized_w)
    if crop is None:
        assert (top, left, bottom, right) == pytest.approx((0, 0, h, w))


def test_crop_box_by_hand():
    # 200 x 400, short side to 100: 100 x 200; crop 60 x 80 at (20, 60); a resized pixel is two original ones.
    assert Geometry(100, (60, 80)).crop_box(200, 400) == (40, 120, 160, 280)
    assert Geometry().resized_size(900, 700) == (329, 256) and Geometry().output_size(900, 700) == (224, 224)


def test_resizing_antialiases():
    stripes = np.zeros((40, 80, 3), np.uint8)
    stripes[:, ::2] = 255
    assert set(np.unique(Geometry((10, 20), None).apply(stripes)[:, 2:-2])) <= {126, 127, 128, 129}


@pytest.mark.parametrize("column", range(16))
def test_mask_of_one_column_stays_on_its_column(column):
    image = np.zeros((9, 16, 3), np.uint8)
    image[:, column] = 255
    geometry = Geometry((27, 48), (27, 40))  # three times larger, then 4 columns off either side
    pixels, mask = geometry.apply(image)[..., 0], geometry.apply_mask(image[..., 0] > 0)
    seen = [3 * column + i - 4 for i in range(3) if 0 <= 3 * column + i - 4 < 40]
    assert mask.any(axis=0).nonzero()[0].tolist() == seen
    if seen:
        assert pixels[0].argmax() in seen and (pixels[mask] > 128).all() and (pixels[~mask] < 128).all()


@pytest.mark.parametrize("bad", [0, -1, 2.5, (3,), (3, 4, 5), (3, 0), [3, 4], "256", True, (3, 2.0)])
@pytest.mark.parametrize("name", ["resize", "crop"])
def test_sizes_that_make_no_sense(name, bad):
    with pytest.raises(ValueError, match=f"{name} must be a positive int"):
        Geometry(**{name: bad})


def test_crop_that_does_not_fit():
    for resize, crop in [(224, 256), ((256, 200), 224), ((64, 64), (32, 65))]:
        with pytest.raises(ValueError, match="crop .* is larger than"):
            Geometry(resize, crop)
    wide = Geometry(100, (80, 150))
    assert wide.output_size(100, 160) == (80, 150)
    with pytest.raises(ValueError, match=r"crop 80x150 .*larger than 160x100, .*image of 160x100.*smaller"):
        wide.apply(np.zeros((160, 100, 3), np.uint8))
    with pytest.raises(ValueError, match="larger"):
        Geometry(None, 20).apply_mask(np.zeros((30, 10), bool))


# --- the stream ------------------------------------------------------------------------------------------

GEOMETRY = Geometry(24, (16, 20))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    sizes = [(30, 40), (40, 33), (50, 50), (24, 90), (35, 36)]
    paths = [save(tmp_path / f"{i}.png", smooth(*sizes[i % 5], seed=i)) for i in range(11)]
    return [paths[i] for i in RNG.permutation(11)]  # file order is the caller's order


def decode_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rcp-decode")]


def flat(batches) -> tuple[list[int], torch.Tensor, list[tuple[int, int]]]:
    batches = list(batches)
    return (sum((batch.indices for batch in batches), []), torch.cat([batch.pixels for batch in batches]),
            sum((batch.sizes for batch in batches), []))


@pytest.mark.parametrize("batch_size", [1, 3, 11, 64])
@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_stream_equals_a_loop(files, batch_size, workers):
    indices, pixels, sizes = flat(stream(files, GEOMETRY, batch_size=batch_size, workers=workers))
    expected = np.stack([GEOMETRY.apply(read_image(path)) for path in files])
    assert indices == list(range(11)) and pixels.dtype == torch.uint8
    assert (pixels.permute(0, 2, 3, 1).numpy() == expected).all()
    assert sizes == [read_image(path).shape[:2] for path in files]
    assert not decode_threads()


def test_batches(files):
    batches = list(stream([str(path) for path in files], GEOMETRY, batch_size=4))
    assert [batch.indices for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert batches[0].pixels.shape == (4, 3, 16, 20)
    assert batches[0].pixels.is_contiguous(memory_format=torch.channels_last)
    assert list(stream([], GEOMETRY)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_raise_names_the_file_and_ends_the_threads(files, workers):
    files[5].write_bytes(files[5].read_bytes()[:60])
    batches = stream(files, GEOMETRY, batch_size=2, workers=workers)
    assert [next(batches).indices, next(batches).indices] == [[0, 1], [2, 3]]
    with pytest.raises(ImageError, match=files[5].name):
        next(batches)
    assert not decode_threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_reports_what_it_left_out(files, workers):
    files[5].write_bytes(b"")
    files[0].unlink()
    skipped: list[tuple[Path, str]] = []
    batches = list(stream(files, GEOMETRY, batch_size=4, workers=workers, on_error="skip", skipped=skipped))
    assert [batch.indices for batch in batches] == [[1, 2, 3, 4], [6, 7, 8, 9], [10]]
    assert [path for path, _ in skipped] == [files[0], files[5]] and files[5].name in skipped[1][1]
    everything: list[tuple[Path, str]] = []
    assert list(stream([files[0]] * 3, GEOMETRY, on_error="skip", skipped=everything)) == []
    assert len(everything) == 3


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_sizes_that_differ(files, on_error):
    with pytest.raises(ImageError) as error:
        list(stream(files, Geometry(24, None), on_error=on_error, skipped=[]))
    sizes = {path: Geometry(24, None).output_size(*read_image(path).shape[:2]) for path in files}
    other = next(path for path in files if sizes[path] != sizes[files[0]])
    for path in (files[0], other):
        assert path.name in str(error.value) and "{}x{}".format(*sizes[path]) in str(error.value)
    assert "set crop" in str(error.value) and not decode_threads()


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_crop_that_one_file_cannot_hold_is_never_skipped(files, on_error):
    with pytest.raises(ImageError, match=r"\.png: crop 31x31 .*larger than"):
        list(stream(files, Geometry(None, 31), on_error=on_error, skipped=[]))


@pytest.mark.parametrize("started", [False, True])
def test_early_stop_leaves_no_threads(files, started):
    with closing(stream(files, GEOMETRY, batch_size=1, workers=3)) as batches:
        if started:
            next(batches)
            assert decode_threads()
    assert not decode_threads()


def test_early_stop_cancels_what_waits(files, monkeypatch):
    decoded, real = [], images._decode

    def slow(path, geometry):
        time.sleep(0.02)
        decoded.append(path)
        return real(path, geometry)
    monkeypatch.setattr(images, "_decode", slow)
    with closing(stream(files * 4, GEOMETRY, batch_size=10, workers=1)) as batches:
        next(batches)  # ten decoded, about twenty waiting
    assert len(decoded) < 20


def test_interrupt_leaves_no_threads(files, monkeypatch):
    def interrupted(path, geometry):
        raise KeyboardInterrupt
    monkeypatch.setattr(images, "_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(stream(files, GEOMETRY, workers=2))
    assert not decode_threads()


def test_look_ahead_is_bounded(files, monkeypatch):
    decoded, real = [], images._decode
    monkeypatch.setattr(images, "_decode", lambda *a: decoded.append(a[0]) or real(*a))
    with closing(stream(files * 5, GEOMETRY, batch_size=2, workers=2)) as batches:
        next(batches)
        for thread in threading.enumerate():
            if thread.name.startswith("rcp-decode"):
                thread.join(timeout=0.1)  # time to run ahead, if it were allowed to
        assert 2 <= len(decoded) <= 2 + 2 * 2


@pytest.mark.parametrize("options, words", [
    ({"on_error": "ignore"}, 'on_error must be "raise" or "skip", not \'ignore\''),
    ({"on_error": "skip"}, "needs a list"), ({"batch_size": 0}, "batch_size"), ({"workers": -1}, "workers")])
def test_options_are_checked_at_the_call(options, words):
    with pytest.raises(ValueError, match=words):
        stream([], GEOMETRY, **options)


@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("cuda", [False, True])
def test_pinned_memory_is_asked_for_only_with_a_device(files, monkeypatch, pin, cuda):
    asked, empty = [], torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory, **k: asked.append(pin_memory) or empty(*a, **k))
    _, pixels, _ = flat(stream(files, GEOMETRY, batch_size=4, pin=pin))
    assert asked == [pin and cuda] * 3
    assert (pixels.permute(0, 2, 3, 1).numpy() == np.stack([GEOMETRY.apply(read_image(p)) for p in files])).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a CUDA device")
def test_pinned_memory(files):
    plain, pinned = (list(stream(files, GEOMETRY, pin=pin)) for pin in (False, True))
    assert all(b.pixels.is_pinned() for b in pinned) and not any(b.pixels.is_pinned() for b in plain)
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(plain, pinned))


# --- the stream against its slow twin --------------------------------------------------------------------

def streamed(path: Path, geometry: Geometry) -> tuple[np.ndarray, tuple[int, int]]:
    (batch,) = stream([path], geometry, workers=0)
    return batch.pixels[0].permute(1, 2, 0).numpy(), batch.sizes[0]


@pytest.fixture
def drafts(monkeypatch) -> list[tuple[int, int]]:
    """The (width, height) of each picture that the JPEG decoder was told to reduce."""
    sizes, real = [], JpegImagePlugin.JpegImageFile.draft

    def draft(image, mode, size):
        result = real(image, mode, size)
        sizes.append(image.size)
        return result
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", draft)
    return sizes


def write_kind(folder: Path, kind: str, h: int, w: int) -> Path:
    """Write an h x w picture of one of `KINDS`, full of detail."""
    rng = np.random.default_rng(h * 1000 + w)
    pixels, deep = rng.integers(0, 256, (h, w, 4), dtype=np.uint8), rng.integers(0, 65536, (h, w, 3)).astype(np.uint16)
    colour, suffix = Image.fromarray(pixels[..., :3]), kind.split()[-1]
    path = folder / f"{kind}.{suffix}"
    if kind == "deep colour png":
        path.write_bytes(png_16(deep, 2))
    elif kind in ("deep grey png", "deep see-through png"):
        path.write_bytes(png_16(deep[..., 0], 0, b"" if "grey" in kind else deep[0, 0, 0].astype(">u2").tobytes()))
    elif kind == "integers tif":
        tifffile.imwrite(path, deep[..., 0].astype(np.int32))
    elif kind == "double mpo":
        save(path, colour, save_all=True, append_images=[colour], quality=90)
    elif kind == "ycck jpg":  # Pillow writes CMYK; the byte in Adobe's marker makes it YCCK
        content = bytearray(save(path, colour.convert("CMYK"), quality=90).read_bytes())
        content[content.index(b"Adobe") + 11] = 2
        path.write_bytes(content)
    else:
        image = {"colour": colour, "turned": colour, "grey": colour.convert("L"), "bits": colour.convert("1"),
                 "palette": colour.quantize(16), "see-through": colour.quantize(16), "alpha": Image.fromarray(pixels),
                 "grey-alpha": Image.fromarray(pixels[..., :2], "LA"), "cmyk": colour.convert("CMYK"),
                 "ycbcr": colour.convert("YCbCr")}[kind.split()[0]]
        options = {"turned": {"exif": orientation(6)}, "see-through": {"transparency": 3}}.get(kind.split()[0], {})
        save(path, image, **options, **({"lossless": True} if suffix == "webp" else {}))
    return path


KINDS = ["colour png", "colour bmp", "colour tif", "colour webp", "turned png", "grey png", "grey tif", "bits png",
         "palette png", "palette bmp", "see-through png", "alpha png", "alpha webp", "grey-alpha png", "deep grey png",
         "deep see-through png", "deep colour png", "integers tif", "ycbcr tif", "cmyk tif", "cmyk jpg", "ycck jpg",
         "double mpo"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_never_drafted_equals_the_slow_path(tmp_path, kind, drafts):
    path = write_kind(tmp_path, kind, 96, 160)
    for geometry in (Geometry(10, 8), Geometry((21, 10), (16, 10)), Geometry(96, (64, 72)), Geometry(None, None)):
        pixels, size = streamed(path, geometry)
        assert (pixels == geometry.apply(read_image(path))).all()
        assert size == read_image(path).shape[:2] == ((160, 96) if kind == "turned png" else (96, 160))
    assert not drafts


@given(st.sampled_from(KINDS), SIZES, SIZES, SIDE, SIDE)
def test_stream_equals_the_slow_path(tmp_path_factory, kind, resize, crop, h, w):
    try:
        geometry = Geometry(resize, crop)
    except ValueError:
        return
    path = write_kind(tmp_path_factory.mktemp("any"), kind, h, w)
    try:
        expected = geometry.apply(read_image(path))
    except ValueError as error:
        with pytest.raises(ImageError) as raised:
            streamed(path, geometry)
        assert str(raised.value) == f"{path}: {error}"
        return
    pixels, size = streamed(path, geometry)
    assert pixels.shape == expected.shape and (pixels == expected).all()
    assert size == read_image(path).shape[:2]


# --- drafts: JPEGs that the decoder reduces --------------------------------------------------------------

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "camera", "brick", "grass", "gravel")


def photo(name: str, times: int) -> Image.Image:
    """A photograph of whole 16ths, `times` enlarged and then made rough again to the pixel."""
    image = Image.fromarray(getattr(skimage.data, name)())
    image = image.crop((0, 0, image.width // 16 * 16, image.height // 16 * 16))
    if times == 1:
        return image
    large = np.asarray(image.resize((image.width * times, image.height * times)))
    noise = np.random.default_rng(0).normal(0, 6, large.shape[:2]).reshape(*large.shape[:2], *[1] * (large.ndim - 2))
    return Image.fromarray((large + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 95, "subsampling": 0, "progressive": True}],
                         ids=["90", "95"])
def test_a_draft_stays_within_the_tolerance(tmp_path, name, scale, options, drafts):
    picture = photo(name, scale // 2)
    path = save(tmp_path / "a.jpg", picture, **options)
    geometry = Geometry(min(picture.size) // (scale * images.DRAFT_MARGIN), None)  # at the margin: the worst case
    pixels, size = streamed(path, geometry)
    difference = np.abs(pixels - geometry.apply(read_image(path)).astype(int))
    assert drafts == [(picture.width // scale, picture.height // scale)] and size == picture.size[::-1]
    assert difference.mean() <= images.DRAFT_MEAN and difference.max() <= images.DRAFT_MAX
    assert difference.any()  # it is a draft


@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize("geometry", [Geometry(16, (12, 20)), Geometry((18, 30), (17, 24))])
def test_a_turned_draft(tmp_path, turn, geometry, drafts):
    picture = photo("coffee", 1)  # 400 x 592
    path = save(tmp_path / "a.jpg", UPRIGHT[{6: 8, 8: 6}.get(turn, turn)](np.asarray(picture)), quality=90,
                exif=orientation(turn))
    pixels, size = streamed(path, geometry)
    assert size == (400, 592) and drafts
    assert np.abs(pixels - geometry.apply(np.asarray(picture)).astype(int)).mean() < 2  # JPEG's loss included
    assert np.abs(pixels - geometry.apply(read_image(path)).astype(int)).max() <= images.DRAFT_MAX


@pytest.mark.parametrize("h, w, resize, scale", [
    (128, 192, 16, 2), (192, 128, 16, 2), (128, 192, 17, 1), (127, 192, 8, 1), (128, 191, 8, 1), (130, 192, 8, 2),
    (512, 640, 16, 8), (512, 636, 16, 4), (508, 512, 16, 4), (511, 512, 16, 1), (512, 640, 33, 2),
    (128, 128, (16, 8), 2), (128, 128, (17, 8), 1), (128, 64, (16, 8), 1), (64, 128, (16, 8), 1),
    (512, 512, None, 1), (64, 64, 256, 1)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_which_scale_a_draft_has(tmp_path, h, w, resize, scale, mode):
    path = save(tmp_path / "a.jpg", Image.new(mode, (w, h), 100))
    image, size = images._open(path, (mode,), Geometry(resize, None))
    assert image.size == (w // scale, h // scale) and size == (h, w)


@given(SIZES, st.integers(1, 300), st.integers(1, 300), st.sampled_from(list(UPRIGHT)), st.sampled_from(["L", "RGB"]))
def test_a_draft_never_shows_in_sizes(tmp_path_factory, resize, h, w, turn, mode):
    picture = Image.linear_gradient("L").resize((w, h)).convert(mode)
    path = save(tmp_path_factory.mktemp("any") / "a.jpg", picture, exif=orientation(turn))
    pixels, size = streamed(path, Geometry(resize, None))
    expected = Geometry(resize, None).apply(read_image(path))
    assert size == read_image(path).shape[:2] and pixels.shape == expected.shape
    assert np.abs(pixels - expected.astype(int)).max() <= images.DRAFT_MAX


def test_read_image_and_read_mask_never_draft(tmp_path, drafts):
    path = save(tmp_path / "a.jpg", smooth(640, 800))
    assert read_image(path).shape == (640, 800, 3) and read_mask(path, size=(640, 800)).shape == (640, 800)
    assert not drafts and streamed(path, Geometry(8, 8))[1] == (640, 800) and drafts


def test_errors_of_a_draft(tmp_path, drafts):
    path = save(tmp_path / "a.jpg", smooth(128, 320))
    with pytest.raises(ImageError, match=r"a.jpg: crop 12x60 .* is larger than 16x40, .*image of 128x320 is resized"):
        streamed(path, Geometry(16, (12, 60)))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ImageError, match="a.jpg: cannot be read as an image.*truncated"):
        streamed(path, Geometry(16, 12))
    assert len(drafts) == 2
