"""Multiresolution Knowledge Distillation: its loss, gradients and maps against loops and by hand; then the detector."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from scipy.ndimage import gaussian_filter, grey_opening
from torch import nn

import rcp
from rcp.detectors import mkd, mkd_map
from rcp.detectors.mkd import MKD, PAPER, PAPER_FEATURES, Cloner, MKDOptions
from rcp.pixels import load_pixels

SHORT = MKDOptions(steps=40, batch_size=4, width=8, samples=2, sigma=2.0)
SHAPES = ((2, 3, 4, 5), (2, 5, 2, 3))


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers(seed: int) -> list[torch.Tensor]:
    return [gaussian(*shape, seed=seed + i) for i, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def fitted(tiny, category) -> MKD:
    return MKD(tiny_levels(tiny), options=SHORT, device="cpu").fit(category.train)


def tiny_levels(tiny) -> rcp.FeatureSettings:
    return replace(tiny, levels=(1, 2, 3), patch_size=1)


def other(fitted: MKD, **options) -> MKD:
    """The same networks, scored with other options."""
    twin = MKD(fitted.features, options=replace(fitted.options, **options), seed=fitted.seed, device="cpu")
    twin.extractor, twin.cloner, twin.direction_weight = fitted.extractor, fitted.cloner, fitted.direction_weight
    return twin


# --- the loss -------------------------------------------------------------------------------------


def test_both_terms_and_their_sum_equal_loops_over_neurons():
    source, cloned = layers(0), layers(10)
    found = [mkd.value_distance(source, cloned), mkd.direction_distance(source, cloned), mkd.distillation_loss(source, cloned, 0.3)]
    for b in range(2):
        value = direction = 0.0
        for s, c in zip(source, cloned, strict=True):
            one, two = s[b].flatten().tolist(), c[b].flatten().tolist()
            value += sum((x - y) ** 2 for x, y in zip(one, two, strict=True)) / len(one)
            dot = sum(x * y for x, y in zip(one, two, strict=True))
            direction += 1 - dot / math.sqrt(sum(x * x for x in one) * sum(y * y for y in two))
        for tensor, expected in zip(found, (value, direction, value + 0.3 * direction), strict=True):
            assert float(tensor[b]) == pytest.approx(expected, rel=1e-5)


def test_the_direction_term_sees_what_the_value_term_cannot_tell_apart():
    """Two errors of equal length from the same activations: along them, and across."""
    source, along, across = (torch.tensor(v).view(1, 2, 1, 1) for v in ([1.0, 0.0], [1.1, 0.0], [1.0, 0.1]))
    assert float(mkd.value_distance([source], [along])) == pytest.approx(float(mkd.value_distance([source], [across])))
    assert float(mkd.direction_distance([source], [along])) == pytest.approx(0, abs=1e-6)
    losses = [float(mkd.distillation_loss([source], [one], 10.0)) for one in (along, across)]
    assert losses[1] > 5 * losses[0]
    assert float(mkd.distillation_loss([source], [across], 0.0)) == pytest.approx(losses[0], rel=1e-3)


def test_the_value_term_sees_a_scaled_map_which_the_direction_term_misses():
    source = layers(0)
    scaled = [2 * s for s in source]
    assert mkd.direction_distance(source, scaled).abs().max() < 1e-5
    assert (mkd.distillation_loss(source, scaled, 1.0) > 1).all()


# --- gradients ------------------------------------------------------------------------------------


def test_only_the_pixels_that_the_loss_depends_on_are_to_blame():
    """A loss of a 9x9 region, blurred by a convolution: its gradient lies there, and beside it not further than the filter."""
    net = nn.Conv2d(3, 2, 3, padding=1).requires_grad_(False)
    wanted = net(torch.zeros(1, 3, 24, 40))

    def loss_of(x):
        return mkd.value_distance([wanted.expand(len(x), -1, -1, -1)], [net(x)])

    x = torch.zeros(2, 3, 24, 40)
    x[1, :, 5:14, 20:29] = gaussian(3, 9, 9)
    loss, gradient = mkd.input_gradient(loss_of, x)
    assert loss.tolist() == [0, pytest.approx(float(loss_of(x)[1]))] and not loss.requires_grad
    assert not gradient[0].any() and gradient[1, :, 6:13, 21:28].any()
    outside = gradient[1].clone()
    outside[:, 3:16, 18:31] = 0
    assert not outside.any()
    (x64, step), (b, c, i, j) = (x.double(), 1e-5), (1, 2, 8, 25)
    net.double(), (wanted := wanted.double())
    up, down = x64.clone(), x64.clone()
    up[b, c, i, j] += step
    down[b, c, i, j] -= step
    assert float((loss_of(up) - loss_of(down))[b] / (2 * step)) == pytest.approx(float(gradient[b, c, i, j]), rel=1e-3)
    maps = mkd.saliency(gradient, 2.0, 3)
    top = divmod(int(maps[1].argmax()), 40)
    assert 5 <= top[0] < 14 and 20 <= top[1] < 29 and not maps[0].any()


def test_smoothgrad_is_the_mean_gradient_over_its_noisy_copies():
    def loss_of(x):
        return x.relu().square().sum((1, 2, 3))  # bent at 0: the mean over noise is another gradient than the plain one

    x, noise = gaussian(2, 3, 4, 6), gaussian(5, 3, 4, 6, seed=1)
    found = mkd.smooth_gradient(loss_of, x, noise, 0.2)
    for b in range(2):
        spread = 0.2 * float(x[b].max() - x[b].min())
        expected = sum(2 * (x[b] + spread * sample).relu() for sample in noise) / 5
        torch.testing.assert_close(found[b], expected)
    plain = mkd.input_gradient(loss_of, x)[1]
    assert float((found - plain).abs().max()) > 0.1
    torch.testing.assert_close(mkd.smooth_gradient(loss_of, x, noise, 0.0), plain)


@pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.LeakyReLU(0.5)])
def test_guided_backpropagation_cuts_what_comes_from_above_with_a_minus(rectifier):
    """x → 1x1 convolution → rectifier → two weighted sums, by hand: 3·r(x) counts, -2·r(x) does not."""
    first, second = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
    first.weight.data = torch.tensor([1.0, 1.0]).view(2, 1, 1, 1)
    second.weight.data = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1)
    net = nn.Sequential(first, rectifier, second)
    x = torch.tensor([[2.0, -1.0]]).view(1, 1, 1, 2)

    def gradient():
        return mkd.input_gradient(lambda x: net(x).sum((1, 2, 3)), x)[1].flatten().tolist()

    below = 0.5 if isinstance(rectifier, nn.LeakyReLU) else 0.0
    assert gradient() == [1, below]
    with mkd.guided(net):
        assert gradient() == [3, 3 * below]
    assert gradient() == [1, below]  # the hooks are gone


def test_guided_backpropagation_is_refused_where_it_is_not_defined(tiny, photos, monkeypatch):
    with pytest.raises(ValueError, match="guided backpropagation needs ReLUs, the backbone has GELU, SiLU: take gradient"):
        mkd.check_guidable(nn.Sequential(nn.SiLU(), nn.ReLU(), nn.GELU()))
    features = replace(tiny, backbone="test_efficientnet", levels=(1, 2), patch_size=1)  # SiLU
    monkeypatch.setattr(mkd, "train", lambda *args, **kwargs: pytest.fail("it was refused behind the training only"))
    with pytest.raises(ValueError, match="the backbone has SiLU"):
        MKD(features, options=replace(SHORT, gradient="guided"), device="cpu").fit(photos)


def test_the_opening_takes_a_single_pixel_away_and_keeps_a_block():
    maps = torch.zeros(2, 20, 30)
    maps[:, 4, 5] = 9
    maps[:, 10:17, 12:19] = 2
    expected = maps.clone()
    expected[:, 4, 5] = 0
    assert torch.equal(mkd_map.opened(maps, 3), expected) and torch.equal(mkd_map.opened(maps, 1), maps)
    assert not mkd_map.opened(maps, 9).any()


@pytest.mark.parametrize("side", [3, 5])
def test_the_opening_equals_scipys_and_commutes_with_thresholds(side):
    maps = gaussian(2, 17, 23)
    found = mkd_map.opened(maps, side)
    for one, other in zip(maps, found, strict=True):
        np.testing.assert_array_equal(other[4:-4, 4:-4], grey_opening(one.numpy(), (side, side))[4:-4, 4:-4])
    assert torch.equal(mkd_map.opened((maps > -1).float(), side), (found > -1).float()) and (found <= maps).all()


def test_the_map_is_the_absolute_gradient_of_all_colours_blurred_then_opened():
    gradient = gaussian(2, 3, 20, 31)
    found = mkd.saliency(gradient, 1.5, 3)
    for b in range(2):
        blurred = gaussian_filter(gradient[b].abs().sum(0).numpy(), 1.5, mode="reflect", truncate=4.0)
        expected = mkd_map.opened(torch.from_numpy(blurred)[None], 3)[0]
        torch.testing.assert_close(found[b], expected, atol=1e-5, rtol=1e-4)


# --- the networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "levels", "size"), [
    ("test_resnet", (1, 2, 3, 4), (64, 96)), ("test_resnet", (1, 3), (71, 93)), ("test_vit", (1, 2), (160, 160)),
])  # fmt: skip
def test_the_cloner_has_the_sources_shapes_also_for_odd_sizes(tiny, backbone, levels, size):
    features = replace(tiny, backbone=backbone, levels=levels, patch_size=1)
    detector = MKD(features, options=SHORT, device="cpu")
    maps = detector.extractor.maps(torch.zeros(1, 3, *size, dtype=torch.uint8))
    cloner = detector._new_cloner(torch.Generator())
    cloned = cloner(torch.zeros(1, 3, *size), [m.shape[-2:] for m in maps])
    assert [m.shape for m in cloned] == [m.shape for m in maps]


def test_the_cloner_follows_a_source_that_rounds_odd_sizes_down():
    cloned = Cloner((4, 6), (4, 16), 3)(torch.zeros(2, 3, 71, 93), [(17, 23), (4, 5)])
    assert [tuple(m.shape) for m in cloned] == [(2, 4, 17, 23), (2, 6, 4, 5)]


def test_critical_layers_are_linear_and_rectified_on_the_way_on():
    cloner, entered = Cloner((4, 6), (4, 16), 3), []
    cloner.stages[1].register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    with torch.no_grad():
        first, last = cloner(gaussian(2, 3, 32, 48), [(8, 12), (2, 3)])
    assert float(first.min()) < 0 and float(last.min()) < 0 and torch.equal(entered[0], first.clamp_min(0))


def test_every_stage_halves_as_often_as_the_stride_asks_so_that_nothing_is_stretched():
    x, grids = torch.zeros(1, 3, 70, 90), []
    cloner = Cloner((4, 5, 6), (4, 8, 32), 3)
    for stage, critical in zip(cloner.stages, cloner.critical, strict=True):
        x = critical(stage(x))
        grids.append(tuple(x.shape[1:]))
    assert grids == [(4, 18, 23), (5, 9, 12), (6, 3, 3)]
    assert all(block[0].out_channels == 3 for stage in cloner.stages for block in stage)


def test_the_papers_cloner_is_a_fraternal_twin_of_two_per_cent():
    with torch.device("meta"):  # shapes are enough
        vgg = timm.create_model("vgg16", features_only=True, out_indices=[2, 3, 4, 5])
        channels, strides = vgg.feature_info.channels(), vgg.feature_info.reduction()
        assert strides == [2 ** (level + 1) for level in PAPER_FEATURES.levels] and channels == [256, 512, 512, 512]
        cloner = Cloner(channels, strides, PAPER.width)
    share = sum(p.numel() for p in cloner.parameters()) / sum(p.numel() for p in vgg.parameters())
    assert 0.02 < share < 0.04


# --- the detector ---------------------------------------------------------------------------------


def test_training_lowers_both_terms_and_what_it_left_is_told(fitted):
    first, last = fitted.history[0].losses, fitted.history[-1].losses
    assert last["loss"] < 0.7 * first["loss"] and last["value"] < first["value"] and last["direction"] < first["direction"]
    assert last["loss"] == pytest.approx(last["value"] + fitted.direction_weight * last["direction"], rel=1e-3)
    assert fitted.fitted_on["steps"] == 40 and fitted.finished
    assert 0 < fitted.fitted_on["parameter_share"] < 0.3 and fitted.fitted_on["direction_weight"] == fitted.direction_weight > 0
    calibration = sum(t.nbytes for t in fitted.calibration.tensors().values())
    assert fitted.nbytes() - calibration - 8 == fitted.state_bytes(8, (64, 96))


def test_a_training_step_compares_every_image_with_its_own_source_maps(fitted, category, monkeypatch):
    pixels, twin, some = load_pixels(category.train, fitted.features.geometry).values, other(fitted), torch.tensor([5, 0, 3])
    found = []

    def once(step, model, optimizer, **rest):
        found.append(step(some, 0))  # the balance left the cloner in evaluation mode
        return []

    monkeypatch.setattr(mkd, "train", once)
    twin._learn(pixels, pixels[:0], torch.Generator().manual_seed(0))
    source = twin.extractor.maps(pixels[some])
    cloned = twin.cloner(twin.extractor.normalised(pixels[some]), [m.shape[-2:] for m in source])
    torch.testing.assert_close(found[0]["loss"], mkd.distillation_loss(source, cloned, twin.direction_weight).mean())


def test_a_painted_defect_scores_above_the_normals_and_lights_up(fitted, category):
    result = rcp.evaluate(fitted, category.test)
    assert result.metrics["image_auroc"] == 1 and result.metrics["pixel_auroc"] > 0.85
    assert result.scores.patch_scores.shape == (7, 64, 96)
    torch.testing.assert_close(result.scores.maps, result.scores.patch_scores)  # they come finished


def test_an_image_scores_its_loss_and_its_map_is_the_losss_gradient(fitted, category):
    pixels = load_pixels(category.test, fitted.features.geometry).values[:3]
    image, maps = fitted._score(pixels)
    source = fitted.extractor.maps(pixels)
    x = fitted.extractor.normalised(pixels).requires_grad_()
    cloned = fitted.cloner(x, [m.shape[-2:] for m in source])
    torch.testing.assert_close(image, mkd.distillation_loss(source, cloned, fitted.direction_weight))
    live = fitted.extractor.model(x)  # the gradient goes through the source, too
    (gradient,) = torch.autograd.grad(mkd.distillation_loss(live, cloned, fitted.direction_weight).sum(), x)
    torch.testing.assert_close(maps, mkd.saliency(gradient, 2.0, 3), rtol=1e-3, atol=1e-6 * float(maps.max()))


def test_the_terms_are_balanced_on_the_untrained_cloner_unless_a_weight_is_given(fitted, category):
    pixels = load_pixels(category.train, fitted.features.geometry).values[:4]
    source, cloner = fitted.extractor.maps(pixels), fitted._new_cloner(torch.Generator().manual_seed(3))
    weight = fitted._balance(cloner, pixels, source)
    assert not cloner.stages[0][0][1].running_mean.any()  # nothing is learned from it yet
    with torch.no_grad():
        cloned = cloner.eval()(fitted.extractor.normalised(pixels), [m.shape[-2:] for m in source])
    value, direction = mkd.value_distance(source, cloned).mean(), mkd.direction_distance(source, cloned).mean()
    assert weight * float(direction) == pytest.approx(float(value), rel=1e-5)
    assert other(fitted, direction_weight=0.5)._balance(cloner, pixels, source) == 0.5


@pytest.mark.parametrize("gradient", mkd.GRADIENTS)
def test_an_image_alone_scores_as_in_company_and_the_same_every_time(fitted, category, gradient):
    detector = other(fitted, gradient=gradient)
    images = category.test.paths
    whole = detector.score(images)
    assert torch.equal(detector.score(images).patch_scores, whole.patch_scores)
    for i in (0, 6):
        alone = detector.score([images[i]])
        torch.testing.assert_close(alone.image_scores[0], whole.image_scores[i], rtol=1e-4, atol=0)
        torch.testing.assert_close(alone.patch_scores[0], whole.patch_scores[i], rtol=1e-2, atol=1e-3 * float(whole.patch_scores[i].max()))


def test_every_option_of_the_map_has_an_effect_and_none_on_the_score(fitted, category):
    images, maps = category.test.paths[-2:], []
    for options in ({}, {"gradient": "smoothgrad"}, {"gradient": "smoothgrad", "samples": 3}, {"gradient": "smoothgrad", "noise": 0.2},
                    {"gradient": "guided"}, {"sigma": 0.0}, {"opening": 9}):  # fmt: skip
        scores = other(fitted, **options).score(images)
        torch.testing.assert_close(scores.image_scores, fitted.score(images).image_scores)
        maps.append(scores.patch_scores)
    for i, one in enumerate(maps):
        assert all(not torch.allclose(one, two, rtol=1e-2, atol=0) for two in maps[i + 1 :])
    assert not torch.equal(other(fitted, smoothing=3.0).score(images).maps, maps[0])


def test_guided_cuts_in_both_networks(fitted, category, monkeypatch):
    seen = []
    original = mkd.guided
    monkeypatch.setattr(mkd, "guided", lambda *networks: seen.extend(networks) or original(*networks))
    other(fitted, gradient="guided").score(category.test.paths[:1])
    assert seen == [fitted.extractor.model, fitted.cloner]


def test_the_same_seed_gives_the_same_and_another_another_and_torchs_own_generator_rests(tiny, fitted, category):
    state = torch.random.get_rng_state()
    options = replace(SHORT, steps=6, gradient="smoothgrad")
    first, again, later = (MKD(tiny_levels(tiny), options=options, seed=s, device="cpu").fit(category.train) for s in (0, 0, 1))
    scores = [one.score(category.test.paths[:2]) for one in (first, again, later)]
    assert torch.equal(scores[0].patch_scores, scores[1].patch_scores)
    assert not torch.equal(scores[0].image_scores, scores[2].image_scores)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_saved_detector_comes_back_to_the_bit(fitted, category, tmp_path):
    folder = fitted.save(tmp_path / "model")
    loaded = rcp.load(folder, device="cpu")
    assert isinstance(loaded, MKD) and loaded.settings() == fitted.settings() and loaded.history == fitted.history
    assert loaded.direction_weight == fitted.direction_weight
    scores, expected = loaded.score(category.test), fitted.score(category.test)
    assert torch.equal(scores.image_scores, expected.image_scores) and torch.equal(scores.patch_scores, expected.patch_scores)
    file = rcp.modelfile.read_model(folder)
    rcp.modelfile.write_model(folder, replace(file, tensors=file.tensors | {"cloner.critical.0.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match="the tensor 'cloner.critical.0.bias' should be"):
        rcp.load(folder, device="cpu")


def test_a_killed_training_goes_on_to_the_same_weights(tiny, category, tmp_path):
    file, options = tmp_path / "training.safetensors", replace(SHORT, steps=10)

    def stop(record):
        if record.step == 4:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        MKD(tiny_levels(tiny), options=options, device="cpu").fit(category.train, callbacks=[stop], checkpoint=file)
    resumed = MKD(tiny_levels(tiny), options=options, device="cpu").fit(category.train, checkpoint=file)
    whole = MKD(tiny_levels(tiny), options=options, device="cpu").fit(category.train)
    for name, tensor in whole.cloner.state_dict().items():
        assert torch.equal(tensor, resumed.cloner.state_dict()[name])
    assert torch.equal(whole.score(category.test).image_scores, resumed.score(category.test).image_scores)


def test_source_maps_in_a_mapped_file_serve_as_well(fitted, category, tmp_path, monkeypatch):
    pixels, mapped = load_pixels(category.train, fitted.features.geometry).values, other(fitted)
    mapped.limit = rcp.MemoryLimit(max_bytes=1, folder=tmp_path)
    monkeypatch.setattr(rcp.MemoryLimit, "fits", lambda self, count: self.max_bytes is None)
    found, expected = mapped._source_maps(pixels.repeat(2, 1, 1, 1)), fitted._source_maps(pixels)
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two.repeat(2, 1, 1, 1))


def test_a_backbone_in_bfloat16_gives_gradients_too(fitted, category):
    twin = other(fitted)
    half = replace(fitted.features, precision="bfloat16")
    twin.features, twin.extractor = half, rcp.PatchExtractor(half, device="cpu")
    scores, expected = twin.score(category.test.paths[-2:]), fitted.score(category.test.paths[-2:])
    torch.testing.assert_close(scores.image_scores, expected.image_scores, rtol=0.1, atol=0)
    assert scores.patch_scores.isfinite().all() and (scores.patch_scores.amax((1, 2)) > 0).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 0}, "width and samples must be at least 1"),
        ({"samples": 0}, "width and samples must be at least 1"),
        ({"direction_weight": -1.0}, "direction_weight must not be negative"),
        ({"gradient": "none"}, "gradient must be one of plain, smoothgrad, guided, got 'none'"),
        ({"noise": -0.1}, "noise and sigma must not be negative"),
        ({"sigma": -0.1}, "noise and sigma must not be negative"),
        ({"opening": 2}, "opening must be odd and positive, got 2; 1 is none"),
        ({"opening": 0}, "opening must be odd and positive"),
        ({"steps": -1}, "steps must not be negative"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MKDOptions(**wrong)


def test_before_fit_it_says_what_is_missing(tiny, category):
    with pytest.raises(RuntimeError, match="this MKD has no trained network yet"):
        MKD(tiny_levels(tiny), device="cpu").score(category.test)
