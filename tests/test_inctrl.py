"""InCTRL: its formulae against loops, and toys that fail without prompts, residuals, or with training where there must be none."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import rcp
from rcp import InCTRL, InCTRLOptions
from rcp.backbones import WeightsError, load_backbone
from rcp.detectors import inctrl_text
from rcp.detectors.inctrl import PAPER, PAPER_FEATURES
from rcp.detectors.inctrl_heads import Heads, focal_loss, fuse, nearest_residual, residual_map
from rcp.detectors.inctrl_pretraining import Auxiliary
from rcp.detectors.inctrl_text import TextPrior, check_tower, load_prior, text_score
from rcp.metrics import image_metrics
from rcp.pixels import load_pixels

QUICK = InCTRLOptions(prompts=2, steps=60, batch_size=16, training_prompts=(2, 4), pool=6)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the formulae -----------------------------------------------------------------------------------


def test_the_residual_is_half_of_one_minus_the_largest_cosine_to_any_prompt_patch():
    query, prompts = gaussian(2, 5, 3, 4), gaussian(3, 5, 2, 6, seed=1)
    found = nearest_residual(query, prompts)
    assert found.shape == (2, 3, 3, 4)
    for b in range(2):
        for p in range(3):
            for y in range(3):
                for x in range(4):
                    own, others = query[b, :, y, x], [prompts[p, :, v, u] for v in range(2) for u in range(6)]
                    cosines = [float(own @ other / (own.norm() * other.norm())) for other in others]
                    assert float(found[b, p, y, x]) == pytest.approx((1 - max(cosines)) / 2, abs=1e-5)


def test_a_patch_that_a_prompt_shows_has_no_residual_however_bright_and_wherever_it_is():
    prompts = gaussian(1, 5, 3, 4)
    assert float(nearest_residual(3 * prompts.flip(2, 3), prompts).max()) < 1e-6
    assert torch.equal(nearest_residual(-prompts[:, :, :1, :1], prompts[:, :, :1, :1]), torch.ones(1, 1, 1, 1))


def test_the_map_is_the_mean_over_the_levels_on_the_finest_grid():
    fine, coarse = gaussian(2, 4, 6), gaussian(2, 2, 3, seed=1)
    found = residual_map([fine, coarse])
    for b in range(2):
        for y in range(4):
            for x in range(6):  # bilinear, by hand: centres of pixels, nothing beyond the border
                v, u = min(max((y + 0.5) / 2 - 0.5, 0), 1), min(max((x + 0.5) / 2 - 0.5, 0), 2)
                top, left = int(v), int(u)
                rows, columns = (top, min(top + 1, 1)), (left, min(left + 1, 2))
                across = [float(coarse[b, r, columns[0]] * (1 - u + left) + coarse[b, r, columns[1]] * (u - left)) for r in rows]
                expected = (float(fine[b, y, x]) + across[0] * (1 - v + top) + across[1] * (v - top)) / 2
                assert float(found[b, y, x]) == pytest.approx(expected, abs=1e-5)


def test_the_image_residual_is_the_prompts_mean_minus_the_query():
    query, prompts = gaussian(2, 5), gaussian(2, 3, 5, seed=1)
    for b in range(2):
        mean = sum(prompts[b, k] for k in range(3)) / 3
        torch.testing.assert_close(fuse(query, prompts)[b], mean - query[b])
        torch.testing.assert_close(fuse(query, prompts, "concat")[b], torch.cat([mean, query[b]]))
        torch.testing.assert_close(fuse(query, prompts, "average")[b], (mean + query[b]) / 2)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_focal_loss_equals_a_loop_and_counts_what_is_sure_and_right_for_little(gamma):
    p, y = [0.9, 0.2, 0.6, 0.01], [1, 0, 0, 1]
    truth = [a if b else 1 - a for a, b in zip(p, y, strict=True)]
    expected = sum(-((1 - t) ** gamma) * np.log(t) for t in truth) / 4
    assert float(focal_loss(torch.tensor(p), torch.tensor(y).float(), gamma)) == pytest.approx(expected, rel=1e-5)
    assert bool(focal_loss(torch.tensor([0.0]), torch.tensor([1.0])).isfinite())


@pytest.mark.parametrize("grid", [(3, 5), (8, 8), (21, 13)])
def test_the_final_score_is_the_mean_of_the_heads_and_the_largest_residual_on_any_grid(grid):
    heads = heads_of(InCTRLOptions())
    residual, text = gaussian(3, *grid).sigmoid() / 2, torch.tensor([0.0, 0.3, 0.9])
    query, prompts = gaussian(3, 8), gaussian(3, 2, 8, seed=1)
    final, image = heads(residual, query, prompts, text)
    for b in range(3):
        adapted = [v + heads.adapter(v) for v in (query[b], *prompts[b])]
        own = heads.image_head((adapted[1] + adapted[2]) / 2 - adapted[0]).sigmoid()
        torch.testing.assert_close(image[b : b + 1], own)
        holistic = residual[b] + own + text[b]
        learned = heads.map_head(F.adaptive_max_pool2d(holistic[None, None], 8).flatten()).sigmoid()
        torch.testing.assert_close(final[b : b + 1], (learned + residual[b].max()) / 2)


def heads_of(options: InCTRLOptions, width: int = 8) -> Heads:
    """Heads whose last layers are not those of the beginning, where all images score the same."""
    heads = Heads(width, options, torch.Generator().manual_seed(0))
    for parameter in heads.parameters():
        nn.init.normal_(parameter, 0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return heads


def test_patch_image_and_fusion_can_be_left_out_one_by_one():
    inputs = gaussian(3, 4, 6).sigmoid() / 2, gaussian(3, 8), gaussian(3, 2, 8, seed=1), torch.zeros(3)
    changed = tuple(gaussian(*tensor.shape, seed=9).sigmoid() for tensor in inputs)
    with_image = lambda heads, r, q: heads(r, q, inputs[2], inputs[3])  # noqa: E731
    heads = heads_of(InCTRLOptions(image=False))
    assert not with_image(heads, inputs[0], inputs[1])[1].any() and not hasattr(heads, "adapter")
    assert torch.equal(with_image(heads, inputs[0], inputs[1])[0], with_image(heads, inputs[0], changed[1])[0])
    heads = heads_of(InCTRLOptions(patch=False))
    still = torch.zeros(3, 1, 1)
    assert not torch.allclose(with_image(heads, still, inputs[1])[0], with_image(heads, still, changed[1])[0])
    finals = [with_image(heads_of(InCTRLOptions(fusion=one)), inputs[0], inputs[1])[0] for one in ("residual", "concat", "average")]
    assert not any(torch.allclose(a, b) for a, b in (finals[:2], finals[1:], finals[::2]))


# --- pictures in which only the prompts tell what is normal ------------------------------------------


COLOURS = {"red": (230, 20, 20), "blue": (20, 20, 230), "green": (20, 200, 20), "yellow": (230, 230, 20), "white": (240, 240, 240)}
COLOURS |= {str(grey): (grey, grey, grey) for grey in (80, 95, 110, 125, 140)}


def pattern(kind: str, rng: np.random.Generator, shift: int = 0, patch: str | None = None) -> Image.Image:
    """A noisy 64x96 picture of one colour, with dark bars that lie elsewhere in each; a patch of another colour somewhere in it."""
    values = np.full((64, 96, 3), COLOURS[kind], float)
    if patch:
        top, left = rng.integers(4, 36), rng.integers(4, 60)
        values[top : top + 24, left : left + 30] = COLOURS[patch]
    values[(np.arange(64) + rng.integers(16)) % 16 < 4] *= 0.5
    return Image.fromarray((values + shift + rng.normal(0, 8, (64, 96, 1))).clip(0, 255).astype(np.uint8))


def made(root, name: str, good: dict, bad: dict, seed: int) -> rcp.data.Category:
    rng = np.random.default_rng(seed)
    for place, count, how in (("train/good", 10, good), ("test/good", 6, good), ("test/bad", 6, bad)):
        (root / name / place).mkdir(parents=True)
        for i in range(count):
            pattern(rng=rng, **how).save(root / name / place / f"{i}.png")
    return rcp.mvtec(root, name)


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> dict[str, rcp.data.Category]:
    """Two to learn from; two to meet, of which each one's normal pattern is the other's defect."""
    root, plans = tmp_path_factory.mktemp("toys"), {
        "a": ("green", "yellow"), "b": ("white", "green"), "red": ("red", "blue"), "blue": ("blue", "red"),
    }  # fmt: skip
    return {name: made(root, name, {"kind": k}, {"kind": k, "patch": p}, i) for i, (name, (k, p)) in enumerate(plans.items())}


@pytest.fixture(scope="module")
def settings(tiny) -> rcp.FeatureSettings:
    return replace(tiny, levels=(2, 3, 4), patch_size=1, resize=None, crop=(64, 96))


@pytest.fixture(scope="module")
def generalist(settings, toys) -> InCTRL:
    return InCTRL(settings, options=QUICK, device="cpu").pretrain([toys["a"], toys["b"]])


def sharing(generalist: InCTRL, **options) -> InCTRL:
    """A detector with the same heads and backbone."""
    own = {name: options.pop(name) for name in ("seed",) if name in options}
    detector = InCTRL(generalist.features, options=replace(generalist.options, **options), heads=generalist.heads, device="cpu", **own)
    detector.extractor = generalist.extractor
    return detector


def auroc(detector: InCTRL, category: rcp.data.Category) -> float:
    return image_metrics(category.test.labels, detector.score(category.test).image_scores.numpy())["image_auroc"]


def test_only_the_prompts_tell_what_is_normal(generalist, toys):
    red, blue = toys["red"], toys["blue"]
    of_red, of_blue = sharing(generalist).fit(red.train), sharing(generalist).fit(blue.train)
    assert auroc(of_red, red) == auroc(of_blue, blue) == 1  # never seen in the pretraining
    pictures = red.train.paths[-1:] + blue.train.paths[-1:]
    first, second = (one.score(pictures).image_scores for one in (of_red, of_blue))
    assert first[0] < first[1] - 0.03 and second[1] < second[0] - 0.03  # the same two pictures, judged the other way round
    assert auroc(of_blue, red) < 0.9  # with another product's prompts the defect is what looks normal


def test_what_was_learned_from_other_products_tells_anomalies_of_a_new_one(settings, toys):
    labels, gaps = toys["red"].test.labels, []
    for steps in (200, 0):
        options = replace(QUICK, image=False, steps=steps, learning_rate=1e-2)
        detector = InCTRL(settings, options=options, device="cpu").pretrain([toys["a"], toys["b"]]).fit(toys["red"].train)
        scores = detector.score(toys["red"].test)
        learned = 2 * scores.image_scores - scores.patch_scores.flatten(1).amax(1)  # the head's half of the final score
        gaps.append(float(learned[labels == 1].min() - learned[labels == 0].max()))
    assert gaps[0] > 0.2 and abs(gaps[1]) < 0.02


def test_the_map_shows_where_the_defect_is(generalist, tmp_path):
    rng = np.random.default_rng(5)
    left, top = 60, 8
    good = [tmp_path / f"{i}.png" for i in range(3)]
    for path in good:
        pattern("red", rng).save(path)
    picture = np.asarray(pattern("red", rng)).copy()
    picture[top : top + 20, left : left + 24] = np.asarray(pattern("blue", rng))[top : top + 20, left : left + 24]
    Image.fromarray(picture).save(tmp_path / "bad.png")
    scores = sharing(generalist).fit(good).score([tmp_path / "bad.png"])
    y, x = np.unravel_index(int(scores.maps[0].argmax()), (64, 96))
    assert scores.maps.shape == (1, 64, 96) and scores.patch_scores.shape == (1, 8, 12)
    assert top <= y < top + 20 and left <= x < left + 24


def test_the_image_residual_alone_generalises_where_all_of_the_picture_changes(settings, toys, tmp_path):
    plans = ["80", "95", "125", "140"]
    aux = [made(tmp_path, k, {"kind": k}, {"kind": k, "shift": 70}, i) for i, k in enumerate(plans)]
    new = made(tmp_path, "110", {"kind": "110"}, {"kind": "110", "shift": 70}, 9)
    options = replace(QUICK, patch=False, image_rate=1.0, learning_rate=3e-3)
    detector = InCTRL(settings, options=options, device="cpu").pretrain(aux).fit(new.train)
    assert auroc(detector, new) > 0.95 and detector.unit == "image score"
    scores = detector.score(new.test)
    assert scores.patch_scores.shape == (12, 1, 1) and bool((scores.maps.flatten(1).std(1) < 1e-6).all())
    darker = made(tmp_path, "darker", {"kind": "110", "shift": 70}, {"kind": "110"}, 9)
    assert auroc(detector.fit(darker.train), darker) < 0.5  # a residual has a sign: darker was never an anomaly


# --- pretraining and fitting --------------------------------------------------------------------------


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_fit_trains_nothing_however_often(generalist, toys, monkeypatch):
    heads, backbone = state(generalist.heads), state(generalist.extractor.model)
    detector = sharing(generalist)
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: pytest.fail("something is trained"))
    first = detector.fit(toys["red"].train).score(toys["red"].test).image_scores
    detector.fit(toys["blue"].train)
    again = detector.fit(toys["red"].train).score(toys["red"].test).image_scores
    assert torch.equal(first, again) and detector.heads is generalist.heads
    assert equal(state(generalist.heads), heads) and equal(state(generalist.extractor.model), backbone)


def test_prompts_are_some_of_the_good_images_and_differ_by_seed_and_grow_with_k(generalist, toys):
    pixels = load_pixels(toys["red"].train, generalist.features.geometry).values
    chosen = {}
    for k, seed in ((2, 0), (4, 0), (4, 1)):
        detector = sharing(generalist, prompts=k, seed=seed).fit(toys["red"].train)
        chosen[k, seed] = detector.chosen
        assert len(set(detector.chosen)) == k == len(detector.embeddings) and detector.fitted_on["prompts"] == detector.chosen
        torch.testing.assert_close(detector.prompts[0], detector._features(pixels[detector.chosen])[0][0])
        assert len(detector.normal_scores().image_scores) == 10 - k  # the others tell what normal images score
    assert chosen[4, 0][:2] == chosen[2, 0] and set(chosen[4, 0]) != set(chosen[4, 1])
    few = sharing(generalist, calibration=3).fit(toys["red"].train)
    assert len(few.normal_scores().image_scores) == 3
    held = few.score([p for i, p in enumerate(toys["red"].train.paths) if i not in few.chosen]).image_scores
    assert all(float((held - one).abs().min()) < 1e-5 for one in few.normal_scores().image_scores)


def test_heads_are_shared_and_a_prompts_seed_is_not_the_pretrainings(settings, generalist, toys):
    again = InCTRL(settings, options=QUICK, seed=7, device="cpu").pretrain([toys["a"], toys["b"]])
    assert equal(state(again.heads), state(generalist.heads))
    other = InCTRL(settings, options=replace(QUICK, pretrain_seed=1), device="cpu").pretrain([toys["a"], toys["b"]])
    assert not equal(state(other.heads), state(generalist.heads))
    lazily = InCTRL(settings, options=QUICK, auxiliary=[toys["a"], toys["b"]], device="cpu").fit(toys["red"].train)
    assert equal(state(lazily.heads), state(generalist.heads)) and InCTRL(settings, heads=generalist.heads).options == QUICK


def test_before_pretraining_there_is_one_clear_sentence(settings, toys):
    with pytest.raises(RuntimeError, match="this InCTRL is not pretrained: call pretrain.categories. first, or pass heads="):
        InCTRL(settings, device="cpu").fit(toys["red"].train)
    assert not InCTRL(settings).finished and InCTRL(settings).history == []


def test_heads_of_other_options_or_features_are_refused(settings, generalist, toys):
    for options in (replace(QUICK, gamma=1.0), replace(QUICK, training_prompts=(2,))):
        with pytest.raises(ValueError, match="pretrained with other options: (gamma 2.0 .here 1.0|training_prompts .2, 4. .here .2.)"):
            InCTRL(settings, options=options, heads=generalist.heads, device="cpu").fit(toys["red"].train)
    with pytest.raises(ValueError, match="pretrained with other features: levels .2, 3, 4. .here .3, 4.."):
        InCTRL(replace(settings, levels=(3, 4)), heads=generalist.heads, device="cpu").fit(toys["red"].train)
    wider = InCTRL(replace(settings, crop=(48, 80)), heads=generalist.heads, device="cpu").fit(toys["red"].train)  # another grid serves
    assert wider.score(toys["red"].test).patch_scores.shape == (12, 6, 10)


def test_too_few_images_of_either_side_are_refused(settings, generalist, toys):
    with pytest.raises(ValueError, match="2 prompts need at least as many good images, got 1"):
        sharing(generalist).fit(toys["red"].train[:1])
    with pytest.warns(UserWarning, match="no threshold"):
        assert sharing(generalist).fit(toys["red"].train[:2]).calibration is None
    fresh = sharing(generalist)
    for few in ([], [replace(toys["a"], train=toys["a"].train[:3])]):
        with pytest.raises(ValueError, match="each auxiliary category needs 4 training images"):
            fresh.pretrain(few)
    normal = toys["a"].test[6:]
    with pytest.raises(ValueError, match="test images of both kinds"):
        fresh.pretrain([replace(toys["a"], test=normal)])
    with pytest.raises(ValueError, match="must come out at one size"):
        small = InCTRL(replace(settings, crop=None, resize=None), options=QUICK, device="cpu")
        small.pretrain([toys["a"], mixed_size(toys["b"])])


def mixed_size(category: rcp.data.Category) -> rcp.data.Category:
    """The same pictures, cut to 48x80."""
    for path in (*category.train.paths, *category.test.paths):
        target = path.parents[4] / "small" / path.relative_to(path.parents[2])
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).crop((0, 0, 80, 48)).save(target)
    return rcp.mvtec(category.root.parents[1], "small")


def test_the_pretraining_compares_as_scoring_does(generalist, toys):
    generator = torch.Generator().manual_seed(0)
    auxiliary = generalist._auxiliary([toys["a"], toys["b"]], generator)
    assert auxiliary.labels.tolist() == [1] * 6 + [0] * 6 + [1] * 6 + [0] * 6 and auxiliary.category.tolist() == [0] * 12 + [1] * 12
    again = torch.Generator().manual_seed(0)
    drawn = [torch.randperm(10, generator=again)[:6].sort().values for _ in range(2)]
    which, chosen = torch.tensor([3, 20]), torch.tensor([[5, 0], [2, 3]])
    residual, query, prompts, text = auxiliary.compared(which, chosen)
    for row, (number, name) in enumerate(((3, "a"), (20, "b"))):
        category = toys[name]
        own = load_pixels([category.test.paths[number % 12]], generalist.features.geometry).values
        few = load_pixels([category.train.paths[int(drawn[row][i])] for i in chosen[row]], generalist.features.geometry).values
        maps, embedding = generalist._features(own)
        levels, embeddings = generalist._features(few)
        expected = residual_map([nearest_residual(a, torch.cat(list(b), 2)[None]).squeeze(1) for a, b in zip(maps, levels, strict=True)])
        torch.testing.assert_close(residual[row], expected[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(query[row], embedding[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(prompts[row], embeddings, atol=1e-4, rtol=1e-4)
    assert not text.any()
    torch.testing.assert_close(auxiliary.queries.norm(dim=1), torch.full((24,), auxiliary.queries.shape[1] ** 0.5))


def test_normal_and_anomalous_queries_are_equally_many():
    labels = torch.tensor([1.0, 0, 1, 1, 1, 0, 1])
    slots = Auxiliary([], torch.zeros(7, 1), torch.zeros(1), torch.zeros(7), labels, torch.zeros(7)).balanced()
    assert labels[slots].tolist() == [0] * 5 + [1] * 5 and set(slots.tolist()) == set(range(7))


def test_a_step_sees_as_many_normal_as_anomalous_queries(generalist, toys, monkeypatch):
    seen, focal = [], focal_loss
    monkeypatch.setattr("rcp.detectors.inctrl_pretraining.focal_loss", lambda p, labels, gamma: (seen.append(labels), focal(p, labels, gamma))[1])
    sharing(generalist, steps=3, batch_size=12).pretrain([replace(toys["a"], test=toys["a"].test[5:])])  # one anomaly, six good
    assert len(seen) == 6 and all(sorted(labels.tolist()) == [0] * 6 + [1] * 6 for labels in seen)


def test_a_killed_pretraining_goes_on_to_the_same_heads(settings, generalist, toys, tmp_path):
    file, told = tmp_path / "pretraining.safetensors", []

    def killed(record):
        told.append(record)
        if len(told) == 7:
            raise OSError("killed")

    detector = sharing(generalist)
    with pytest.raises(OSError, match="killed"):
        detector.pretrain([toys["a"], toys["b"]], callbacks=[killed], checkpoint=file)
    detector.pretrain([toys["a"], toys["b"]], checkpoint=file)
    assert equal(state(detector.heads), state(generalist.heads)) and detector.finished and detector.history[-1].step == 60
    assert set(told[0].losses) == {"loss", "final", "image"}
    assert told[0].losses["loss"] == pytest.approx(told[0].losses["final"] + told[0].losses["image"], rel=1e-4)
    with pytest.raises(ValueError, match="belongs to a training with other settings"):
        sharing(generalist).pretrain([toys["a"]], checkpoint=file)


def test_the_loss_falls_and_the_slow_rate_is_that_of_the_image_level_alone(settings, generalist, toys):
    assert generalist.history[-1].losses["final"] < 0.8 * generalist.history[0].losses["final"]
    fast = InCTRL(settings, options=replace(QUICK, image_rate=1.0), device="cpu").pretrain([toys["a"], toys["b"]])
    assert fast.history[-1].losses["image"] < 0.8 * generalist.history[-1].losses["image"]
    start = Heads(len(fast.heads.adapter[2].weight), QUICK, torch.Generator())
    assert not start.image_head[-1].weight.any() and not start.image_head[-1].bias.any()  # all images score alike at first


def test_a_saved_generalist_comes_back_with_heads_prompts_and_what_it_learned_from(generalist, toys, tmp_path):
    detector = sharing(generalist).fit(toys["red"].train)
    detector.save(tmp_path / "model")
    loaded = rcp.load(tmp_path / "model", device="cpu")
    assert isinstance(loaded, InCTRL) and equal(state(loaded.heads), state(generalist.heads)) and loaded.chosen == detector.chosen
    a, b = detector.score(toys["red"].test), loaded.score(toys["red"].test)
    assert torch.equal(a.image_scores, b.image_scores) and torch.equal(a.patch_scores, b.patch_scores)
    learned = [{"dataset": "mvtec", "name": name, "sha256": toys[name].test.fingerprint()} for name in ("a", "b")]
    assert loaded.fitted_on["auxiliary"] == learned == loaded.heads.record["auxiliary"] and loaded.history == generalist.history
    again = loaded.fit(toys["blue"].train)  # a loaded one is a generalist still
    expected = sharing(generalist).fit(toys["blue"].train).score(toys["red"].test)
    assert torch.equal(again.score(toys["red"].test).image_scores, expected.image_scores)
    file = rcp.modelfile.read_model(tmp_path / "model")
    rcp.modelfile.write_model(tmp_path / "model", replace(file, tensors=file.tensors | {"prompts.1": file.tensors["prompts.0"].clone()}))
    with pytest.raises(ValueError, match="the tensor 'prompts.1' should be"):
        rcp.load(tmp_path / "model", device="cpu")


def test_pretraining_anew_forgets_the_old_prompts(settings, toys):
    detector = InCTRL(settings, options=replace(QUICK, steps=1), device="cpu").pretrain([toys["a"]]).fit(toys["red"].train)
    with pytest.raises(RuntimeError, match="has no prompts yet"):
        detector.pretrain([toys["b"]]).score(toys["red"].test)


# --- the text prior -----------------------------------------------------------------------------------


class StubClip(nn.Module):
    """Pictures become their mean red, green and blue; sentences with a word of damage point to red, others to blue."""

    def __init__(self, tower: torch.Tensor):
        super().__init__()
        self.visual = nn.Conv2d(3, 4, 1)
        self.visual.weight.data = tower
        self.visual.image_size, self.visual.image_mean, self.visual.image_std = 16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def encode_image(self, x):
        assert x.shape[2:] == (16, 16)
        return x.mean((2, 3))

    def encode_text(self, tokens):
        return torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])[tokens[:, 0]]


def words(sentences: list[str]) -> torch.Tensor:
    return torch.tensor([[0 if any(w in one for w in ("broken", "faulty", "with a f", "damage")) else 1] for one in sentences])


@pytest.fixture
def stub(monkeypatch, settings):
    tower = next(t for t in load_backbone("test_resnet", levels=(2, 3, 4), pretrained=False).model.state_dict().values() if t.ndim == 4)
    made = lambda name, weights, noun, device: TextPrior(StubClip(tower), words, noun, device)  # noqa: E731
    monkeypatch.setattr("rcp.detectors.inctrl.load_prior", made)


def test_the_prior_is_the_softmax_of_a_hundred_cosines():
    images, directions = gaussian(3, 5), F.normalize(gaussian(2, 5, seed=1), dim=1)
    for b in range(3):
        normal, bad = (100 * float(images[b] @ d / images[b].norm()) for d in directions)
        assert float(text_score(images, directions)[b]) == pytest.approx(1 / (1 + np.exp(normal - bad)), rel=1e-4, abs=1e-6)


def test_the_prior_says_what_the_sentences_say_of_any_size_of_picture():
    told = []
    prior = TextPrior(StubClip(torch.zeros(4, 3, 1, 1)), lambda sentences: told.extend(sentences) or words(sentences), "bolt")
    red, blue = torch.zeros(1, 3, 20, 30, dtype=torch.uint8), torch.zeros(1, 3, 20, 30, dtype=torch.uint8)
    red[:, 0], blue[:, 2] = 200, 200
    assert float(prior(red)) > 0.99 and float(prior(blue)) < 0.01
    assert len(told) == len(set(told)) == (7 + 5) * 8 and all("bolt" in one and "{" not in one for one in told)


def test_with_text_the_prior_is_part_of_map_and_score(settings, toys, stub):
    options = replace(QUICK, steps=2, text=True, clip_weights="clip.pt")
    detector = InCTRL(settings, options=options, device="cpu").pretrain([toys["a"]]).fit(toys["red"].train)
    assert detector.heads.record["features"]["text"] == detector.prior.sha256
    pixels = load_pixels(toys["red"].test, settings.geometry).values
    maps, query = detector._features(pixels)
    residual = residual_map([nearest_residual(*pair).amin(1) for pair in zip(maps, detector.prompts, strict=True)])
    expected = detector.heads(residual, query, detector.embeddings.expand(12, -1, -1), detector.prior(pixels))[0]
    torch.testing.assert_close(detector.score(toys["red"].test).image_scores, expected, atol=1e-5, rtol=1e-4)
    without = detector.heads(residual, query, detector.embeddings.expand(12, -1, -1), torch.zeros(12))[0]
    assert not torch.allclose(without, expected, atol=1e-4)


def test_another_backbone_than_clips_own_tower_is_refused(settings, toys, monkeypatch):
    monkeypatch.setattr("rcp.detectors.inctrl.load_prior", lambda *given: TextPrior(StubClip(torch.zeros(4, 3, 1, 1)), words, "object"))
    with pytest.raises(ValueError, match="the backbone is not this CLIP model's image tower"):
        InCTRL(settings, options=replace(QUICK, text=True, clip_weights="clip.pt"), device="cpu").pretrain([toys["a"]])
    backbone = load_backbone("test_resnet", levels=(2,), pretrained=False).model
    own = next(t for t in backbone.state_dict().values() if t.ndim == 4)
    check_tower(StubClip(own), backbone)
    with pytest.raises(ValueError, match="the backbone is not this CLIP model's image tower"):
        check_tower(StubClip(own + 1), backbone)


def test_without_package_or_weights_the_prior_is_refused_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(WeightsError, match="needs the package open_clip_torch: pip install"):
        load_prior("ViT-B-32", tmp_path / "none.pt", "object")
    config = {"text_cfg": {"hf_model_name": "x"}}
    package = types.SimpleNamespace(get_model_config=lambda name: config, list_models=lambda: ["words"])
    monkeypatch.setitem(sys.modules, "open_clip", package)
    with pytest.raises(WeightsError, match="there is no file .*none.pt: nothing is downloaded"):
        load_prior("words", tmp_path / "none.pt", "object")
    (tmp_path / "some.pt").touch()
    for name in ("words", "hf-hub:any/model"):
        with pytest.raises(ValueError, match="clip must be one of open_clip's models with CLIP's own words"):
            load_prior(name, tmp_path / "some.pt", "object")


def test_a_real_open_clip_model_is_read_from_a_file(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    (tmp_path / "tiny-clip.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    model = open_clip.create_model("tiny-clip")
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    prior = load_prior("tiny-clip", tmp_path / "tiny.pt", "bolt")
    pixels = torch.randint(256, (3, 3, 40, 60), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    scores = prior(pixels)
    assert scores.shape == (3,) and bool(((scores >= 0) & (scores <= 1)).all()) and prior.directions.shape == (2, 24)
    torch.testing.assert_close(prior(pixels[1:2]), scores[1:2], atol=1e-5, rtol=1e-4)
    assert prior.sha256 == load_prior("tiny-clip", tmp_path / "tiny.pt", "nut").sha256
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="other.pt does not hold the weights of tiny-clip"):
        load_prior("tiny-clip", tmp_path / "other.pt", "bolt")
    tower = types.SimpleNamespace(state_dict=lambda: {"patch_embed.proj.weight": model.visual.conv1.weight.detach()})
    check_tower(prior.model, tower)


# --- what can be chosen -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompts": 0}, "prompts must be positive"),
        ({"training_prompts": ()}, "prompts must be positive"),
        ({"pool": 7}, "pool must hold the largest of training_prompts"),
        ({"patch": False, "image": False}, "without patch and image there is no residual"),
        ({"fusion": "sum"}, "fusion must be one of residual, concat, average, got 'sum'"),
        ({"fusion": "concat", "image": False}, "is about the image level, but image is False"),
        ({"text": True}, "text=True needs clip_weights=FILE"),
        ({"clip_weights": "file"}, "clip_weights needs text=True"),
        ({"gamma": -1.0}, "gamma and calibration must not be negative"),
        ({"calibration": -1}, "gamma and calibration must not be negative"),
        ({"image_rate": 0.0}, "image_rate must be positive"),
        ({"steps": -1}, "steps must not be negative"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"smoothing": -1.0}, "smoothing must not be negative"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        InCTRLOptions(**wrong)


def test_the_papers_settings_are_there():
    assert PAPER.image_rate == 1 and PAPER.training_prompts == (8,) and PAPER_FEATURES.geometry.crop == 240
    assert InCTRL.kind == "inctrl" and InCTRL.features_of("efficientnet_lite0").levels == (2, 3, 4)
    assert inctrl_text.TEMPERATURE == 100
