"""Uninformed Students: the teacher, the students, and the two things by which they betray a defect."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import rcp
from rcp import UninformedStudents, UninformedStudentsOptions
from rcp.detectors import students_patches, students_teacher
from rcp.detectors.students import (
    PAPER,
    PAPER_FEATURES,
    anomaly_scores,
    covered,
    moments,
    predictive_variance,
    regression_error,
    student_loss,
)
from rcp.detectors.students_patches import backbone_descriptors, centres, cut, positives
from rcp.detectors.students_teacher import (
    TeacherOptions,
    compactness_loss,
    distil,
    distillation_loss,
    patch_net,
    teacher,
    triplet_losses,
)
from rcp.features import PatchExtractor
from rcp.pixels import load_pixels

SMALL = UninformedStudentsOptions(
    fields=(17,), dimension=6, width=8, crops=40, side=32, teacher_steps=12, teacher_batch=16, steps=14, batch_size=3,
)  # fmt: skip


REAL_PICTURES = students_teacher.pictures  # the real ones: a fixture puts smaller ones in their place


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_pictures() -> list[list[torch.Tensor]]:
    """Three and two pictures, smooth, each with colours of its own."""

    def one(seed: int, size: tuple[int, int]) -> torch.Tensor:
        coarse = 130 + 60 * gaussian(1, 3, 1, 1, seed=seed) + 30 * gaussian(1, 3, 8, 10, seed=seed)
        return nn.functional.interpolate(coarse, size, mode="bilinear")[0].clamp(0, 255).byte()

    return [[one(i, (50, 70)) for i in range(3)], [one(i, (64, 48)) for i in range(3, 5)]]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of its own, and small pictures to learn from."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RCP_CACHE", str(folder))
        patch.setattr(students_teacher, "pictures", some_pictures)
        yield folder


@pytest.fixture(scope="module")
def extractor(tiny) -> PatchExtractor:
    return PatchExtractor(tiny, device="cpu")


@pytest.fixture(scope="module")
def fitted(tiny, category) -> UninformedStudents:
    return UninformedStudents(tiny, options=SMALL, device="cpu").fit(category.train)


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [17, 33, 65])
def test_the_receptive_field_is_exactly_p(field):
    net = patch_net(field, 8, 6, drawn())
    touched = torch.zeros(field + 8, field + 8)
    for seed in range(30):  # a maximum lets the gradient through in one place only: many images show all places
        image = gaussian(1, 3, field + 8, field + 8, seed=seed).requires_grad_()
        net(image)[0, :, 1, 1].square().sum().backward()
        touched += image.grad.abs().sum((0, 1))
    rows, columns = (touched.sum(axis) > 0 for axis in (1, 0))
    for seen in (rows, columns):
        assert seen.nonzero().flatten().tolist() == list(range(4, 4 + field))


@pytest.mark.parametrize("field", [17, 33, 65])
def test_a_pixel_at_the_edge_of_the_patch_counts_and_its_neighbour_outside_does_not(field):
    net, changed = patch_net(field, 8, 6, drawn()), {}
    for place in (3, 4, 4 + field - 1, 4 + field):
        moved = []
        for seed in range(10):
            image = gaussian(1, 3, field + 8, field + 8, seed=seed)
            other = image.clone()
            other[0, :, 4 : 4 + field, place] += 3 * gaussian(3, field, seed=seed + 99)
            moved.append(not torch.equal(net(image)[0, :, 1, 1], net(other)[0, :, 1, 1]))
        changed[place] = any(moved)
    assert list(changed.values()) == [False, True, True, False]


@pytest.mark.parametrize("field", [17, 33, 65])
def test_a_patch_alone_has_the_descriptor_that_it_has_in_an_image(field):
    net = patch_net(field, 8, 6, drawn())
    view = covered(gaussian(2, 3, 42, 67), field)
    whole = net(view)
    assert whole.shape == (2, 6, 11, 17)  # ⌈42/4⌉ x ⌈67/4⌉
    for i, j in ((0, 0), (3, 16), (10, 2)):
        alone = net(view[:, :, 4 * i : 4 * i + field, 4 * j : 4 * j + field])
        assert alone.shape == (2, 6, 1, 1)
        torch.testing.assert_close(alone[..., 0, 0], whole[:, :, i, j], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("field", [17, 33, 65])
@pytest.mark.parametrize(("width", "off"), [(68, 0.5), (67, 1.0), (66, 1.5), (65, 2.0)])
def test_cells_lie_where_the_centres_of_their_patches_are(field, width, off):
    view = covered(torch.arange(float(width)).expand(1, 3, 40, width), field)  # a pixel says which column it is
    cells = -(-width // 4)
    centres = view[0, 0, 20, field // 2 :: 4][:cells]
    expected = (torch.arange(cells) + 0.5) * width / cells - 0.5
    assert float((centres - expected).abs().max()) <= off + 1e-4


def test_images_smaller_than_the_reflection_are_refused():
    with pytest.raises(ValueError, match="images of 24 x 96 pixels are too small for patches of 65"):
        covered(torch.zeros(1, 3, 24, 96), 65)


# --- the teacher's losses -------------------------------------------------------------------------


def test_distillation_is_the_mean_squared_distance():
    a, b = gaussian(5, 7), gaussian(5, 7, seed=1)
    expected = sum(sum((float(x) - float(y)) ** 2 for x, y in zip(a[i], b[i], strict=True)) for i in range(5)) / 5
    assert float(distillation_loss(a, b)) == pytest.approx(expected, rel=1e-5)


def test_triplets_equal_a_loop_that_takes_the_harder_negative():
    anchor, positive, negative = (gaussian(40, 3, seed=i) for i in range(3))
    found, from_positive = triplet_losses(anchor, positive, negative, 1.5), 0
    for i in range(40):
        near, one, two = (float(((x[i] - y[i]) ** 2).sum()) for x, y in ((anchor, positive), (anchor, negative), (positive, negative)))
        assert float(found[i]) == pytest.approx(max(0.0, 1.5 + near - min(one, two)), abs=1e-4)
        from_positive += two < one
    assert 5 < from_positive < 35 and 0 < int((found == 0).sum()) < 40  # both choices and both sides of the hinge occur


def test_compactness_equals_a_loop_over_pairs_of_numbers():
    rows = gaussian(30, 4) @ gaussian(4, 4, seed=1) + 5
    expected = 0.0
    for i in range(4):
        for j in range(4):
            if i != j:
                x, y = rows[:, i] - rows[:, i].mean(), rows[:, j] - rows[:, j].mean()
                expected += float((x * y).sum() / ((x * x).sum() * (y * y).sum()).sqrt()) ** 2
    assert float(compactness_loss(rows)) == pytest.approx(expected, rel=1e-4)
    opposed = torch.stack([rows[:, 0], -rows[:, 0]], 1)
    assert float(compactness_loss(opposed)) == pytest.approx(2, rel=1e-4)  # as redundant as agreeing
    assert float(compactness_loss(torch.ones(5, 3))) == 0


def test_descending_the_compactness_makes_numbers_independent():
    rows = (gaussian(200, 1) + 0.3 * gaussian(200, 5, seed=1)).requires_grad_()
    before = torch.corrcoef(rows.detach().T).fill_diagonal_(0).abs().max()
    optimizer = torch.optim.Adam([rows], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        compactness_loss(rows).backward()
        optimizer.step()
    after = torch.corrcoef(rows.detach().T).fill_diagonal_(0).abs().max()
    assert before > 0.8 and after < 0.1


# --- the teacher ----------------------------------------------------------------------------------


def test_patches_have_a_rim_are_drawn_from_both_groups_and_tell_their_picture():
    flat = [[torch.full((3, 30, 50), 10 * i + 5).byte() for i in range(3)], [torch.full((3, 41, 33), 200).byte()]]
    patches, sources = cut(flat, 17, 40, drawn())
    assert patches.shape == (40, 3, 25, 25) and patches.dtype == torch.uint8  # 17 and a rim of (17-1)/4
    assert sources.bincount().tolist()[3] == 20 and set(sources.tolist()) == {0, 1, 2, 3}
    assert patches.flatten(1).amax(1).tolist() == patches.flatten(1).amin(1).tolist()
    assert patches[:, 0, 0, 0].tolist() == [200 if i == 3 else 10 * i + 5 for i in sources.tolist()]


def test_places_and_scales_of_patches_vary_over_the_picture():
    ramp = torch.arange(200).expand(3, 100, 200).byte()  # a pixel says its column
    patches, _ = cut([[ramp]], 17, 200, drawn())
    left, right = patches[:, 0, 0, 0].float(), patches[:, 0, 0, -1].float()
    assert left.min() < 10 and right.max() > 190
    sides = (right - left) * 25 / 24  # of the crop, in pixels of the picture
    assert 5 < sides.min() < 14 and 30 < sides.max() < 42  # 25/17 of a patch, at a short side of 16p to 4p


def test_positives_are_moved_within_the_rim_and_centres_are_its_middle(monkeypatch):
    monkeypatch.setattr(students_patches, "BRIGHTNESS", 0)
    monkeypatch.setattr(students_patches, "NOISE", 0)
    rows, columns = torch.meshgrid(torch.arange(25), torch.arange(25), indexing="ij")
    patches = torch.stack([rows, columns, rows]).expand(200, 3, 25, 25).byte()
    found = positives(patches, 17, drawn())
    assert found.shape == (200, 3, 17, 17)
    assert set(found[:, 0, 0, 0].tolist()) == set(found[:, 1, 0, 0].tolist()) == set(range(9))
    assert torch.equal(found[:, 0, -1, 0] - found[:, 0, 0, 0], torch.full((200,), 16.0))
    assert centres(patches, 17)[0, :, 0, 0].tolist() == [4, 4, 4] and centres(patches, 17).shape == (200, 3, 17, 17)


def test_positives_are_brighter_or_darker_and_noisy():
    found = positives(torch.full((300, 3, 25, 25), 120).byte(), 17, drawn())
    means = found.mean((1, 2, 3))
    assert 90 < means.min() < 102 and 138 < means.max() < 150  # a fifth of 120 is 24
    assert 23 < found.std((1, 2, 3)).mean() < 27
    whole = positives(torch.full((9, 3, 25, 25), 255).byte(), 17, drawn())
    assert whole.max() == 255 and positives(torch.zeros(9, 3, 25, 25).byte(), 17, drawn()).min() == 0


def test_targets_are_pooled_maps_of_enlarged_patches_standardised(extractor):
    patches = torch.randint(0, 256, (70, 3, 17, 17), generator=drawn()).byte()
    found = backbone_descriptors(patches, extractor, 32)
    assert found.shape == (70, 240)
    rows = []
    for patch in patches:
        large = torch.nn.functional.interpolate(patch[None].float(), (32, 32), mode="bilinear", antialias=True)
        rows.append(torch.cat([m.mean((2, 3))[0] for m in extractor.maps(large)]))
    rows = torch.stack(rows)
    torch.testing.assert_close(found, (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-6), rtol=1e-2, atol=1e-2)
    assert not torch.allclose(found, backbone_descriptors(patches, extractor, 64), atol=0.1)


def learned(monkeypatch, extractor, **options) -> dict[str, list[float]]:
    """The losses of a teacher's training."""
    histories, train = [], students_teacher.train

    def watched(*args, **named):
        histories.append(train(*args, **named))
        return histories[-1]

    monkeypatch.setattr(students_teacher, "train", watched)
    distil(17, replace(TeacherOptions(dimension=6, width=16, crops=64, side=32, teacher_batch=32, teacher_steps=40), **options), extractor)
    return {name: [record.losses[name] for record in histories[0]] for name in histories[0][0].losses}


def test_a_teacher_learns_what_the_backbone_says_and_what_is_switched_off_is_not_computed(monkeypatch, extractor):
    losses = learned(monkeypatch, extractor, triplet=0.0, compactness=0.0, teacher_rate=5e-3)
    assert set(losses) == {"distillation", "loss"}
    assert losses["distillation"][-1] < 0.8 * losses["distillation"][0]


def test_the_weights_of_triplets_and_compactness_take_effect(monkeypatch, extractor):
    both = learned(monkeypatch, extractor, triplet=5.0, compactness=5.0)
    weak = learned(monkeypatch, extractor, triplet=1e-6, compactness=1e-6)
    assert set(both) == {"distillation", "triplet", "compactness", "loss"}
    assert both["triplet"][-1] < 0.8 * weak["triplet"][-1] and both["compactness"][-1] < 0.8 * weak["compactness"][-1]
    parts = zip(both["distillation"], both["triplet"], both["compactness"], strict=True)
    expected = [d / 240 + 5 * t + 5 * c / 30 for d, t, c in parts]  # 240 numbers of the target, 6 · 5 pairs of numbers
    assert both["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_negative_of_the_same_picture_does_not_count(monkeypatch, extractor):
    monkeypatch.setattr(students_teacher, "pictures", lambda: [some_pictures()[0][:1]])
    assert set(learned(monkeypatch, extractor, teacher_steps=4)["triplet"]) == {0.0}


def test_the_embedded_pictures_are_those_that_are_really_there(monkeypatch, tmp_path):
    monkeypatch.setattr(students_teacher.synthetic, "cached", lambda: tmp_path)
    rcp.synthetic.write(tmp_path, categories=["flange"], train=1, good=1, per_defect=0)
    good, photographs = REAL_PICTURES()
    assert [len(good), len(photographs)] == [1, 16] and good[0].shape == (3, 256, 256)
    assert all(one.dtype == torch.uint8 and one.shape[0] == 3 and min(one.shape[1:]) >= 170 for one in photographs)


def test_a_second_call_reads_the_teacher_and_trains_none(monkeypatch, extractor, cache):
    first = teacher(17, SMALL, extractor)

    def fail(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(students_teacher, "distil", fail)
    again = teacher(17, SMALL, extractor)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not again.training and not any(w.requires_grad for w in again.parameters())
    for other in (replace(SMALL, triplet=0.5), replace(SMALL, crops=41), replace(SMALL, weight_decay=0.0)):
        with pytest.raises(AssertionError, match="trained again"):
            teacher(17, other, extractor)
    with pytest.raises(AssertionError, match="trained again"):
        teacher(33, SMALL, extractor)
    monkeypatch.setattr(students_teacher, "RECIPE", 99)
    with pytest.raises(AssertionError, match="trained again"):
        teacher(17, SMALL, extractor)


def test_what_concerns_the_students_alone_and_other_seeds_share_a_teacher(extractor):
    same = students_teacher.identity(17, SMALL, extractor)
    assert students_teacher.identity(17, replace(SMALL, steps=999, students=5, learning_rate=1.0), extractor) == same


def test_another_backbone_or_other_levels_of_it_have_another_teacher(tiny, extractor):
    same = students_teacher.identity(17, SMALL, extractor)
    for other in (replace(tiny, levels=(3,)), replace(tiny, normalization="model"), replace(tiny, levels=(2, 3, 4))):
        assert students_teacher.identity(17, SMALL, PatchExtractor(other, device="cpu")) != same


@pytest.mark.parametrize("damage", ["short", "changed"])
def test_a_damaged_teacher_is_trained_again_and_replaced(extractor, cache, monkeypatch, damage):
    monkeypatch.setenv("RCP_CACHE", str(cache / damage))
    first = teacher(17, SMALL, extractor)
    (path,) = (cache / damage).glob("students-teacher-p17-*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "short" else whole[:-4] + b"\x00\x00\x80\x3f")
    with pytest.warns(UserWarning, match="the teacher is trained again"):
        again = teacher(17, SMALL, extractor)
    assert path.read_bytes() == whole
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_an_interrupted_teacher_is_not_kept(extractor, cache, monkeypatch):
    monkeypatch.setenv("RCP_CACHE", str(cache / "interrupted"))
    monkeypatch.setattr(students_teacher, "train", lambda *_, **__: [])
    with pytest.raises(KeyboardInterrupt):
        teacher(17, SMALL, extractor)
    assert not list((cache / "interrupted").glob("*"))


# --- the scores -----------------------------------------------------------------------------------


def test_error_variance_and_score_equal_a_loop():
    y, said, scale = gaussian(2, 4, 3, 5), gaussian(3, 2, 4, 3, 5, seed=1), torch.tensor([[2.0, 0.5], [1.0, 4.0]])
    found = {
        "e": regression_error(y, said), "v": predictive_variance(said),
        "both": anomaly_scores(y, said, scale), "e alone": anomaly_scores(y, said, scale, variance=False),
    }  # fmt: skip
    for b in range(2):
        for r in range(3):
            for c in range(5):
                mean = sum(said[m, b, :, r, c] for m in range(3)) / 3
                e = float(((mean - y[b, :, r, c]) ** 2).sum())
                v = sum(float((said[m, b, :, r, c] ** 2).sum()) for m in range(3)) / 3 - float((mean**2).sum())  # as the paper writes it
                expected = {"e": e, "v": v, "both": (e - 2) / 0.5 + (v - 1) / 4, "e alone": (e - 2) / 0.5}
                assert {n: float(t[b, r, c]) for n, t in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_students_loss_equals_a_loop():
    s, y = gaussian(2, 4, 3, 5), gaussian(2, 4, 3, 5, seed=1)
    each = [float(((s[b, :, r, c] - y[b, :, r, c]) ** 2).sum()) for b in range(2) for r in range(3) for c in range(5)]
    assert float(student_loss(s, y)) == pytest.approx(sum(each) / 30, rel=1e-5)


def toy() -> tuple[torch.Tensor, torch.Tensor]:
    """Six cells in which two students nearly agree with the teacher; see the cells 4 and 5."""
    y = torch.zeros(1, 2, 1, 6)
    said = 0.1 * gaussian(2, 1, 2, 1, 6)
    said[0, 0, :, 0, 4], said[1, 0, :, 0, 4] = torch.tensor([3.0, 0.05]), torch.tensor([-3.0, 0.05])  # they disagree about zero
    said[:, 0, :, 0, 5] = torch.tensor([0.0, 3.0])  # they agree on something else
    return y, said


def test_a_patch_that_students_miss_in_opposite_ways_is_found_by_their_variance_alone():
    y, said = toy()
    scale = torch.tensor([[0.01, 0.01], [0.01, 0.01]])
    both, error = anomaly_scores(y, said, scale)[0, 0], anomaly_scores(y, said, scale, variance=False)[0, 0]
    assert both[4] > 100 > both[:4].max()
    assert error[4] <= error[:4].max() + 1


def test_a_patch_that_students_miss_alike_is_found_by_their_error_alone():
    y, said = toy()
    scale = torch.tensor([[0.01, 0.01], [0.01, 0.01]])
    assert anomaly_scores(y, said, scale)[0, 0, 5] > 100 > anomaly_scores(y, said, scale)[0, 0, :4].max()
    assert float(predictive_variance(said)[0, 0, 5]) == 0


def test_moments_equal_those_of_all_rows_together():
    parts = [gaussian(3, n, seed=n) * 5 + 1000 for n in (4, 1, 9)]
    whole = torch.cat(parts, 1)
    expected = torch.stack([whole.mean(1), whole.std(1, correction=0)], 1)
    torch.testing.assert_close(moments(iter(parts)), expected, rtol=1e-4, atol=1e-3)


# --- the detector ---------------------------------------------------------------------------------


def trained_and_held(detector: UninformedStudents, category) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = detector._pixels(category.train, "raise").values
    learned, held = rcp.training.held_out(len(pixels), detector.options.held_out, drawn(detector.seed))
    return pixels[learned], pixels[held]


def test_descriptors_are_standardised_over_the_training_images(fitted, category):
    pixels, _ = trained_and_held(fitted, category)
    y, _ = fitted._said(pixels, 17)
    rows = y.transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.std(1, correction=0), torch.ones(6), rtol=0, atol=1e-3)


def test_both_terms_are_normalised_by_held_out_images(fitted, category):
    _, held = trained_and_held(fitted, category)
    assert len(held) == 1 and fitted.fitted_on["scaled_on"] == "held-out images"
    y, said = fitted._said(held, 17)
    expected = [[float(x.mean()), float(x.std(correction=0))] for x in (regression_error(y, said), predictive_variance(said))]
    torch.testing.assert_close(fitted.scales[17], torch.tensor(expected), rtol=1e-3, atol=1e-5)
    _, grids = fitted._score(held)
    assert float(grids.mean()) == pytest.approx(0, abs=1e-3)
    only = UninformedStudents(fitted.features, options=replace(SMALL, variance=False), device="cpu")
    only._take(rcp.modelfile.ModelFile("students", {"history": []}, {}, {}, fitted._state()))
    assert float(only._score(held)[1].std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_a_step_compares_every_image_with_what_the_teacher_says_of_it(tiny, category, monkeypatch):
    views, seen = [], []
    monkeypatch.setattr("rcp.detectors.students.covered", lambda pixels, field: views.append(covered(pixels, field)) or views[-1])
    monkeypatch.setattr("rcp.detectors.students.student_loss", lambda said, y: seen.append((views[-1], y)) or student_loss(said, y))
    detector = UninformedStudents(tiny, options=replace(SMALL, steps=3), device="cpu").fit(category.train)
    assert len(seen) == 3 * SMALL.students
    for view, target in seen:
        torch.testing.assert_close(target, detector._target(view, 17), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [2, 3, 20])
def test_the_teacher_is_asked_once_an_image_and_says_what_it_says_in_a_step(fitted, category, batch):
    pixels = load_pixels(category.train, fitted.features.geometry).values
    twin = copy.copy(fitted)
    twin.options = replace(fitted.options, batch_size=batch)
    kept = twin._targets(pixels, 17)
    for i, pixel in enumerate(pixels):
        expected = fitted._target(covered(fitted.extractor.normalised(pixel[None]), 17), 17)[0]
        torch.testing.assert_close(kept[i], expected, atol=1e-5, rtol=1e-5)


def test_the_option_variance_switches_the_term_off_and_nothing_else(fitted, category):
    only = UninformedStudents(fitted.features, options=replace(SMALL, variance=False), device="cpu").fit(category.train)
    pixels, _ = trained_and_held(fitted, category)
    y, said = fitted._said(pixels[:2], 17)
    scale = fitted.scales[17]
    torch.testing.assert_close(fitted._score(pixels[:2])[1], anomaly_scores(y, said, scale))
    torch.testing.assert_close(only._score(pixels[:2])[1], anomaly_scores(y, said, scale, variance=False))
    assert "variance" in fitted.unit and "variance" not in only.unit


def test_several_fields_are_averaged_and_each_has_a_teacher_and_students(tiny, category):
    both = UninformedStudents(tiny, options=replace(SMALL, fields=(17, 33), steps=4), device="cpu").fit(category.train)
    assert set(both.history[0].losses) == {f"p{p}_student{i}" for p in (17, 33) for i in (1, 2, 3)} | {"loss"}
    assert both.history[0].losses["loss"] == pytest.approx(sum(v for n, v in both.history[0].losses.items() if n != "loss"))
    pixels, _ = trained_and_held(both, category)
    each = [anomaly_scores(*both._said(pixels, p), both.scales[p]) for p in (17, 33)]
    images, grids = both._score(pixels)
    torch.testing.assert_close(grids, (each[0] + each[1]) / 2)
    torch.testing.assert_close(images, grids.flatten(1).amax(1))
    assert both.state_bytes(9, (64, 96)) == 4 * sum(t.numel() for n, t in both._state().items() if n.startswith(("teach", "stud")))


def test_students_differ_learn_and_leave_the_teacher_alone(fitted, extractor):
    first, second, third = fitted.students["17"]
    assert not torch.equal(first[0].weight, second[0].weight) and not torch.equal(second[0].weight, third[0].weight)
    for name in ("p17_student1", "p17_student2", "p17_student3"):
        losses = [record.losses[name] for record in fitted.history]
        assert losses[-1] < losses[0]
    kept = teacher(17, SMALL, extractor).state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in fitted.teachers["17"].state_dict().items())


def test_weight_decay_acts_on_teacher_and_students(tiny, fitted, extractor, category, monkeypatch):
    free, held_back = (replace(SMALL, weight_decay=value, teacher_steps=2, steps=2) for value in (0.0, 10.0))
    assert not torch.equal(distil(17, free, extractor)[0].weight, distil(17, held_back, extractor)[0].weight)
    monkeypatch.setattr("rcp.detectors.students.teacher", lambda *_: fitted.teachers["17"])
    one, two = (UninformedStudents(tiny, options=o, device="cpu").fit(category.train) for o in (free, held_back))
    assert not torch.equal(one.students["17"][0][0].weight, two.students["17"][0][0].weight)


def test_maps_have_a_cell_every_four_pixels_and_an_image_alone_scores_as_in_company(fitted, photos):
    scores = fitted.score(photos)
    assert scores.patch_scores.shape == (7, 16, 24) and scores.maps.shape == (7, 64, 96)
    assert torch.equal(scores.image_scores, scores.patch_scores.flatten(1).amax(1))
    for i in (0, 5):
        torch.testing.assert_close(fitted.score([photos[i]]).patch_scores[0], scores.patch_scores[i], atol=1e-3, rtol=1e-3)


def test_sizes_that_four_does_not_divide_serve_as_well(tiny, category):
    odd = replace(tiny, crop=(62, 91))
    detector = UninformedStudents(odd, options=replace(SMALL, steps=2), device="cpu").fit(category.train)
    assert detector.score(category.test).patch_scores.shape == (7, 16, 23)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tiny, fitted, category):
    state = torch.random.get_rng_state()
    again = UninformedStudents(tiny, options=SMALL, device="cpu").fit(category.train)
    other = UninformedStudents(tiny, options=SMALL, seed=1, device="cpu").fit(category.train)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(again._state()[name], tensor) for name, tensor in fitted._state().items())
    assert not torch.equal(other.students["17"][0][0].weight, fitted.students["17"][0][0].weight)
    assert torch.equal(other.teachers["17"][0].weight, fitted.teachers["17"][0].weight)


def test_a_saved_detector_comes_back_to_the_bit_and_needs_no_cache(fitted, category, tmp_path, monkeypatch):
    folder = fitted.save(tmp_path / "model")
    monkeypatch.setenv("RCP_CACHE", str(tmp_path / "empty"))
    loaded = rcp.load(folder, device="cpu")
    assert isinstance(loaded, UninformedStudents) and loaded.options == SMALL and loaded.history == fitted.history
    assert torch.equal(loaded.score(category.test).patch_scores, fitted.score(category.test).patch_scores)
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("name", ["scale.17", "standard.17", "students.17.1.0.weight", "teachers.17.0.weight"])
def test_tensors_of_other_shapes_are_refused(tiny, fitted, name):
    state = fitted._state() | {name: torch.zeros(7)}
    with pytest.raises(ValueError, match=f"the tensor '{name}' should be"):
        UninformedStudents(tiny, options=SMALL, device="cpu")._take(rcp.modelfile.ModelFile("students", {"history": []}, {}, {}, state))


def test_a_killed_training_goes_on_to_the_same_students(tiny, fitted, category, tmp_path, monkeypatch):
    def kill(record):
        if record.step == 7:
            raise RuntimeError("killed")

    make = lambda **o: UninformedStudents(tiny, options=replace(SMALL, **o), device="cpu")  # noqa: E731
    with pytest.raises(RuntimeError, match="killed"):
        make().fit(category.train, callbacks=[kill], checkpoint=tmp_path / "state")
    resumed = make().fit(category.train, checkpoint=tmp_path / "state")
    assert all(torch.equal(resumed._state()[name], tensor) for name, tensor in fitted._state().items())
    with pytest.raises(ValueError, match="belongs to a training with other settings"):
        make(triplet=0.0).fit(category.train, checkpoint=tmp_path / "state")
    monkeypatch.setenv("RCP_CACHE", str(tmp_path))
    monkeypatch.setattr(students_teacher, "pictures", lambda: some_pictures()[::-1])
    with pytest.raises(ValueError, match="belongs to a training with other settings"):  # another teacher of equal settings
        make().fit(category.train, checkpoint=tmp_path / "state")


def test_without_held_out_images_the_training_images_set_the_scale_and_it_is_said(tiny, category):
    detector = UninformedStudents(tiny, options=replace(SMALL, held_out=0.0, steps=2), device="cpu")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        detector.fit(category.train)
    assert any("scaled by the training images" in str(one.message) for one in said)
    assert detector.fitted_on["scaled_on"] == "training images"


def test_it_finds_the_chequers(fitted, category):
    detector = UninformedStudents(fitted.features, options=replace(SMALL, steps=30, learning_rate=3e-3), device="cpu").fit(category.train)
    result = rcp.evaluate(detector, category.test)
    assert result.metrics["image_auroc"] == 1 and result.metrics["pixel_auroc"] > 0.9


def test_the_papers_values_and_bad_options():
    assert PAPER.fields == (17, 33, 65) and (PAPER.dimension, PAPER.students, PAPER.triplet, PAPER.compactness) == (128, 3, 0, 31.75)  # λ_c = 1 there
    assert PAPER_FEATURES.backbone == "resnet18" and PAPER_FEATURES.geometry.output_size(300, 400) == (256, 256)
    for bad, sentence in (
        ({"fields": (17, 20)}, "fields must be some of 17, 33, 65, each once"),
        ({"fields": ()}, "fields must be some of"),
        ({"fields": (33, 33)}, "each once"),
        ({"students": 1}, "students must be at least 1, and 2 for a variance"),
        ({"students": 0, "variance": False}, "students must be at least 1"),
        ({"dimension": 0}, "dimension and side must be positive"),
        ({"width": 1}, "width at least 2"),
        ({"teacher_batch": 1}, "teacher_batch and crops at least 2"),
        ({"teacher_rate": 0.0}, "teacher_rate must be positive"),
        ({"weight_decay": -1.0}, "weight_decay not negative"),
        ({"margin": -1.0}, "margin must not be negative"),
        ({"steps": -1}, "steps must not be negative"),
    ):
        with pytest.raises(ValueError, match=sentence):
            UninformedStudentsOptions(**bad)
    assert UninformedStudentsOptions(students=1, variance=False).students == 1
