"""One file in, pixels out: explicit rules for every image mode, one geometry, and a threaded stream.

`stream` decodes ahead of its consumer in a few threads and hands out batches in file order. It gives what
`read_image` and `Geometry.apply` give, but keeps the picture inside Pillow, which works outside Python's
lock, until it is small; and it lets the JPEG decoder do part of a strong reduction (`DRAFT_MARGIN`).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

# A closed list: a file renamed to .png cannot start one of Pillow's other readers (EPS runs Ghostscript).
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
MODES_8_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr")
# What Pillow raises on damaged files, seen by feeding it random bytes; it has no one class for them.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, struct.error,
                 Image.DecompressionBombError)
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR_CONFIGURATION = 258, 262, 284  # tags of TIFF 6.0
# `stream` has a JPEG decoded at 1/2, 1/4 or 1/8 if each side stays this many times that of the resized picture.
DRAFT_MARGIN = 4
# What that changes in a photograph, in grey levels of 255: at most this on average, and this in any pixel.
DRAFT_MEAN, DRAFT_MAX = 0.5, 5

Size = int | tuple[int, int] | None


class ImageError(ValueError):
    """A file that cannot be turned into pixels; the message names the file and what to do."""


def read_image(path: str | Path) -> np.ndarray:
    """Return the pixels of one image file as viewers show them, decoded once.

    The rule for each kind of file:

    * CMYK, YCbCr: converted to RGB. Palette: its colours. Grey: three equal channels. 1 bit: 0 or 255.
    * Alpha, and a transparent colour in a palette or header: composited on white.
    * 16-bit grey (and integers within 0..65535): value / 257, rounded; 65535 becomes 255, nothing is clipped.
    * 16-bit colour: Pillow keeps the high byte of each channel (value // 256), at most 1 off value / 257.
    * The EXIF orientation is applied: height and width are those that one sees.
    * More than one page or frame: refused (of a camera's MPO file, the main picture is read).
    * Floats, integers outside 0..65535, LAB, and TIFF variants that Pillow decodes wrongly: refused.

    Args:
        path: a PNG, JPEG, BMP, TIFF or WebP file.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ImageError: missing, empty, truncated, not an image, or one of the refused kinds above.
    """
    return np.array(_in_rgb(_open_shown(path)[0]))


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a ground-truth mask: True where the pixel is anomalous.

    A pixel is anomalous when any colour channel is > 0, or > 127 in JPEG and WebP files, whose compression
    leaves grey noise around edges. Palettes count by colour; fully transparent pixels are not anomalous.

    Args:
        path: a mask file, in any format that `read_image` opens.
        size: (H, W) in pixels of the image that the mask belongs to, if it is to be checked.

    Returns:
        bool (H, W).

    Raises:
        ImageError: an unreadable file, or a size other than `size`.
    """
    image, _ = _open(path, (*MODES_8_BIT, *MODES_16_BIT, "F"))
    threshold = 127 if image.format in ("JPEG", "MPO", "WEBP") else 0
    values = np.asarray(image.convert("RGB") if image.mode in MODES_8_BIT else image)
    mask = (values.reshape(image.height, image.width, -1) > threshold).any(axis=2)
    if image.mode in MODES_8_BIT and image.has_transparency_data:
        mask &= np.asarray(image.convert("RGBA"))[..., 3] > 0
    if size is not None and mask.shape != tuple(size):
        raise ImageError(f"{path}: the mask is {_by(mask.shape)} pixels (height x width) but its image is "
                         f"{_by(size)}; a mask must have the size of its image")
    return mask


def _open_shown(path: str | Path, geometry: Geometry | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Return the picture by the rules of `read_image`, in mode L or RGB, and (H, W) of its file, as `_open`."""
    image, size = _open(path, MODES_8_BIT + MODES_16_BIT, geometry)
    if image.mode in MODES_16_BIT:
        image = Image.fromarray(_grey_from_16_bit(image, path))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == "L" else _in_rgb(image), size


def _in_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy RGB


def _open(path: str | Path, modes: tuple[str, ...],
          geometry: Geometry | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Return the decoded picture, upright, with the `format` of its file, and the file's upright (H, W) in pixels.

    Its mode is one of `modes`. It has the file's size, or less where `geometry` is given and `_draft` allows it.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            pages = getattr(image, "n_frames", 1)
            trap = _tiff_trap(image) if image.format == "TIFF" else None
            width = image.width
            if geometry is not None:
                _draft(image, geometry)
            scale = width // image.width  # 1 unless drafted
            image.load()  # decodes here, so that truncation is found here
            ImageOps.exif_transpose(image, in_place=True)
    except DECODE_ERRORS as error:
        raise ImageError(f"{path}: cannot be read as an image ({error}); "
                         "replace or remove the file, or convert it to PNG") from error
    if pages != 1 and image.format != "MPO":
        raise ImageError(f"{path}: holds {pages} pages or frames, one is expected; save each as its own file")
    if image.mode not in modes:
        trap = f"a file of pixel mode {image.mode!r}, which has no fixed scale,"
    if trap:
        raise ImageError(f"{path}: {trap} is not supported; convert it to 8-bit or 16-bit PNG")
    return image, (image.height * scale, image.width * scale)


def _draft(image: Image.Image, geometry: Geometry) -> None:
    """Have a JPEG that is far larger than `geometry` makes it decoded at 1/2, 1/4 or 1/8 of its size."""
    if image.format != "JPEG" or image.mode not in ("L", "RGB"):  # MPO and CMYK are decoded in full
        return
    # The file may yet be turned by its EXIF orientation: there has to be room both ways.
    room = min(side / resized for shape in (image.size, image.size[::-1])
               for side, resized in zip(shape, geometry.resized_size(*shape)))
    for scale in (8, 4, 2):
        # Only whole fractions: a rounded size would stretch the picture, and hide the file's own size.
        if room >= scale * DRAFT_MARGIN and image.width % scale == image.height % scale == 0:
            image.draft(None, (image.width // scale, image.height // scale))
            return


def _tiff_trap(image: Image.Image) -> str | None:
    """Name the TIFF variant if it is one that Pillow opens without an error but with wrong values."""
    tags = image.tag_v2
    bits, planes = tags.get(BITS_PER_SAMPLE, (1,)), tags.get(PLANAR_CONFIGURATION) == 2
    swapped = tags.prefix == b"MM" and image.mode in ("I", "F")
    traps = {
        f"a TIFF with {max(bits)} bits per sample": max(bits) not in (16, 32),
        "a TIFF with its 16-bit channels stored as planes": planes and len(bits) > 1,
        "a 16-bit TIFF in which 0 is white": tags.get(PHOTOMETRIC) == 0,
        "a big-endian TIFF of signed, 32-bit or float values": swapped,
    }
    return next((name for name, met in traps.items() if met and max(bits) > 8), None)


def _grey_from_16_bit(image: Image.Image, path: str | Path) -> np.ndarray:
    """Return uint8 (H, W), each value divided by 257 and rounded."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{path}: integers from {values.min()} to {values.max()} do not fit 16 bits; "
                         "convert the file to 8-bit or 16-bit PNG")
    grey = ((values + 128) // 257).astype(np.uint8)  # 257 is odd: there are no ties
    if "transparency" in image.info:  # one grey value that a PNG header declares transparent
        grey[values == image.info["transparency"]] = 255
    return grey


@dataclass(frozen=True)
class Geometry:
    """How an image is resized and then cropped at its centre; every size is (height, width).

    Args:
        resize: an int brings the *short* side to it and keeps the aspect ratio (long side rounded to
            nearest); a pair (H, W) is taken exactly, whatever the aspect ratio; None: no resize.
        crop: an int for a square, a pair (H, W), or None for no crop.

    Raises:
        ValueError: a size that is not a positive integer, or a crop that no resized image can hold.
    """

    resize: Size = 256
    crop: Size = 224

    def __post_init__(self) -> None:
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            sides = size if isinstance(size, tuple) and len(size) == 2 else (size,)
            if size is not None and not all(type(side) is int and side > 0 for side in sides):
                raise ValueError(f"{name} must be a positive int, a tuple (H, W), or None, not {size!r}")
        # A square crop or an exact resize is known to fail now; otherwise it depends on the image's shape.
        if self.resize is not None and (isinstance(self.crop, int) or isinstance(self.resize, tuple)):
            self.output_size(*_pair(self.resize))

    def resized_size(self, h: int, w: int) -> tuple[int, int]:
        """Return (H, W) in pixels after the resize, before the crop."""
        if not isinstance(self.resize, int):
            return self.resize or (h, w)
        short = min(h, w)
        return tuple((2 * side * self.resize + short) // (2 * short) for side in (h, w))  # rounds half up

    def output_size(self, h: int, w: int) -> tuple[int, int]:
        """Return (H, W) in pixels of what `apply` gives for an image of (h, w) pixels.

        Raises:
            ValueError: the crop is larger than the resized image.
        """
        resized = self.resized_size(h, w)
        crop = resized if self.crop is None else _pair(self.crop)
        if crop[0] > resized[0] or crop[1] > resized[1]:
            raise ValueError(f"crop {_by(crop)} (height x width) is larger than {_by(resized)}, to which an "
                             f"image of {_by((h, w))} is resized: choose a smaller crop or a larger resize")
        return crop

    def crop_box(self, h: int, w: int) -> tuple[float, float, float, float]:
        """Return (top, left, bottom, right) of what the crop sees, in pixels of the (h, w) original."""
        (resized_h, resized_w), (top, left, bottom, right) = self.resized_size(h, w), self._box(h, w)
        return top * h / resized_h, left * w / resized_w, bottom * h / resized_h, right * w / resized_w

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return the image resized (bilinear, antialiased when it shrinks), then cropped at its centre.

        Args:
            image: uint8 (H, W, 3).

        Returns:
            uint8 (h, w, 3), contiguous, of size `output_size(H, W)`, whose ValueError it shares.
        """
        return np.array(self._fit(Image.fromarray(image), image.shape[:2], Image.Resampling.BILINEAR))

    def apply_mask(self, mask: np.ndarray) -> np.ndarray:
        """Return the mask under the same geometry as `apply`, each pixel taken from its nearest one.

        Args:
            mask: bool (H, W).

        Returns:
            bool (h, w), of size `output_size(H, W)`, whose ValueError it shares.
        """
        fitted = self._fit(Image.fromarray(mask.astype(np.uint8)), mask.shape, Image.Resampling.NEAREST)
        return np.asarray(fitted).astype(bool)

    def _box(self, h: int, w: int) -> tuple[int, int, int, int]:
        """Return (top, left, bottom, right) in resized pixels, rounded as torchvision's CenterCrop does."""
        (resized_h, resized_w), (out_h, out_w) = self.resized_size(h, w), self.output_size(h, w)
        top, left = round((resized_h - out_h) / 2), round((resized_w - out_w) / 2)
        return top, left, top + out_h, left + out_w

    def _fit(self, image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        """Return the picture resized and cropped as one of `size` (H, W) pixels, which a draft is smaller than."""
        (h, w), (top, left, bottom, right) = self.resized_size(*size), self._box(*size)
        if image.size != (w, h):  # Pillow: (width, height); a resize to the same size would copy
            image = image.resize((w, h), resample)
        return image.crop((left, top, right, bottom))


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images of a run, in file order."""

    indices: list[int]  # position of each image in the paths given to `stream`
    pixels: torch.Tensor  # uint8 (n, 3, H, W), RGB, channels_last in memory
    sizes: list[tuple[int, int]]  # (H, W) in pixels of each upright file, before the geometry


def stream(paths: Sequence[str | Path], geometry: Geometry, *, batch_size: int = 16, workers: int = 2,
           on_error: str = "raise", skipped: list[tuple[Path, str]] | None = None,
           pin: bool = False) -> Iterator[Batch]:
    """Yield batches of decoded images in the order of `paths`, reading about two batches ahead.

    The pixels are those of `geometry.apply(read_image(path))`, bit for bit, but for large JPEGs: an RGB or grey
    JPEG that is to shrink at least 8-fold (see `DRAFT_MARGIN`; with a short side of 256, from 2048 pixels on) is
    reduced in part by its decoder, which about halves the time. Measured at the margin, at qualities 90 and 95,
    on 24 photographs that are sharp or noisy to the pixel, this changes the result by at most 0.43 grey levels
    of 255 on average and 5 in any pixel (`DRAFT_MEAN`, `DRAFT_MAX`). Drawn patterns a few pixels wide change
    more: small print by 1 on average and 7 at most, saturated colours side by side by 5 and 15.

    Wrap it in `contextlib.closing` if you may leave it early: this ends its threads at once.

    Args:
        paths: image files.
        geometry: resize and crop; all images of one run must come out at one size.
        batch_size: images a batch; only the last batch may hold fewer.
        workers: decoding threads; 0 decodes in the calling thread, with the same results.
        on_error: "raise", or "skip" to leave unreadable files out and write them to `skipped`.
        skipped: a list that receives (path, reason) for each file left out; needed for "skip".
        pin: with a CUDA device, put the pixels into page-locked memory, from which they can be copied to the
            device without waiting; without one it has no effect.

    Returns:
        An iterator over `Batch`; a batch is never empty.

    Raises:
        ValueError: an option outside its range (raised by the call itself, before the first batch).
        ImageError: an unreadable file under "raise"; an image that the crop does not fit; two output sizes.
    """
    if batch_size < 1 or workers < 0:
        raise ValueError(f"batch_size must be >= 1 and workers >= 0, not {batch_size} and {workers}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error must be "raise" or "skip", not {on_error!r}')
    if on_error == "skip" and skipped is None:
        raise ValueError('on_error="skip" needs a list as `skipped`, so that no file is lost in silence')
    pin = pin and torch.cuda.is_available()
    return _batches([Path(path) for path in paths], geometry, batch_size, workers, on_error, skipped, pin)


def _decode(path: Path, geometry: Geometry) -> tuple[np.ndarray, tuple[int, int]] | ImageError:
    """Return (pixels, original size), or an unreadable file's error; a crop that does not fit raises."""
    try:
        image, size = _open_shown(path, geometry)
    except ImageError as error:
        return error  # the consumer decides: raise, or skip and report
    try:
        return np.asarray(_in_rgb(geometry._fit(image, size, Image.Resampling.BILINEAR))), size
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error


def _decode_ahead(paths: list[Path], geometry: Geometry, workers: int, ahead: int) -> Iterator:
    """Yield what `_decode` gives for each path, in order, with at most `ahead` done or waiting."""
    if workers == 0:
        yield from (_decode(path, geometry) for path in paths)
        return
    pool, waiting = ThreadPoolExecutor(workers, thread_name_prefix="rcp-decode"), deque()
    try:
        for path in paths:
            waiting.append(pool.submit(_decode, path, geometry))
            if len(waiting) == ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the consumer stops early or Ctrl-C arrives
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(paths: list[Path], geometry: Geometry, batch_size: int, workers: int, on_error: str,
             skipped: list[tuple[Path, str]] | None, pin: bool) -> Iterator[Batch]:
    first, batch = None, []  # first: (path, shape) of the image that all others must match
    with closing(_decode_ahead(paths, geometry, workers, 2 * batch_size)) as results:
        for index, (path, result) in enumerate(zip(paths, results)):
            if isinstance(result, ImageError):
                if on_error == "raise":
                    raise result
                skipped.append((path, str(result)))
                continue
            pixels, size = result
            first = first or (path, pixels.shape)
            if pixels.shape != first[1]:
                raise ImageError(f"{path} comes out at {_by(pixels.shape)} (height x width), {first[0]} at "
                                 f"{_by(first[1])}: one run needs one size, set crop (or resize to a pair)")
            batch.append((index, pixels, size))
            if len(batch) == batch_size:
                yield _stack(batch, pin)
                batch = []
    if batch:
        yield _stack(batch, pin)


def _stack(batch: list[tuple[int, np.ndarray, tuple[int, int]]], pin: bool) -> Batch:
    indices, pixels, sizes = (list(column) for column in zip(*batch))
    stacked = torch.empty((len(pixels), *pixels[0].shape), dtype=torch.uint8, pin_memory=pin)
    np.stack(pixels, out=stacked.numpy())
    return Batch(indices, stacked.permute(0, 3, 1, 2), sizes)
