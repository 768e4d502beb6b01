"""RD4AD: loss and map against loops, what the bottleneck lets through, and the detector."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import rcp
from rcp.detectors import KINDS
from rcp.detectors.rd4ad import (
    PAPER,
    PAPER_FEATURES,
    RD4AD,
    FrozenMaps,
    RD4ADOptions,
    ReverseNetwork,
    anomaly_map,
    global_distance,
    position_distance,
    reconstruction_loss,
    resized,
)
from rcp.training import drawn_from

SHAPES = ((4, 5, 7), (6, 3, 4), (8, 2, 2))  # (C, H, W) per level: H != W, odd sizes
FEW = RD4ADOptions(steps=30, batch_size=4)


def maps(seed: int = 0, b: int = 3, shapes=SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(b, *shape, generator=generator) for shape in shapes]


def network(options: RD4ADOptions = RD4ADOptions(), shapes=SHAPES, heads: int = 1) -> ReverseNetwork:
    with drawn_from(torch.Generator().manual_seed(0)):
        return ReverseNetwork([c for c, _, _ in shapes], options, heads)


@pytest.fixture(scope="module")
def three(tiny) -> rcp.FeatureSettings:
    return replace(tiny, levels=(1, 2, 3), patch_size=1)


@pytest.fixture(scope="module")
def fitted(three, category) -> RD4AD:
    """On real weights: what random ones see of a defect, they see of any new image."""
    features = replace(three, backbone="efficientnet_lite0", pretrained=True)
    return RD4AD(features, options=FEW, device="cpu").fit(category.train)


# --- the formulae ---------------------------------------------------------------------------------


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def test_the_global_distance_is_that_of_all_numbers_of_a_map_in_a_loop():
    target, output = maps()[0], maps(1)[0]
    expected = []
    for f, g in zip(target, output, strict=True):
        a = [float(f[c, y, x]) for c in range(4) for y in range(5) for x in range(7)]
        b = [float(g[c, y, x]) for c in range(4) for y in range(5) for x in range(7)]
        expected.append(1 - cosine(a, b))
    torch.testing.assert_close(global_distance(target, output), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def looped_positions(target: Tensor, output: Tensor) -> Tensor:
    b, _, h, w = target.shape
    found = torch.empty(b, h, w)
    for i in range(b):
        for y in range(h):
            for x in range(w):
                found[i, y, x] = 1 - cosine(target[i, :, y, x].tolist(), output[i, :, y, x].tolist())
    return found


def test_the_distance_at_a_position_is_that_of_its_channels_in_a_loop():
    target, output = maps()[0], maps(1)[0]
    torch.testing.assert_close(position_distance(target, output), looped_positions(target, output), atol=1e-5, rtol=1e-5)


def test_the_loss_sums_levels_and_the_global_one_is_not_the_mean_over_positions():
    targets, outputs = maps(), maps(1)
    levels = list(zip(targets, outputs, strict=True))
    whole = sum(float(global_distance(f, g).sum()) / 3 for f, g in levels)
    apart = sum(float(looped_positions(f, g).mean()) for f, g in levels)
    assert float(reconstruction_loss(targets, outputs)) == pytest.approx(whole, abs=1e-5)
    assert float(reconstruction_loss(targets, outputs, global_cosine=False)) == pytest.approx(apart, abs=1e-5)
    assert abs(whole - apart) > 0.01


def test_positions_with_long_features_decide_the_global_distance_and_only_that():
    target, output = maps()[0], maps()[0].clone()
    output[:, :, 0, 0] *= -1  # one position is wrong
    weak, strong = target.clone(), target.clone()
    weak[:, :, 0, 0] *= 0.01
    strong[:, :, 0, 0] *= 100
    assert float(global_distance(weak, output).amax()) < 0.1 < 0.6 < float(global_distance(strong, output).amin())
    torch.testing.assert_close(position_distance(weak, output), position_distance(strong, output), atol=1e-4, rtol=1e-4)


def test_the_map_sums_levels_brought_to_the_first_grid_in_a_loop():
    targets, outputs = maps(), maps(1)
    expected = torch.zeros(3, 5, 7)
    for f, g in zip(targets, outputs, strict=True):
        level = looped_positions(f, g)  # (b, h, w)
        _, h, w = level.shape
        for y in range(5):
            for x in range(7):
                down = min(max((y + 0.5) * h / 5 - 0.5, 0), h - 1)
                across = min(max((x + 0.5) * w / 7 - 0.5, 0), w - 1)
                top, left = int(down), int(across)
                low, right, v, u = min(top + 1, h - 1), min(left + 1, w - 1), down - top, across - left
                upper = level[:, top, left] * (1 - u) + level[:, top, right] * u
                lower = level[:, low, left] * (1 - u) + level[:, low, right] * u
                expected[:, y, x] += upper * (1 - v) + lower * v
    found = anomaly_map(targets, outputs)
    assert found.shape == (3, 5, 7)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [SHAPES, ((4, 19, 26), (6, 10, 13), (8, 5, 7)), ((4, 9, 8), (6, 4, 4), (8, 1, 2))])
def test_the_decoder_gives_maps_of_the_encoders_shapes(shapes):
    given = maps(shapes=shapes)
    found = network(shapes=shapes)(given)
    assert [m.shape for m in found] == [m.shape for m in given]


def test_one_level_or_two_that_are_not_a_factor_of_2_apart_do_as_well():
    for shapes in (((4, 5, 7),), ((4, 12, 16), (6, 3, 4))):
        options = RD4ADOptions(blocks=(1,) * len(shapes))
        assert [m.shape[1:] for m in network(options, shapes)(maps(shapes=shapes))] == [torch.Size(s) for s in shapes]


def test_all_that_the_decoder_knows_of_the_maps_is_one_map_on_a_coarser_grid_than_theirs():
    net, given = network().eval(), maps()
    embedding = net.bottleneck(given)
    assert embedding.shape == (3, 16, 1, 1)  # 2·C_3 channels on half the last level's grid
    assert embedding.numel() < sum(m.numel() for m in given) / 10
    for level in range(3):  # all levels are fused
        changed = [m + (i == level) for i, m in enumerate(given)]
        assert not torch.allclose(net.bottleneck(changed), embedding)
    net.bottleneck.forward = lambda maps: embedding
    for one, other in zip(net(given), net(maps(5)), strict=True):
        assert torch.equal(one, other)


def test_blocks_and_squeeze_change_the_network_as_they_say():
    def count(**options) -> int:
        return sum(p.numel() for p in network(RD4ADOptions(**options)).parameters())

    plain = count()
    assert count(blocks=(2, 1, 1)) > count(blocks=(1, 1, 2)) > plain  # the coarsest first: it is the widest
    assert count(embedding_blocks=2) > plain > count(squeeze=0.1)
    with pytest.raises(ValueError, match="blocks needs a number for each of the 3 levels"):
        network(RD4ADOptions(blocks=(1, 1)))


def test_the_decoder_is_as_wide_as_it_is_told_and_gives_back_the_encoders_widths():
    for widen in (1, 3):
        net = network(RD4ADOptions(widen=widen))
        decoded, given = net.decoded(maps()), net(maps())
        assert [m.shape[1] for m in decoded] == [widen * m.shape[1] for m in maps()]
        assert [m.shape for m in given] == [m.shape for m in maps()]
    with pytest.raises(ValueError, match="widen must be at least 1, got 0"):
        RD4ADOptions(widen=0)


def test_the_papers_network_on_the_papers_backbone_gives_back_its_three_levels():
    with torch.device("meta"):
        net = ReverseNetwork((256, 512, 1024), PAPER)
        given = [torch.empty(1, 256, 64, 64), torch.empty(1, 512, 32, 32), torch.empty(1, 1024, 16, 16)]
        assert net.bottleneck(given).shape == (1, 2048, 8, 8)
        assert [m.shape for m in net(given)] == [m.shape for m in given]
    assert net.bottleneck.embed[0].second[0].weight.shape == (1024, 1024, 3, 3)
    assert [stage[-1].third[0].weight.shape[0] for stage in net.stages] == [1024, 512, 256]  # the encoder's widths
    assert [len(stage) for stage in net.stages] == [3, 4, 6] and len(net.bottleneck.embed) == 3
    assert PAPER_FEATURES.levels == RD4AD.levels == (1, 2, 3) and PAPER_FEATURES.geometry.output_size(300, 400) == (256, 256)


def test_maps_that_fit_are_kept_and_others_computed_anew_to_the_same_training(three, category):
    detector = RD4AD(three, options=replace(FEW, steps=3), device="cpu")
    pixels = detector._pixels(category.train, "raise").values
    bound = rcp.MemoryLimit(max_bytes=1)
    kept, anew = (FrozenMaps(detector.extractor, pixels, limit) for limit in (rcp.MemoryLimit(), bound))
    assert kept.kept is not None and anew.kept is None
    indices = torch.tensor([5, 0, 2])
    for one, other, m in zip(kept[indices], anew[indices], detector.extractor.maps(pixels[indices]), strict=True):
        torch.testing.assert_close(one, m, atol=1e-5, rtol=1e-5)
        assert torch.equal(other, m)


# --- the detector ---------------------------------------------------------------------------------


def test_training_reduces_the_loss_and_painted_defects_score_above_normal_images(fitted, category):
    losses = [record.losses["loss"] for record in fitted.history]
    assert losses[-1] < 0.5 * losses[0]
    result = rcp.evaluate(fitted, category.test, false_alarm_rate=0.5)
    normal, defect = (result.scores.image_scores[torch.tensor(category.test.labels) == label] for label in (0, 1))
    assert float(defect.min()) > 1.5 * float(normal.max())
    assert result.metrics["pixel_auroc"] > 0.95


def test_the_training_compares_with_the_loss_that_was_asked_for(three, category):
    one = RD4AD(three, options=replace(FEW, steps=1), device="cpu").fit(category.train)
    other = RD4AD(three, options=replace(FEW, steps=1, global_cosine=False), device="cpu").fit(category.train)
    assert one.history[0].losses["loss"] != pytest.approx(other.history[0].losses["loss"], rel=1e-3)


def test_the_encoder_stays_frozen(three, category):
    detector = RD4AD(three, options=replace(FEW, steps=2), device="cpu")
    before = {name: tensor.clone() for name, tensor in detector.extractor.model.state_dict().items()}
    detector.fit(category.train)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.extractor.model.state_dict().items())


def test_scores_are_the_map_of_encoder_and_decoder_and_the_largest_value_of_the_smoothed_one(fitted, photos):
    pixels = fitted._pixels(photos, "raise").values
    scores = fitted.score(photos)
    with torch.no_grad():
        targets = fitted.extractor.maps(pixels)
        expected = anomaly_map(targets, fitted.network(targets))
    assert scores.patch_scores.shape == (7, 16, 24) and scores.unit == "summed cosine distance"
    torch.testing.assert_close(scores.patch_scores, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.image_scores, scores.maps.flatten(1).amax(1))
    assert (scores.image_scores < scores.patch_scores.flatten(1).amax(1)).all()


def test_an_image_alone_scores_as_in_company(fitted, photos):
    scores = fitted.score(photos)
    for i in (0, 5):
        alone = fitted.score([photos[i]])
        torch.testing.assert_close(alone.patch_scores[0], scores.patch_scores[i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone.image_scores[0], scores.image_scores[i], atol=1e-4, rtol=1e-4)


def test_the_same_seed_gives_the_same_network_another_seed_another_and_torchs_own_generator_stays(three, category):
    short, state = replace(FEW, steps=2), torch.random.get_rng_state()
    one, again, other = (
        RD4AD(three, options=short, seed=seed, device="cpu").fit(category.train).score(category.test).patch_scores
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_saved_detector_comes_back(fitted, photos, tmp_path):
    folder = fitted.save(tmp_path / "model")
    state = torch.random.get_rng_state()
    loaded = rcp.load(folder, device="cpu")
    assert torch.equal(state, torch.random.get_rng_state())
    assert isinstance(loaded, RD4AD) and loaded.settings() == fitted.settings() and loaded.history == fitted.history
    assert torch.equal(loaded.score(photos).patch_scores, fitted.score(photos).patch_scores)
    assert loaded.threshold(0.5) == fitted.threshold(0.5) and loaded.finished
    assert loaded.state_bytes(8, (64, 96)) == sum(t.numel() * t.element_size() for t in fitted._state().values())


def test_a_saved_network_of_another_shape_than_the_settings_say_is_refused(fitted, tmp_path):
    folder = fitted.save(tmp_path / "model")
    file = rcp.modelfile.read_model(folder)
    rcp.modelfile.write_model(folder, replace(file, tensors=file.tensors | {"network.heads.0.0.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"the tensor 'network.heads.0.0.bias' should be \(24,\)"):
        rcp.load(folder, device="cpu")


def test_images_of_a_size_that_no_stride_divides_do_as_well(three, photos):
    detector = RD4AD(replace(three, crop=(51, 67)), options=replace(FEW, steps=1), device="cpu").fit(photos)
    assert detector.score(photos[:2]).maps.shape == (2, 51, 67)


def test_it_is_known_by_name_and_says_what_is_missing(three):
    assert KINDS["rd4ad"] is RD4AD and rcp.RD4AD is RD4AD and rcp.RD4ADOptions is RD4ADOptions
    with pytest.raises(RuntimeError, match="this RD4AD has no trained network yet"):
        RD4AD(three).score([])


def test_bad_options_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="every part needs a block at least"):
        RD4ADOptions(blocks=(1, 0, 1))
    with pytest.raises(ValueError, match="every part needs a block at least"):
        RD4ADOptions(embedding_blocks=0)
    with pytest.raises(ValueError, match="squeeze must be positive, got 0"):
        RD4ADOptions(squeeze=0)
    assert RD4ADOptions(blocks=[1, 2, 3]).blocks == (1, 2, 3)


def test_resizing_leaves_maps_of_the_size_alone():
    one = maps()[0]
    assert resized(one, None) is one and resized(one, (5, 7)) is one and resized(one, (9, 4)).shape[-2:] == (9, 4)
