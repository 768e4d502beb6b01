"""Patch features: each step against a slow twin, with H != W through the whole path."""

import itertools
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import rcp.features
from rcp import FeatureSettings, MemoryLimit, PatchExtractor
from rcp.data import Split
from rcp.features import _images_a_pass, choose_device, join_levels, neighbourhood_average, neighbourhood_pool, paths_of
from rcp.images import Geometry, ImageError
from rcp.store import Store

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_pixels(n: int = 3, h: int = 64, w: int = 96) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def extractor(tiny) -> PatchExtractor:
    return PatchExtractor(tiny, device="cpu", batch_size=3)


# --- slow twins ------------------------------------------------------------------------------------------


def slow_neighbourhoods(maps: torch.Tensor, s: int) -> torch.Tensor:
    """(B, C, H, W, s, s): every position's neighbourhood, zeros outside."""
    b, c, h, w = maps.shape
    out = torch.zeros(b, c, h, w, s, s)
    for y, x, i, j in itertools.product(range(h), range(w), range(s), range(s)):
        row, column = y + i - s // 2, x + j - s // 2
        if 0 <= row < h and 0 <= column < w:
            out[:, :, y, x, i, j] = maps[:, :, row, column]
    return out


def slow_pool(values: torch.Tensor, width: int) -> torch.Tensor:
    """Adaptive average pooling of the last axis: bin i is the mean of [floor(iL/W), ceil((i+1)L/W))."""
    length = values.shape[-1]
    bins = [values[..., i * length // width : -(-(i + 1) * length // width)].mean(-1) for i in range(width)]
    return torch.stack(bins, -1)


def slow_bilinear(maps: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """Linear between the centres of the positions, constant beyond the outermost centres."""
    out = torch.empty(*maps.shape[:2], h, w)
    for y, x in itertools.product(range(h), range(w)):
        v = min(max((y + 0.5) * maps.shape[2] / h - 0.5, 0), maps.shape[2] - 1)
        u = min(max((x + 0.5) * maps.shape[3] / w - 0.5, 0), maps.shape[3] - 1)
        top, left = int(v), int(u)
        below, right = min(top + 1, maps.shape[2] - 1), min(left + 1, maps.shape[3] - 1)
        upper = maps[..., top, left] * (1 - u + left) + maps[..., top, right] * (u - left)
        lower = maps[..., below, left] * (1 - u + left) + maps[..., below, right] * (u - left)
        out[..., y, x] = upper * (1 - v + top) + lower * (v - top)
    return out


# --- the steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [1, 3, 5])
def test_neighbourhood_average_equals_a_loop_that_counts_the_zeros_outside(s):
    maps = draw(2, 4, 5, 7)
    torch.testing.assert_close(neighbourhood_average(maps, s), slow_neighbourhoods(maps, s).mean((-2, -1)))


@pytest.mark.parametrize("width", [5, 12, 36, 50])
def test_neighbourhood_pool_equals_a_loop(width):
    maps = draw(2, 4, 5, 7)
    slow = slow_pool(slow_neighbourhoods(maps, 3).permute(0, 2, 3, 1, 4, 5).flatten(3), width)  # (B, H, W, width)
    torch.testing.assert_close(neighbourhood_pool(maps, 3, width), slow.permute(0, 3, 1, 2))


def test_the_deeper_level_is_brought_up_bilinearly_by_hand():
    fine, deep = torch.zeros(1, 1, 4, 4), torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    joined = join_levels([fine, deep])
    assert joined.shape == (1, 4, 4, 2)
    across = torch.tensor([0.0, 1.0, 3.0, 4.0])  # half-pixel centres: a quarter and three quarters of the way
    assert torch.equal(joined[0, ..., 1], across[None, :] + 2 * across[:, None])


@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (8, 12), (2, 9)])
def test_levels_of_any_size_are_joined_on_the_first_ones_grid(shape):
    fine, deep = draw(2, 3, 8, 12), draw(2, 5, *shape, seed=1)
    joined = join_levels([fine, deep]).permute(0, 3, 1, 2)
    assert torch.equal(joined[:, :3], fine)
    torch.testing.assert_close(joined[:, 3:], slow_bilinear(deep, 8, 12), atol=1e-5, rtol=1e-5)


# --- the whole path --------------------------------------------------------------------------------------


def test_concat_equals_the_slow_path(extractor):
    pixels = draw_pixels()
    with torch.inference_mode():
        fine, deep = (m.contiguous() for m in extractor.model((pixels / 255 - MEAN) / STD))
    assert (fine.shape, deep.shape) == ((3, 48, 8, 12), (3, 192, 4, 6))
    fine, deep = (slow_neighbourhoods(m, 3).mean((-2, -1)) for m in (fine, deep))  # averaged first, then enlarged
    slow = torch.cat([fine, slow_bilinear(deep, 8, 12)], 1).permute(0, 2, 3, 1)
    found = extractor.patches(pixels)
    assert found.shape == (3, 8, 12, 240) and found.dtype == torch.float32
    torch.testing.assert_close(found, slow, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [100, 512])
def test_pool_equals_patchcores_order_unfold_then_enlarge_then_pool_twice(tiny, width):
    extractor = PatchExtractor(replace(tiny, merge="pool", pooled_width=width), device="cpu")
    pixels = draw_pixels(2)
    with torch.inference_mode():
        maps = [m.contiguous() for m in extractor.model((pixels / 255 - MEAN) / STD)]
    levels = []
    for m in maps:
        flat = slow_neighbourhoods(m, 3).permute(0, 1, 4, 5, 2, 3).flatten(1, 3)  # (B, C·9, H, W)
        levels.append(slow_pool(slow_bilinear(flat, 8, 12).permute(0, 2, 3, 1), width))
    slow = slow_pool(torch.cat(levels, -1), width)
    found = extractor.patches(pixels)
    assert found.shape == (2, 8, 12, width) == (2, 8, 12, extractor.width)
    torch.testing.assert_close(found, slow, atol=1e-4, rtol=1e-4)


def test_a_change_in_one_corner_is_felt_in_that_corner_of_the_grid(extractor):
    pixels = draw_pixels(1)
    changed = pixels.clone()
    changed[..., :8, 88:] = 255 - changed[..., :8, 88:]  # top right
    difference = (extractor.patches(pixels) - extractor.patches(changed)).square().sum(-1)[0]
    y, x = divmod(int(difference.argmax()), 12)
    assert y <= 1 and x >= 10


@pytest.mark.parametrize(("size", "grid"), [((64, 96), (8, 12)), ((60, 100), (8, 13)), ((33, 17), (5, 3))])
def test_the_grid_is_told_before_the_work(tiny, size, grid):
    extractor = PatchExtractor(replace(tiny, resize=None, crop=None), device="cpu")
    assert extractor.grid(*size) == grid
    assert extractor.patches(draw_pixels(1, *size)).shape == (1, *grid, extractor.width)


def test_the_grid_follows_the_resize_and_the_crop(extractor):
    assert extractor.grid(90, 130) == extractor.grid(500, 800) == (8, 12)


def test_one_level_alone_is_its_own_grid(tiny):
    extractor = PatchExtractor(replace(tiny, levels=(3,)), device="cpu")
    assert extractor.patches(draw_pixels(1)).shape == (1, 4, 6, 192) == (1, *extractor.grid(90, 130), extractor.width)


def test_a_patch_size_of_one_and_of_five_differ_from_three(tiny):
    found = [PatchExtractor(replace(tiny, patch_size=s), device="cpu").patches(draw_pixels(1)) for s in (1, 3, 5)]
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[1], found[2])


def test_a_batch_of_one_equals_a_batch_of_n(extractor):
    pixels = draw_pixels(5)
    single = torch.cat([extractor.patches(pixels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(extractor.patches(pixels), single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("normalization", ["imagenet", "model"])
def test_the_input_is_normalised_by_the_formula(tiny, name, normalization):
    extractor = PatchExtractor(replace(tiny, backbone=name, normalization=normalization), device="cpu")
    seen = []
    real = extractor.model
    extractor.model = lambda x: seen.append(x) or real(x)
    pixels = draw_pixels(1)
    extractor.patches(pixels)
    own = normalization == "model"
    mean = torch.tensor(extractor.backbone.mean).view(3, 1, 1) if own else MEAN
    std = torch.tensor(extractor.backbone.std).view(3, 1, 1) if own else STD
    torch.testing.assert_close(seen[0].contiguous(), (pixels / 255 - mean) / std)


def test_imagenets_and_the_models_normalisation_differ_for_the_efficientnets(tiny):
    settings = replace(tiny, backbone="tf_efficientnet_lite0")
    one, other = (PatchExtractor(replace(settings, normalization=n), device="cpu") for n in ("imagenet", "model"))
    assert other.backbone.mean == (0.5, 0.5, 0.5)
    assert not torch.allclose(one.patches(draw_pixels(1)), other.patches(draw_pixels(1)), rtol=0.01, atol=0.01)


def test_bfloat16_is_close_to_float32_and_gives_float32(tiny, extractor):
    half = PatchExtractor(replace(tiny, precision="bfloat16"), device="cpu").patches(draw_pixels())
    full = extractor.patches(draw_pixels())
    error = float((half - full).norm() / full.norm())
    assert half.dtype == torch.float32 and 0 < error < 0.03


# --- files -----------------------------------------------------------------------------------------------


def test_extract_gives_every_image_in_order(extractor, photos):
    features = extractor.extract(photos)
    assert len(features) == 7 and features.values.shape == (7, 8, 12, 240)
    assert features.paths == photos and features.indices == list(range(7)) and features.skipped == []
    assert features.sizes == [Image.open(path).size[::-1] for path in photos]
    assert features.settings == extractor.settings and features.weights_sha256 == extractor.backbone.sha256
    for i, path in enumerate(photos):
        pixels = torch.from_numpy(extractor.settings.geometry.apply(np.array(Image.open(path)))).permute(2, 0, 1)
        torch.testing.assert_close(features.values[i], extractor.patches(pixels[None])[0], atol=1e-5, rtol=1e-5)


def test_extract_equals_the_stream(extractor, photos):
    batches = list(extractor.stream(photos))
    features = extractor.extract(photos)
    assert [batch.indices for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert torch.equal(torch.cat([batch.values for batch in batches]), features.values)
    assert sum((batch.sizes for batch in batches), []) == features.sizes


def test_rows_are_a_view_image_by_image(extractor, photos):
    features = extractor.extract(photos[:2])
    assert features.rows.shape == (2 * 8 * 12, 240)
    assert features.rows.data_ptr() == features.values.data_ptr()
    assert torch.equal(features.rows[96 + 12 * 3 + 5], features.values[1, 3, 5])


def test_threads_change_nothing(tiny, photos):
    found = [PatchExtractor(tiny, device="cpu", batch_size=3, workers=n).extract(photos).values for n in (0, 2)]
    assert torch.equal(*found)


def test_a_split_strings_and_paths_are_the_same_images(extractor, category):
    values = [extractor.extract(images).values for images in
              (category.train, category.train.paths, [str(path) for path in category.train.paths])]  # fmt: skip
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])


@pytest.fixture
def with_a_broken_one(photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(photos[0].read_bytes()[:60])
    return [photos[0], broken, *photos[1:5]], broken


def test_skipped_files_are_listed_and_everything_stays_aligned(extractor, with_a_broken_one):
    paths, broken = with_a_broken_one
    features = extractor.extract(paths, on_error="skip")
    whole = extractor.extract([path for path in paths if path != broken])
    assert features.indices == [0, 2, 3, 4, 5] and features.paths == paths
    assert [path for path, _ in features.skipped] == [broken] and str(broken) in features.skipped[0][1]
    assert features.sizes == whole.sizes and len(features) == 5 and len(features.rows) == 5 * 96
    torch.testing.assert_close(features.values, whole.values, atol=1e-5, rtol=1e-5)


def test_an_unreadable_file_is_an_error_that_names_it(extractor, with_a_broken_one):
    paths, broken = with_a_broken_one
    with pytest.raises(ImageError, match=re.escape(str(broken))):
        extractor.extract(paths)


def test_no_readable_file_at_all_is_an_error_that_names_the_first(extractor, with_a_broken_one):
    _, broken = with_a_broken_one
    with pytest.raises(ValueError, match=re.escape(f"none of the 2 images could be read; the first, {broken}")):
        extractor.extract([broken, broken], on_error="skip")


def test_no_images_are_an_error(extractor):
    for nothing in ([], Split("train", None, ())):
        with pytest.raises(ValueError, match="there are no images"):
            extractor.extract(nothing)
        with pytest.raises(ValueError, match="there are no images"):
            paths_of(nothing)


# --- how exactly features are stored, and where ----------------------------------------------------------


@pytest.fixture
def releases(monkeypatch) -> list[Store]:
    """The stores whose pages were let go of, once for each time."""
    seen, real = [], Store.release
    monkeypatch.setattr(Store, "release", lambda self: seen.append(self) or real(self))
    return seen


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("merge", ["concat", "pool"])
def test_stored_features_are_those_of_float32_rounded(tiny, photos, stored, merge):
    settings = replace(tiny, merge=merge, pooled_width=100)
    full = PatchExtractor(settings, device="cpu", batch_size=3)
    rounded = PatchExtractor(replace(settings, stored=stored), device="cpu", batch_size=3)
    dtype, features = getattr(torch, stored), rounded.extract(photos)
    assert torch.equal(features.values, full.extract(photos).values.to(dtype))
    assert features.values.dtype == features.rows.dtype == dtype and features.settings.stored == stored
    assert features.values.nbytes == 7 * 96 * rounded.width * dtype.itemsize
    assert torch.equal(torch.cat([batch.values for batch in rounded.stream(photos)]), features.values)
    assert rounded.patches(draw_pixels(1)).dtype == dtype


def test_what_float16_cannot_hold_is_one_sentence_and_bfloat16_holds_it(tiny, photos):
    extractors = [PatchExtractor(replace(tiny, stored=s), device="cpu") for s in ("float16", "bfloat16", "float32")]
    for extractor in extractors:
        real = extractor.model
        extractor.model = lambda x, real=real: [-1e6 * m for m in real(x)]
    with pytest.raises(ValueError, match="too large for float16, which ends at 65504: take stored='bfloat16'"):
        extractors[0].extract(photos[:1])
    assert all(extractor.extract(photos[:1]).values.abs().max().isfinite() for extractor in extractors[1:])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_number_of_float16_is_no_error_and_the_next_one_is(tiny, sign):
    extractor = PatchExtractor(replace(tiny, stored="float16"), device="cpu")
    assert float(extractor._rounded(sign * torch.tensor([1.0, 65504]))[1]) == sign * 65504
    with pytest.raises(ValueError, match="too large for float16"):
        extractor._rounded(sign * torch.tensor([1.0, 65520]))


def test_settings_from_before_there_was_a_choice_are_float32(tiny):
    old = json.loads(json.dumps(asdict(tiny)))
    assert old.pop("stored") == "float32"
    assert FeatureSettings(**old) == tiny and FeatureSettings().stored == "float32"
    assert FeatureSettings(**json.loads(json.dumps(asdict(replace(tiny, stored="bfloat16"))))).stored == "bfloat16"


@pytest.mark.parametrize("bad", ["float64", "half", None, 16])
def test_features_stored_in_no_known_way_are_refused_at_once(bad):
    with pytest.raises(ValueError, match="stored must be one of float32, float16, bfloat16"):
        FeatureSettings(stored=bad)


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_features_beyond_the_limit_lie_in_a_file_and_are_the_same(tiny, photos, tmp_path, stored):
    extractor = PatchExtractor(replace(tiny, stored=stored), device="cpu", batch_size=3)
    kept, mapped = extractor.extract(photos), extractor.extract(photos, limit=MemoryLimit(1, tmp_path))
    assert kept.store.file is None and mapped.store.file is not None
    for _ in range(2):
        assert torch.equal(kept.values, mapped.values) and torch.equal(kept.rows[::7], mapped.rows[::7])
        kept.release(), mapped.release()
    assert mapped.rows.data_ptr() == mapped.store.values.data_ptr()  # a view of the file, no copy
    assert (kept.indices, kept.sizes, kept.paths) == (mapped.indices, mapped.sizes, mapped.paths)


def test_a_file_of_features_is_as_wide_as_their_type(tiny, photos, tmp_path, monkeypatch):
    asked, real = [], MemoryLimit.empty
    monkeypatch.setattr(MemoryLimit, "empty", lambda self, *shape: asked.append(shape) or real(self, *shape))
    PatchExtractor(replace(tiny, stored="float16"), device="cpu").extract(photos, limit=MemoryLimit(1, tmp_path))
    assert asked == [((7, 8, 12, 240), torch.float16)]


def test_skipped_files_leave_no_hole_in_a_file_of_features(extractor, with_a_broken_one, tmp_path):
    paths, broken = with_a_broken_one
    mapped = extractor.extract(paths, on_error="skip", limit=MemoryLimit(1, tmp_path))
    assert torch.equal(mapped.values, extractor.extract(paths, on_error="skip").values) and len(mapped) == 5
    assert mapped.indices == [0, 2, 3, 4, 5] and mapped.store.file is not None


@pytest.mark.parametrize(("bound", "times"), [(3 * 96 * 240 * 4 - 1, 2), (3 * 96 * 240 * 4, 1), (rcp.features.RELEASE, 0)])
def test_pages_are_let_go_of_during_extraction(extractor, photos, tmp_path, releases, monkeypatch, bound, times):
    monkeypatch.setattr(rcp.features, "RELEASE", bound)  # the batches have 3, 3 and 1 images
    features = extractor.extract(photos, limit=MemoryLimit(1, tmp_path))
    assert releases == [features.store] * times
    features.release()
    assert len(releases) == times + 1


def test_features_that_lie_in_no_store_can_be_released(extractor, photos):
    features = extractor.extract(photos[:2])
    replace(features, store=None).release()
    assert features.store.file is None and len(features) == 2


def test_an_unreadable_first_file_and_a_full_disk_are_their_own_errors(extractor, photos, tmp_path, monkeypatch):
    (tmp_path / "bad.png").write_bytes(b"no image")
    limit = MemoryLimit(1, tmp_path / "nowhere")
    with pytest.raises(ImageError, match="bad.png"):
        extractor.extract([tmp_path / "bad.png", *photos], limit=limit)
    with pytest.raises(OSError, match="nowhere"):
        extractor.extract(photos, limit=limit)


# --- how many images a pass of the network takes ---------------------------------------------------------


@pytest.mark.parametrize(
    ("resize", "crop", "images"),
    [(256, 224, 8), (512, 480, 2), (366, 320, 4), (512, (224, 448), 4), ((224, 448), None, 4), (224, None, 8),
     (None, None, 1), (None, 224, 8), (72, (64, 96), 65), (2048, 2000, 1), (4096, 4096, 1), (8, 8, 6272)],
)  # fmt: skip
def test_a_pass_takes_about_as_many_pixels_whatever_the_size_of_the_images(resize, crop, images):
    assert _images_a_pass(Geometry(resize, crop)) == images


def test_the_size_of_a_pass_can_be_chosen(tiny):
    assert PatchExtractor(tiny, device="cpu").batch_size == 65
    assert PatchExtractor(tiny, device="cpu", batch_size=2).batch_size == 2


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("misspelt", ["patchsize", "layers", "image_size", "normalisation", "pre_trained"])
def test_an_unknown_setting_is_an_error(misspelt):
    with pytest.raises(TypeError, match=misspelt):
        FeatureSettings(**{misspelt: 3})


@pytest.mark.parametrize("misspelt", ["batchsize", "num_workers"])
def test_an_unknown_option_of_the_extractor_is_an_error(tiny, misspelt):
    with pytest.raises(TypeError, match=misspelt):
        PatchExtractor(tiny, **{misspelt: 3})


@pytest.mark.parametrize(
    "bad",
    [{"patch_size": 2}, {"patch_size": 0}, {"patch_size": -1}, {"merge": "mean"}, {"normalization": "none"},
     {"precision": "float16"}, {"resize": 0}, {"resize": 200, "crop": 224}, {"crop": -1}, {"resize": 2.5},
     {"resize": (64, 96), "crop": (96, 64)}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_at_once(bad):
    with pytest.raises(ValueError, match=next(iter(bad)) if len(bad) == 1 else "crop"):
        FeatureSettings(**bad)


def test_a_pooled_width_of_zero_is_refused_at_once():
    with pytest.raises(ValueError, match="pooled_width"):
        FeatureSettings(merge="pool", pooled_width=0)


def test_the_settings_are_frozen_and_compare_by_value(tiny):
    with pytest.raises(AttributeError):
        tiny.patch_size = 5
    assert replace(tiny) == tiny != replace(tiny, patch_size=5)


def test_a_device_can_be_wished_for():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


def test_slow_bilinear_is_what_torch_calls_bilinear():
    maps = draw(1, 2, 3, 5)
    torch.testing.assert_close(slow_bilinear(maps, 7, 4), F.interpolate(maps, (7, 4), mode="bilinear"))


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_pass_of_no_image_is_refused(tiny, wrong):
    with pytest.raises(ValueError, match=f"batch_size must be positive or None, got {wrong}"):
        PatchExtractor(tiny, device="cpu", batch_size=wrong)
