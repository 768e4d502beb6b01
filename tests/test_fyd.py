"""Focus Your Distribution: movements and their inverses, the losses by loops, what alignment and the stop-gradient are for."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import rcp
from rcp.detectors import fyd, fyd_network
from rcp.detectors.fyd import FocusYourDistribution, FocusYourDistributionOptions, dense_loss
from rcp.detectors.fyd_align import (
    after,
    brought_back,
    congealed,
    in_disc,
    inverse,
    moved,
    pairwise_l2,
    seen,
    similarity,
    turn_distances,
    turns,
    unit,
)
from rcp.detectors.fyd_network import Focused, Localisation, predict, project
from rcp.detectors.padim import PaDiM, PaDiMOptions
from rcp.features import PatchExtractor
from rcp.pixels import load_pixels

SIZE = (48, 80)  # H != W
SMALL = FocusYourDistributionOptions(steps=4, batch_size=3, coarse_steps=4, angles=4, dimension=12)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def features(tiny):
    return replace(tiny, levels=(1, 2, 3), patch_size=1)


@pytest.fixture(scope="module")
def pixels(features, photos):
    return load_pixels(photos, features.geometry)


def detector(features, options=SMALL, **more):
    return FocusYourDistribution(features, options=options, device="cpu", **more)


@pytest.fixture(scope="module")
def fitted(features, pixels):
    return detector(features).fit(pixels)


# --- movements ------------------------------------------------------------------------------------


def spot(row, column, size=SIZE):
    """A blurred point of light: (1, 1, h, w)."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 8.0)[None, None]


def place(picture):
    """(row, column) of the brightest pixel."""
    return tuple(int(i) for i in np.unravel_index(int(picture.argmax()), picture.shape[-2:]))


PARAMETERS = torch.tensor([[0.4, 0.1, -0.2, 0.1], [-1.3, -0.1, 0.05, -0.2], [math.pi / 2, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_a_turn_is_one_in_pixels_also_where_the_sides_differ(parameters):
    angle, across, down, scale = parameters.tolist()
    at = (28, 45)  # in the moved picture, (row, column)
    x, y = at[1] - (SIZE[1] - 1) / 2, at[0] - (SIZE[0] - 1) / 2  # from the centre, in pixels
    c, s = math.exp(scale) * math.cos(angle), math.exp(scale) * math.sin(angle)
    from_x, from_y = c * x - s * y + across * SIZE[1] / 2, s * x + c * y + down * SIZE[0] / 2
    source = (round(from_y + (SIZE[0] - 1) / 2), round(from_x + (SIZE[1] - 1) / 2))
    found = place(moved(spot(*source), similarity(parameters[None], SIZE)))
    assert abs(found[0] - at[0]) <= 1 and abs(found[1] - at[1]) <= 1


def test_one_movement_after_another_and_back_again():
    first, then = similarity(PARAMETERS, SIZE), similarity(PARAMETERS.flip(0) / 2, SIZE)
    corner = torch.tensor([0.3, -0.4])
    apply = lambda m, x: m[:, :, :2] @ x + m[:, :, 2]  # noqa: E731
    for i in range(3):
        one = slice(i, i + 1)
        # The second picture takes its value from the first, and that from the original.
        torch.testing.assert_close(apply(after(first, then)[one], corner), apply(first[one], apply(then[one], corner)[0]))
    torch.testing.assert_close(after(first, inverse(first)), torch.eye(2, 3).expand(3, 2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(after(inverse(first), first), torch.eye(2, 3).expand(3, 2, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_a_hot_spot_in_the_moved_picture_is_brought_back_to_its_place(parameters):
    original, movement = spot(17, 52), similarity(parameters[None], SIZE)
    shown = moved(original, movement)
    assert place(shown) != (17, 52) and max(abs(a - b) for a, b in zip(place(shown), (17, 52), strict=True)) >= 4
    back = place(brought_back(shown[:, 0], movement))
    assert max(abs(a - b) for a, b in zip(back, (17, 52), strict=True)) <= 1


def test_what_the_moved_picture_did_not_show_takes_the_nearest_number():
    right = similarity(torch.tensor([[0.0, 0.5, 0.0, 0.0]]), SIZE)  # shows the right three quarters, and what is not there
    columns = 5 + torch.arange(80.0).expand(1, *SIZE)
    back = brought_back(columns, right)
    torch.testing.assert_close(back[0, :, :20], torch.full((48, 20), 5.0))  # not shown: the first column's
    torch.testing.assert_close(back[0, :, 20:], columns[0, :, :60], atol=1e-3, rtol=0)
    assert torch.equal(seen(right, SIZE)[0, 0], (torch.arange(80) < 60).float())


def test_a_localisation_moves_nothing_at_first_and_never_more_than_its_limits():
    net, maps = Localisation(5, [0.3, 0.1, 0.2, 0.05]), gaussian(4, 5, 6, 10)
    assert torch.equal(net(maps, SIZE), similarity(torch.zeros(4, 4), SIZE))
    torch.testing.assert_close(net(maps, SIZE), torch.eye(2, 3).expand(4, 2, 3), rtol=0, atol=0)
    nn.init.constant_(net.last.bias, 100.0)
    torch.testing.assert_close(net(maps, SIZE), similarity(torch.tensor([[0.3, 0.1, 0.2, 0.05]]), SIZE).expand(4, 2, 3))


def test_gradient_reaches_the_movement_through_the_picture():
    parameters = torch.zeros(1, 4, requires_grad=True)
    (moved(spot(20, 40), similarity(parameters, SIZE)) - spot(23, 40)).square().sum().backward()
    assert parameters.grad[0, 2] > 0 and abs(float(parameters.grad[0, 1])) < 0.1 * float(parameters.grad[0, 2])  # down, not across


# --- losses ---------------------------------------------------------------------------------------


def weights(b, h, w):
    return (torch.rand(b, h, w, generator=torch.Generator().manual_seed(3)) > 0.3).float()


def test_pairwise_l2_equals_a_loop_over_pairs_and_positions():
    maps, w = gaussian(4, 5, 3, 6), weights(4, 3, 6)
    pairs = []
    for i in range(4):
        for j in range(4):
            if i != j:
                total = count = 0.0
                for y in range(3):
                    for x in range(6):
                        both = float(w[i, y, x] * w[j, y, x])
                        total += both * float((maps[i, :, y, x] - maps[j, :, y, x]).square().sum())
                        count += both
                pairs.append(total / count)
    assert float(pairwise_l2(maps, w)) == pytest.approx(sum(pairs) / 12, rel=1e-5)


def test_features_are_compared_at_length_one():
    maps = 7 * gaussian(2, 5, 3, 6)
    (found,) = unit([maps])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2, 3, 6))
    torch.testing.assert_close(F.cosine_similarity(found, maps), torch.ones(2, 3, 6))


def test_the_dense_loss_equals_a_loop_over_pairs_and_positions():
    p, z, w = gaussian(4, 5, 3, 6), gaussian(4, 5, 3, 6, seed=1), weights(4, 3, 6)
    total = count = 0.0
    for i in range(4):
        for j in range(4):
            for y in range(3):
                for x in range(6):
                    if i != j and w[i, y, x] and w[j, y, x]:
                        total -= float(F.cosine_similarity(p[i, :, y, x], z[j, :, y, x], dim=0))
                        count += 1
    assert float(dense_loss(p, z, w)) == pytest.approx(total / count, rel=1e-5)
    assert float(dense_loss(z[:1].expand(3, -1, -1, -1), 2 * z[:1].expand(3, -1, -1, -1), w[:3])) == pytest.approx(-1)


def test_no_gradient_flows_into_the_other_pictures_side():
    p, z = gaussian(3, 4, 2, 5).requires_grad_(), gaussian(3, 4, 2, 5, seed=1).requires_grad_()
    dense_loss(p, z, torch.ones(3, 2, 5)).backward()
    assert z.grad is None and float(p.grad.abs().min()) > 0


def spread_after_training(steps=150):
    """Standard deviation, over pictures and positions, of projected features that the dense loss has trained; 1 is the most."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pictures = torch.randn(1, 8, 5, 7) + 0.5 * torch.randn(6, 8, 5, 7)
        net, g, h = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1)), project(16), predict(16)
    optimizer = torch.optim.Adam([*net.parameters(), *g.parameters(), *h.parameters()], lr=0.01)
    for _ in range(steps):
        z = g(net(pictures))
        optimizer.zero_grad()
        dense_loss(h(z), z, torch.ones(6, 5, 7)).backward()
        optimizer.step()
    return float(F.normalize(g(net(pictures)).detach(), dim=1).var((0, 2, 3)).sum().sqrt())


def test_features_become_one_without_the_stop_gradient_and_only_then(monkeypatch):
    assert spread_after_training() > 0.6
    monkeypatch.setattr(fyd, "stopped", lambda target: target)
    assert spread_after_training() < 0.2


# --- coarse turns ---------------------------------------------------------------------------------


def test_turns_divide_the_circle_and_the_disc_is_what_all_of_them_show():
    every = turns(8, SIZE)
    assert torch.equal(every[0], torch.eye(2, 3)) and every.shape == (8, 2, 3)
    torch.testing.assert_close(after(every[3:4], every[5:6]), torch.eye(2, 3)[None], atol=1e-6, rtol=0)
    disc = in_disc(SIZE)
    assert disc.shape == SIZE and float(disc.sum()) == pytest.approx(math.pi * 24**2, rel=0.02)
    assert seen(every, SIZE)[:, disc].all() and not seen(every, SIZE).bool().all()


def test_distances_to_the_reference_equal_a_loop():
    maps, reference = [gaussian(3, 4, 5, 6), gaussian(3, 2, 3, 4, seed=1)], [gaussian(4, 5, 6, seed=2), gaussian(2, 3, 4, seed=3)]
    for i, found in enumerate(turn_distances(maps, reference)):
        levels = []
        for m, r in zip(maps, reference, strict=True):
            h, w = r.shape[1:]
            inside = [(y, x) for y in range(h) for x in range(w) if math.hypot(y - (h - 1) / 2, x - (w - 1) / 2) <= min(h, w) / 2]
            levels.append(np.mean([float((m[i, :, y, x] - r[:, y, x]).square().sum()) for y, x in inside]))
        assert float(found) == pytest.approx(np.mean(levels), rel=1e-5)


def test_congealing_finds_the_turns_of_a_toy_and_their_mean():
    own, poses = gaussian(6, 9, 9), [0, 3, 1, 2, 2]
    pictures = [(own + 0.3 * gaussian(6, 9, 9, seed=i + 1)).rot90(-pose, (1, 2)) for i, pose in enumerate(poses)]
    maps = torch.stack([torch.stack([picture.rot90(k, (1, 2)) for k in range(4)]) for picture in pictures])  # (5, 4, 6, 9, 9)
    reference = congealed([maps])
    torch.testing.assert_close(reference[0], torch.stack([maps[i, pose] for i, pose in enumerate(poses)]).mean(0))
    assert [int(turn_distances([m], reference).argmin()) for m in maps] == poses


# --- what alignment is for ------------------------------------------------------------------------


def painted(angles, seed, defect=False, size=(64, 96)):
    """Pictures of a bar with a head, turned: (n, 3, h, w) uint8; a defect is a notch at one place of the bar."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(size)
    pictures = []
    for angle in angles:
        c, s = math.cos(angle), math.sin(angle)
        across, down = x - size[1] / 2 + 0.5, y - size[0] / 2 + 0.5
        u, v = c * across + s * down, -s * across + c * down
        picture = np.full((*size, 3), 60.0) + rng.normal(0, 4, (*size, 1))
        picture[(abs(u) < 24) & (abs(v) < 7)] = (190, 150, 90)
        picture[(abs(u - 20) < 6) & (abs(v) < 14)] = (90, 170, 200)
        picture[np.hypot(u + 8, v) < 3] = (30, 30, 30)
        if defect:
            picture[(abs(u + 20) < 3) & (abs(v - 6) < 4)] = 60
        pictures.append(Image.fromarray((picture + rng.normal(0, 3, picture.shape)).clip(0, 255).astype(np.uint8)))
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures])


def prepared(values, features):
    sizes = [tuple(values.shape[2:])] * len(values)
    return rcp.pixels.Pixels(values, [f"{i}.png" for i in range(len(values))], list(range(len(values))), sizes, [], features.geometry)


ALIGNED = FocusYourDistributionOptions(
    alignment="image", contrast=False, held_out=0.0, dimension=30, angles=1, shrink=1, rotation=30.0, coarse_steps=25, learning_rate=3e-3
)


@pytest.fixture(scope="module")
def bars(features):
    return prepared(painted(np.deg2rad(np.random.default_rng(0).uniform(-25, 25, 16)), 1), features)


@pytest.fixture(scope="module")
def aligned(features, bars):
    return detector(features, ALIGNED).fit(bars)


def disagreement(extractor, pictures, movement):
    maps = unit(extractor.maps(moved(pictures.float(), movement)))[0]
    return float(pairwise_l2(maps, torch.ones(len(maps), *maps.shape[2:])))


def test_a_transformer_learns_to_turn_pictures_that_it_has_not_seen(aligned):
    fresh, still = painted(np.deg2rad(np.random.default_rng(3).uniform(-25, 25, 12)), 4), torch.eye(2, 3).expand(12, -1, -1)
    before, after_it = (disagreement(aligned.extractor, fresh, movement) for movement in (still, aligned.aligner(fresh)))
    assert after_it < 0.5 * before
    assert aligned.history[-1].losses["pairwise_l2"] < 0.7 * aligned.history[0].losses["pairwise_l2"]


def test_alignment_finds_a_notch_that_turning_hides(features, bars, aligned):
    angles = np.deg2rad(np.random.default_rng(5).uniform(-25, 25, 24))
    test = prepared(torch.cat([painted(angles[:12], 6), painted(angles[12:], 7, defect=True)]), features)
    plain = detector(features, replace(ALIGNED, alignment="none")).fit(bars)
    scores = [one.score(test).image_scores.numpy() for one in (plain, aligned)]
    without, with_it = (rcp.metrics.image_metrics(np.repeat([0, 1], 12), s)["image_auroc"] for s in scores)
    assert with_it > 0.9 and with_it > without + 0.15


def test_coarse_turns_bring_pictures_together_that_lie_at_any_angle(features, bars):
    pictures = painted(np.deg2rad([0, 170, 80, -60, 120, -110, 200, 30]), 2)
    aligner = fyd_network.ImageAligner(PatchExtractor(features, device="cpu"), ALIGNED.limits, angles=12, shrink=1)
    aligner.find_reference(pictures)
    still, movement = torch.eye(2, 3).expand(8, -1, -1), aligner(pictures)
    assert disagreement(aligner.extractor[0], pictures, movement) < 0.6 * disagreement(aligner.extractor[0], pictures, still)
    assert len({tuple(m.flatten().tolist()) for m in aligner.turn(pictures)}) > 4


# --- the detector ---------------------------------------------------------------------------------

QUICK = FocusYourDistributionOptions(steps=2, batch_size=3, coarse_steps=2, angles=2, dimension=5, learning_rate=0.01, held_out=0.0)


@pytest.fixture(scope="module")
def quick(features, pixels):
    values = pixels.values[:3].clone()
    values[1] = values[1].flip((1, 2))  # half a turn
    few = replace(pixels, values=values, indices=[0, 1, 2], sizes=pixels.sizes[:3])
    return few, detector(features, QUICK).fit(few)


@pytest.mark.parametrize("options, patch_size", [(dict(contrast=False), 1), (dict(steps=0), 3)])
def test_without_alignment_and_training_it_is_padim(features, photos, options, patch_size):
    features, options = replace(features, patch_size=patch_size), options | {"alignment": "none"}
    ours = detector(features, FocusYourDistributionOptions(held_out=0.0, dimension=20, **options), seed=3).fit(photos)
    theirs = PaDiM(features, options=PaDiMOptions(dimension=20), device="cpu", seed=3).fit(photos)
    assert torch.equal(ours.chosen, theirs.chosen) and torch.equal(ours.factor, theirs.factor)
    assert torch.equal(ours.score(photos).patch_scores, theirs.score(photos).patch_scores)
    assert ours.finished and ours.unit == theirs.unit


def test_untrained_transformers_after_every_stage_change_nothing(features, pixels):
    extractor = PatchExtractor(features, device="cpu")
    net = Focused(extractor, [0.3, 0.1, 0.1, 0.1])
    assert len(net.aligners) == 3
    for ours, theirs in zip(net(pixels.values[:2]), extractor.maps(pixels.values[:2]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    nn.init.constant_(net.aligners[0].last.bias, 1.0)  # the first stage's movement reaches the second stage, too
    shifted, plain = net(pixels.values[:2])[1].detach(), extractor.maps(pixels.values[:2])[1]
    assert len(net.movements) == 3 and float((shifted - plain).abs().mean()) > 0.1 * float(plain.abs().mean())


def test_what_each_stage_trains(features, fitted, pixels):
    frozen = detector(features, replace(SMALL, contrast=False)).fit(pixels)
    own = fitted.extractor.model.state_dict()
    changed = lambda d: any(not torch.equal(t, own[name]) for name, t in d.focused.backbone.state_dict().items())  # noqa: E731
    assert changed(fitted) and not changed(frozen)
    assert not changed(detector(features, replace(SMALL, backbone_rate=0.0)).fit(pixels))
    assert fitted.aligner.angles == 4 and len(fitted.aligner.reference) == 3
    for name, tensor in fitted.focused.backbone.state_dict().items():  # BatchNorm keeps its statistics
        if "running" in name:
            assert torch.equal(tensor, own[name])
    for one in (fitted, frozen):
        assert all(float(aligner.last.weight.detach().abs().max()) > 0 for aligner in (one.aligner.locator, *one.focused.aligners))
    assert not len(Focused(fitted.extractor, None).aligners)


def test_the_fine_stage_sees_aligned_pictures_where_they_show_something(features, quick, monkeypatch):
    few, first = quick
    seen_by_it, forward, weights, loss = [], Focused.forward, [], dense_loss
    monkeypatch.setattr(fyd, "dense_loss", lambda p, z, w: weights.append(w) or loss(p, z, w))
    monkeypatch.setattr(fyd_network.ImageAligner, "turn", lambda self, pictures: turns(5, (64, 96))[1:2].expand(len(pictures), -1, -1))
    monkeypatch.setattr(Focused, "forward", lambda self, pictures: seen_by_it.append(pictures) or forward(self, pictures))
    one = detector(features, QUICK).fit(few)
    expected = moved(few.values.float(), one.aligner(few.values))  # the three pictures of every batch, in some order
    for batch in seen_by_it[:2]:
        torch.testing.assert_close(batch.sum(0), expected.sum(0), rtol=1e-4, atol=0.1)
    assert float((expected - few.values).abs().mean()) > 1
    shown = seen(one.aligner(few.values), (16, 24)).sum(0)
    assert torch.equal(weights[0].sum(0), shown) and 0 < int((shown == 0).sum()) < 192


def test_gaussians_are_those_of_the_training_pictures_at_their_places(features, quick):
    few, first = quick
    rows, _ = first._features(few.values, first.aligner(few.values))
    torch.testing.assert_close(first.mean, rows.mean(0), rtol=1e-3, atol=1e-4)
    again = fyd_network.ImageAligner(first.extractor, QUICK.limits, angles=2, shrink=2)
    again.find_reference(few.values)
    assert all(torch.equal(a, b) for a, b in zip(again.reference, first.aligner.reference, strict=True))
    assert len({tuple(m.flatten().tolist()) for m in first.aligner.turn(few.values)}) > 1


def test_the_backbone_learns_to_agree(features, pixels):
    options = replace(SMALL, alignment="none", steps=12, batch_size=3, learning_rate=0.01)
    history = detector(features, options).fit(pixels).history
    assert history[-1].losses["loss"] < history[0].losses["loss"] - 0.2 and -1 <= history[-1].losses["loss"] <= 1


def test_shapes_and_an_image_alone_scores_as_in_company(fitted, photos):
    scores = fitted.score(photos)
    assert scores.patch_scores.shape == (7, 16, 24) and scores.maps.shape == (7, 64, 96)
    assert torch.equal(scores.image_scores, scores.patch_scores.flatten(1).amax(1)) and (scores.patch_scores >= 0).all()
    for i in (0, 5):
        torch.testing.assert_close(fitted.score([photos[i]]).patch_scores[0], scores.patch_scores[i], atol=1e-3, rtol=1e-3)


def test_sizes_that_the_strides_do_not_divide(features, photos):
    odd = replace(features, resize=70, crop=(61, 83))
    other = detector(odd, QUICK).fit(photos[:3])
    scores = other.score(photos[:2])
    assert scores.patch_scores.shape == (2, 16, 21) and scores.maps.shape == (2, 61, 83)
    with pytest.raises(ValueError, match="these images have 16x24 positions, the Gaussians 16x21"):
        other._score(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))


def test_the_same_seed_gives_the_same_and_another_seed_another(features, fitted, pixels, quick):
    before = torch.random.get_rng_state()
    again = detector(features).fit(pixels)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(again.score(pixels).patch_scores, fitted.score(pixels).patch_scores)
    few, first = quick
    other = detector(features, QUICK, seed=1).fit(few)
    assert not torch.equal(other.chosen, first.chosen)
    assert not torch.equal(other.aligner.locator.look.weight, first.aligner.locator.look.weight)


@pytest.mark.parametrize("options", [SMALL, replace(SMALL, alignment="image", contrast=False), replace(SMALL, alignment="none")])
def test_a_saved_detector_comes_back_to_the_bit_and_is_as_large_as_told(features, pixels, tmp_path, options):
    one = detector(features, options).fit(pixels)
    folder = one.save(tmp_path / "model")
    loaded = rcp.load(folder, device="cpu")
    assert isinstance(loaded, FocusYourDistribution) and loaded.settings() == one.settings() and loaded.finished
    assert torch.equal(loaded.score(pixels).patch_scores, one.score(pixels).patch_scores)
    kept = sum(t.nbytes for name, t in one._state().items() if name != "chosen")
    assert one.state_bytes(7, (64, 96)) == kept
    file = rcp.modelfile.read_model(folder)
    rcp.modelfile.write_model(folder, replace(file, tensors=file.tensors | {"factor": torch.zeros(1, 2, 3, 4)}))
    with pytest.raises(ValueError, match="the tensor 'factor' should be"):
        rcp.load(folder, device="cpu")


@pytest.mark.parametrize(
    "option",
    [dict(coarse_steps=3), dict(shrink=1), dict(rotation=5.0), dict(translation=0.2), dict(scale=0.3),
     dict(jitter=1.0), dict(anchor=9.0), dict(feature_limits=0.7), dict(epsilon=0.1), dict(backbone_rate=1e-2)],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_every_option_has_an_effect(features, quick, option):
    few, first = quick
    second = detector(features, replace(QUICK, **option)).fit(few)
    assert not torch.allclose(first.score(few).patch_scores, second.score(few).patch_scores, rtol=1e-4)


def test_what_image_alignment_minimises(features, pixels):
    aligner = fyd_network.ImageAligner(PatchExtractor(features, device="cpu"), [0.3, 0.1, 0.1, 0.1], angles=1, shrink=2)
    nn.init.normal_(aligner.locator.last.weight, generator=torch.Generator().manual_seed(0))
    size, few = (64, 96), pixels.values[:3]
    turned = similarity(torch.tensor([[1.0, 0, 0, 0], [0.0, 0, 0, 0], [-1.0, 0, 0, 0]]), size)
    jitter = similarity(torch.tensor([[0.1, 0.1, 0, 0], [0.2, 0.0, 0.1, 0.1], [0.0, 0, 0.1, 0]]), size)
    with torch.no_grad():
        found = aligner.losses(few, turned, jitter, 2.0)
        move = aligner.locator(aligner.look(few, after(turned, jitter))[0], size)
        whole = after(after(turned, jitter), move)
        maps = aligner.look(few, whole)
        apart = sum(float(pairwise_l2(m, seen(whole, m.shape[2:]))) for m in maps) / 3
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 12), (4, 6), (2, 3)]
    common = sum(after(jitter, move)[i] - torch.eye(2, 3) for i in range(3)) / 3
    assert float(found["pairwise_l2"]) == pytest.approx(apart, rel=1e-5)
    assert float(found["loss"]) == pytest.approx(apart + 2 * float(common.square().sum()), rel=1e-5)
    still = turns(1, size).expand(3, -1, -1)
    torch.testing.assert_close(aligner(few), after(still, aligner.locator(aligner.look(few, still)[0], size)))


def test_maps_come_back_by_the_pictures_movement_and_the_first_stages(fitted, pixels):
    few = pixels.values[:2]
    place = fitted.aligner(few)
    fitted.focused(moved(few.float(), place))
    features, whole = fitted._features(few, place)
    torch.testing.assert_close(whole, after(place, fitted.focused.movements[0]))
    there = fyd.mahalanobis(features.flatten(1, 2), fitted.mean.flatten(0, 1), fitted.factor.flatten(0, 1)).view(2, 16, 24)
    assert torch.equal(fitted._score(few)[1], brought_back(there, whole)) and not torch.equal(fitted._score(few)[1], there)
    # Beyond the picture lies its reflection, not black.
    shown = moved(torch.full((1, 1, 6, 9), 7.0), similarity(torch.tensor([[0.5, 0.2, 0.1, 0.3]]), (6, 9)))
    torch.testing.assert_close(shown, torch.full((1, 1, 6, 9), 7.0))


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [2, 6])  # in the coarse stage, in the fine one
def test_a_killed_training_goes_on_to_the_same_weights(features, fitted, pixels, tmp_path, at):
    def kill(record):
        if record.step == at:
            raise Stop

    with pytest.raises(Stop):
        detector(features).fit(pixels, checkpoint=tmp_path / "state", callbacks=[kill])
    told = []
    resumed = detector(features).fit(pixels, checkpoint=tmp_path / "state", callbacks=[told.append])
    assert [record.step for record in resumed.history] == list(range(1, 9)) and told[0].step == at + 1
    assert torch.equal(resumed.score(pixels).patch_scores, fitted.score(pixels).patch_scores)


def test_ctrl_c_in_the_coarse_stage_leaves_the_fine_one_out(features, pixels, monkeypatch):
    monkeypatch.setattr(fyd_network.ImageAligner, "losses", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.warns(UserWarning, match="coarse alignment was interrupted"):
        one = detector(features).fit(pixels)
    assert not one.finished and one.history == [] and one.score(pixels).image_scores.isfinite().all()


@pytest.mark.parametrize(
    "bad, said",
    [
        (dict(alignment="feature"), "alignment must be one of none, image, both, got 'feature'"),
        (dict(batch_size=1), "batch_size must be at least 2, got 1"),
        (dict(angles=0), "angles, shrink and dimension must be positive"),
        (dict(coarse_steps=-1), "coarse_steps not negative"),
        (dict(rotation=-1.0), "limits of movements must not be negative"),
        (dict(jitter=2.0), r"jitter is a share of the limits in \[0, 1\], got 2.0"),
        (dict(epsilon=0.0), "epsilon must be positive, got 0.0"),
        (dict(steps=-1), "steps must not be negative"),
    ],
)
def test_options_that_cannot_be_are_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        FocusYourDistributionOptions(**bad)


def test_too_few_images_and_pooled_features_are_refused(features, photos):
    with pytest.raises(ValueError, match="needs at least 2 images to train on, got 1"):
        detector(features).fit(photos[:1])
    with pytest.raises(ValueError, match="has no use for merge='pool': leave it out"):
        detector(replace(features, merge="pool"))


def test_stages_are_found_whatever_timm_calls_them(photos):
    """timm takes a DenseNet apart: "features.norm0" is called features_norm0 there; a ViT has no maps between its blocks."""
    settings = rcp.FeatureSettings("densenet121.ra_in1k", levels=(1, 2), patch_size=1, pretrained=False, resize=72, crop=(64, 96))
    found = detector(settings, replace(SMALL, alignment="both")).fit(photos[:4])
    assert found.score(photos[:2]).patch_scores.isfinite().all()
    vit = rcp.FeatureSettings("vit_tiny_patch16_224.augreg_in21k", levels=(1, 2), patch_size=1, pretrained=False, resize=224, crop=224)
    with pytest.raises(ValueError, match="no stage .* to align features after: take alignment='image'"):
        detector(vit, replace(SMALL, alignment="both")).fit(photos[:4])


def test_limits_count_as_movements_do():
    limits = FocusYourDistributionOptions(rotation=90.0, translation=0.25, scale=0.1).limits
    assert limits == pytest.approx([math.pi / 2, 0.5, 0.5, math.log(1.1)])
