"""ReContrast: each of its ingredients, what goes wrong without it, and the detector."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

import rcp
from rcp.detectors import KINDS
from rcp.detectors.rd4ad import RD4AD, anomaly_map, reconstruction_loss
from rcp.detectors.recontrast import (
    PAPER,
    PAPER_FEATURES,
    ReContrast,
    ReContrastOptions,
    hard_positions,
    mined,
    mining_threshold,
    recontrast_loss,
)

ALONE = {"frozen_encoder": False, "contrast": False, "hard_mining": False}  # the trained encoder, by itself
RD = {"second_encoder": False, "contrast": False, "hard_mining": False}  # RD4AD
FEW = ReContrastOptions(steps=20, batch_size=4)


def maps(seed: int, b: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(b, *shape, generator=generator) for shape in ((4, 5, 7), (6, 3, 4), (8, 2, 2))]


@pytest.fixture(scope="module")
def three(tiny) -> rcp.FeatureSettings:
    return replace(tiny, levels=(1, 2, 3), patch_size=1)


@pytest.fixture(scope="module")
def fitted(three, category) -> ReContrast:
    """On real weights: what random ones see of a defect, they see of any new image."""
    features = replace(three, backbone="efficientnet_lite0", pretrained=True)
    return ReContrast(features, options=FEW, device="cpu").fit(category.train)


def untrained(three, photos, **options) -> tuple[ReContrast, Tensor]:
    """A detector with its networks, and decoded images."""
    detector = ReContrast(three, options=replace(FEW, steps=0, held_out=0, **options), device="cpu")
    pixels = detector._pixels(photos, "raise").values
    detector._fit(pixels, torch.Generator().manual_seed(0))
    return detector, pixels


# --- stop-gradient --------------------------------------------------------------------------------


def diversity(detector: ReContrast, pixels: Tensor) -> list[float]:
    """Per level: how much the trained encoder's features, brought to length 1, vary over all positions; at most 1."""
    with torch.no_grad():
        found = detector.network.eval().encoded(detector.extractor.normalised(pixels))
    rows = [F.normalize(m, dim=1).permute(0, 2, 3, 1).flatten(0, 2) for m in found]  # (b·H·W, C)
    return [float((row - row.mean(0)).square().sum(1).mean().sqrt()) for row in rows]


def test_without_stop_gradient_the_trained_encoder_collapses(three, category):
    found = {}
    for stop in (True, False):
        options = ReContrastOptions(steps=25, batch_size=2, encoder_rate=6e-3, hard_mining=False, stop_gradient=stop)
        detector = ReContrast(three, options=options, seed=3, device="cpu").fit(category.train)
        found[stop] = diversity(detector, detector._pixels(category.train, "raise").values)
    ratios = [kept / collapsed for kept, collapsed in zip(found[True], found[False], strict=True)]
    assert min(ratios) > 2 and ratios[-1] > 3, found  # they are 3, 5 and 7


@pytest.mark.parametrize("switches", [{}, {"hard_mining": False}, {"contrast": False}, ALONE])
def test_stop_gradient_takes_all_gradient_from_what_is_given_back(switches):
    for stop in (True, False):
        targets, outputs = ([m.requires_grad_() for m in maps(seed)] for seed in (0, 1))
        recontrast_loss([(targets, outputs)], ReContrastOptions(**switches | {"stop_gradient": stop}), -1.0).backward()
        assert all((f.grad is None) == stop for f in targets)
        assert all(g.grad.abs().amax() > 0 for g in outputs)


# --- hard mining ----------------------------------------------------------------------------------


def test_the_threshold_rises_over_the_first_tenth_and_then_stays():
    assert [mining_threshold(i, 100) for i in (0, 5, 10, 11, 99)] == [-3, -1, 1, 1, 1]
    assert mining_threshold(0, 1) == -3 and mining_threshold(2, 3) == 1
    assert mining_threshold(25, 2000) == pytest.approx(-2.5)


@pytest.mark.parametrize("alpha", [-3.0, 0.0, 1.0])
def test_hard_positions_are_those_at_or_above_mean_and_alpha_deviations_of_the_batch_in_a_loop(alpha):
    target, output = maps(0)[0], maps(1)[0]
    b, _, h, w = target.shape
    places = [(i, y, x) for i in range(b) for y in range(h) for x in range(w)]
    distance = [1 - float(F.cosine_similarity(target[i, :, y, x], output[i, :, y, x], dim=0)) for i, y, x in places]
    mean = sum(distance) / len(distance)
    deviation = (sum((d - mean) ** 2 for d in distance) / (len(distance) - 1)) ** 0.5
    expected = torch.tensor([d >= mean + alpha * deviation for d in distance]).view(b, h, w)
    assert torch.equal(hard_positions(target, output, alpha), expected)
    assert bool(expected.all()) == (alpha == -3)


def gradients(hard_mining: bool, alpha: float = 0.0) -> tuple[list[Tensor], list[Tensor]]:
    """Per level: the gradient of what the decoder made, and which positions are hard."""
    targets, outputs = maps(0), [m.requires_grad_() for m in maps(1)]
    recontrast_loss([(targets, outputs)], ReContrastOptions(hard_mining=hard_mining), alpha).backward()
    return [g.grad for g in outputs], [hard_positions(f, g, alpha) for f, g in zip(targets, outputs, strict=True)]


def test_with_hard_mining_easy_positions_get_no_gradient_and_hard_ones_the_same_as_without():
    with_it, hard = gradients(True)
    without, _ = gradients(False)
    for mining, plain, where in zip(with_it, without, hard, strict=True):
        length = mining.norm(dim=1)  # (b, H, W)
        assert 0.2 < float(where.float().mean()) < 0.8
        assert bool((length[~where] == 0).all()) and bool((plain.norm(dim=1) > 0).all())
        torch.testing.assert_close(mining.permute(0, 2, 3, 1)[where], plain.permute(0, 2, 3, 1)[where])


def test_hard_mining_leaves_the_numbers_and_so_the_loss_as_they_are():
    output, hard = maps(1)[0], torch.rand(3, 5, 7) > 0.5
    assert torch.equal(mined(output, hard), output)
    views = [(maps(0), maps(1))]
    on, off = (recontrast_loss(views, ReContrastOptions(hard_mining=one), 1.0) for one in (True, False))
    assert torch.equal(on, off)


def test_the_training_raises_alpha_with_its_steps(three, category, monkeypatch):
    seen = []

    def spied(views, options, alpha):
        seen.append(alpha)
        return recontrast_loss(views, options, alpha)

    monkeypatch.setattr("rcp.detectors.recontrast.recontrast_loss", spied)
    ReContrast(three, options=replace(FEW, steps=4, batch_size=2), device="cpu").fit(category.train)
    assert seen == [-3, 1, 1, 1]


# --- two views, and global cosine -----------------------------------------------------------------


@pytest.mark.parametrize("contrast", [True, False])
def test_each_view_gives_back_the_other_encoders_features_or_without_contrast_its_own(three, photos, contrast):
    detector, pixels = untrained(three, photos, contrast=contrast)
    net = detector.network
    with torch.no_grad():
        for parameter in net.encoder.parameters():  # at the start both encoders are equal
            parameter *= 1.1
        frozen = detector.extractor.maps(pixels)
        x = detector.extractor.normalised(pixels)
        trained = net.encoded(x)
        views = net(frozen, x)
        seen = [frozen, trained]
        for i, (targets, outputs) in enumerate(views):
            target = 1 - i if contrast else i
            expected = net.reverse.ended(net.reverse.decoded(seen[i]), target)
            for f, g, expected_f, expected_g in zip(targets, outputs, seen[target], expected, strict=True):
                torch.testing.assert_close(f, expected_f)
                torch.testing.assert_close(g, expected_g, atol=1e-4, rtol=1e-4)
    assert len(views) == 2 and not torch.allclose(frozen[2], trained[2], rtol=1e-2)


def test_the_loss_is_the_mean_of_the_views_of_rd4ads_loss():
    views = [(maps(0), maps(1)), (maps(2), maps(3))]
    for whole in (True, False):
        found = recontrast_loss(views, ReContrastOptions(hard_mining=False, global_cosine=whole), 0.0)
        one, other = (reconstruction_loss(f, g, whole) for f, g in views)
        assert float(found) == pytest.approx(float(one + other) / 2, abs=1e-6)
    assert float(recontrast_loss(views, ReContrastOptions(), 0.0)) != pytest.approx(float(found), abs=1e-3)


def test_one_bottleneck_and_decoder_serve_both_views_with_a_last_layer_for_each(three, photos):
    both, alone = (untrained(three, photos, **switches)[0].network for switches in ({}, RD))
    assert len(both.reverse.heads) == 2 and len(alone.reverse.heads) == 1 and alone.encoder is None
    shared = [name for name in alone.reverse.state_dict() if not name.startswith("heads")]
    assert shared == [name for name in both.reverse.state_dict() if not name.startswith("heads")]


# --- what is trained ------------------------------------------------------------------------------


def state(network) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("statistics", [False, True])
def test_the_copy_is_trained_and_the_frozen_encoder_is_not(three, category, statistics):
    options = replace(FEW, steps=2, batch_statistics=statistics)
    detector = ReContrast(three, options=options, device="cpu")
    before = state(detector.extractor.model)
    detector.fit(category.train)
    after, copy = detector.extractor.model.state_dict(), detector.network.encoder.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert not any(parameter.requires_grad for parameter in detector.extractor.model.parameters())
    weights = [name for name, _ in detector.network.encoder.named_parameters()]
    assert all(not torch.equal(copy[name], before[name]) for name in weights)
    moved = [name for name in copy if "running" in name and not torch.equal(copy[name], before[name])]
    assert bool(moved) == statistics


def test_the_encoders_rate_is_its_own(three, category):
    moved = []
    for rate in (1e-5, 1e-3):
        detector = ReContrast(three, options=replace(FEW, steps=1, encoder_rate=rate), device="cpu")
        before = detector.extractor.model.conv1[0].weight.clone()
        detector.fit(category.train)
        moved.append(float((detector.network.encoder.conv1[0].weight.detach() - before).abs().mean()))
        assert detector.history[0].learning_rate == 2e-3
    assert moved[0] == pytest.approx(1e-5, rel=0.1) and moved[1] == pytest.approx(1e-3, rel=0.1)  # Adam's first step


def test_without_its_ingredients_it_is_rd4ad(three, category):
    options = replace(FEW, steps=1, **RD)
    detector = ReContrast(three, options=options, device="cpu").fit(category.train)
    base = RD4AD(three, options=RD4AD.Options(steps=1, batch_size=4), device="cpu").fit(category.train)
    assert detector.history[0].losses["loss"] == pytest.approx(base.history[0].losses["loss"], rel=1e-6)
    assert detector.score(category.test).patch_scores.amax() < 6.5  # three maps, each at most 2


# --- the detector ---------------------------------------------------------------------------------


def test_training_reduces_the_loss_and_painted_defects_score_above_normal_images(fitted, category):
    losses = [record.losses["loss"] for record in fitted.history]
    assert losses[-1] < 0.7 * losses[0]
    result = rcp.evaluate(fitted, category.test, false_alarm_rate=0.5)
    normal, defect = (result.scores.image_scores[torch.tensor(category.test.labels) == label] for label in (0, 1))
    assert float(defect.min()) > 1.2 * float(normal.max())
    assert result.metrics["pixel_auroc"] > 0.95


def test_the_scores_sum_the_maps_of_both_views(fitted, photos):
    pixels = fitted._pixels(photos, "raise").values
    scores = fitted.score(photos)
    with torch.no_grad():
        views = fitted.network(fitted.extractor.maps(pixels), fitted.extractor.normalised(pixels))
        one, other = (anomaly_map(targets, outputs) for targets, outputs in views)
    assert scores.patch_scores.shape == (7, 16, 24)
    torch.testing.assert_close(scores.patch_scores, one + other, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.image_scores, scores.maps.flatten(1).amax(1))


def test_an_image_alone_scores_as_in_company(fitted, photos):
    scores = fitted.score(photos)
    for i in (0, 5):
        alone = fitted.score([photos[i]])
        torch.testing.assert_close(alone.patch_scores[0], scores.patch_scores[i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone.image_scores[0], scores.image_scores[i], atol=1e-4, rtol=1e-4)


def test_one_model_for_two_categories(three, category, tmp_path):
    def negative(paths):
        """A second category: the pictures of the first, inverted."""
        found = [tmp_path / f"{path.parent.name}-{path.name}" for path in paths]
        for path, other in zip(paths, found, strict=True):
            ImageOps.invert(Image.open(path)).save(other)
        return found

    features = replace(three, backbone="efficientnet_lite0", pretrained=True)
    good = [*category.train.paths, *negative(category.train.paths)]
    detector = ReContrast(features, options=replace(FEW, steps=25, learning_rate=5e-3, held_out=0.25), device="cpu").fit(good)
    assert detector.fitted_on["images"] == 16 and len(detector.normal_scores().image_scores) == 4
    labels = torch.tensor(category.test.labels)
    for paths in (category.test.paths, negative(category.test.paths)):
        scores = detector.score(paths).image_scores
        assert float(scores[labels == 1].min()) > 1.2 * float(scores[labels == 0].max())


def test_the_same_seed_gives_the_same_network_another_seed_another_and_torchs_own_generator_stays(three, category):
    short, before = replace(FEW, steps=2), torch.random.get_rng_state()
    one, again, other = (
        ReContrast(three, options=short, seed=seed, device="cpu").fit(category.train).score(category.test).patch_scores
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("switches", [{"batch_statistics": True}, ALONE, RD])
def test_a_saved_detector_comes_back_whatever_it_consists_of(three, category, tmp_path, switches):
    detector = ReContrast(three, options=replace(FEW, steps=1, **switches), device="cpu").fit(category.train)
    loaded = rcp.load(detector.save(tmp_path / "model"), device="cpu")
    assert isinstance(loaded, ReContrast) and loaded.settings() == detector.settings()
    assert torch.equal(loaded.score(category.test).patch_scores, detector.score(category.test).patch_scores)
    size = sum(t.numel() * t.element_size() for t in detector._state().values())
    assert loaded.state_bytes(8, (64, 96)) == size


def test_images_of_a_size_that_no_stride_divides_do_as_well_and_one_image_is_a_batch(three, photos):
    detector = ReContrast(replace(three, crop=(51, 67)), options=replace(FEW, steps=1, batch_size=1), device="cpu").fit(photos)
    assert detector.score(photos[:2]).maps.shape == (2, 51, 67)


def test_it_is_known_by_name_and_the_papers_values_are_those_of_the_paper():
    assert KINDS["recontrast"] is ReContrast and rcp.ReContrast is ReContrast and rcp.ReContrastOptions is ReContrastOptions
    assert (PAPER.steps, PAPER.batch_size, PAPER.learning_rate, PAPER.encoder_rate) == (2000, 16, 2e-3, 1e-5)
    assert PAPER_FEATURES.levels == ReContrast.levels == (1, 2, 3) and ReContrastOptions().smoothing == 4


@pytest.mark.parametrize(("options", "sentence"), [
    ({"encoder_rate": 0}, "encoder_rate must be positive, got 0"),
    ({"second_encoder": False, "frozen_encoder": False}, "there is nothing to give back"),
    ({"second_encoder": False}, "contrast takes both encoders"),
    ({"frozen_encoder": False}, "contrast takes both encoders"),
    (RD | {"stop_gradient": False}, "stop_gradient=False would do nothing"),
    (RD | {"batch_statistics": True}, "batch_statistics=True would do nothing"),
    ({"blocks": ()}, "every part needs a block at least"),
])  # fmt: skip
def test_options_that_cannot_be_or_would_do_nothing_are_refused_in_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ReContrastOptions(**options)
