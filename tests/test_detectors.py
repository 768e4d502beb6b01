"""Detectors: the face they share, each variant against a pipeline written out by hand, and the ensemble's mean."""

import importlib.util
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch.nn import functional as F

import rcp
from rcp import BankSettings, Ensemble, FeatureSettings, MemoryLimit, PatchCore, ReConPatch, Scores, TrainSettings
from rcp.calibration import Calibration
from rcp.coreset import greedy_coreset
from rcp.head import Head
from rcp.images import Geometry, ImageError
from rcp.memory import MemoryBank
from rcp.scoring import pixel_maps, score_images, threshold
from rcp.store import Store

BANK = BankSettings(coreset=0.1, projection=16, folds=3)
TRAINING = TrainSettings(dimension=24, projection=12, epochs=1, batch_size=96)
UNTRAINED = replace(TRAINING, epochs=0)


def patchcore(tiny: FeatureSettings, **options) -> PatchCore:
    return PatchCore(tiny, **{"bank": BANK, "device": "cpu"} | options)


def reconpatch(tiny: FeatureSettings, **options) -> ReConPatch:
    return ReConPatch(tiny, **{"bank": BANK, "training": TRAINING, "device": "cpu"} | options)


MAKERS = [patchcore, reconpatch]
both = pytest.mark.parametrize("make", MAKERS)


@pytest.fixture(scope="module")
def fitted(tiny, photos) -> dict:
    return {make: make(tiny).fit(photos) for make in MAKERS}


# --- the face --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:no threshold")
def test_three_lines_do_the_job(category):
    folder = category.root.parent
    detector = rcp.ReConPatch(backbone="efficientnet_lite0")
    detector.fit(rcp.mvtec(folder, "thing").train[:1])
    result = rcp.evaluate(detector, rcp.mvtec(folder, "thing").test)
    assert result.metrics["image_auroc"] == 1.0 and result.metrics["pixel_auroc"] > 0.8
    assert detector.memory.rows.shape == (784 // 100, 512) and len(detector.history) == 10


def test_with_the_embedded_backbone_patchcore_finds_the_defects(category):
    settings = FeatureSettings("efficientnet_lite0", resize=144, crop=(128, 192))
    detector = PatchCore(settings, bank=BankSettings(coreset=0.1, folds=4)).fit(category.train)
    result = rcp.evaluate(detector, category.test, false_alarm_rate=0.2)
    assert result.metrics["image_auroc"] == 1.0 and result.metrics["pixel_auroc"] > 0.9
    assert result.verdict.detected == result.verdict.anomalies == 3


@both
def test_fit_returns_the_detector_and_says_what_it_saw(fitted, make):
    detector = fitted[make]
    record = detector.fitted_on
    assert (record["images"], record["patches"], record["grid"], record["skipped"]) == (7, 7 * 96, [8, 12], [])
    assert record["memory_rows"] == len(detector.memory) == 67
    assert record["covering_radius"] == float(detector.coreset.radii[-1]) > 0
    assert {"features", "coreset", "training", "calibration"} <= set(detector.stopwatch.seconds)


@both
def test_scores_have_the_shapes_that_they_say(fitted, make, photos):
    scores = fitted[make].score(photos)
    images, maps = scores
    assert len(scores) == 7 and images.shape == (7,) and scores.patch_scores.shape == (7, 8, 12)
    assert maps.shape == (7, 64, 96) and images.dtype == maps.dtype == torch.float32
    assert scores.indices == list(range(7)) and scores.sizes == [Image.open(p).size[::-1] for p in photos]
    assert bool((images >= 0).all()) and scores.geometry == Geometry(72, (64, 96))
    assert torch.equal(maps, pixel_maps(scores.patch_scores, (64, 96), 4.0))


@both
def test_images_paths_splits_and_features_give_the_same(tiny, make, category):
    from_split, from_paths = make(tiny).fit(category.train), make(tiny).fit(category.train.paths)
    features = from_split.extractor.extract(category.train)
    from_features = make(tiny).fit(features)
    expected = from_split.score(category.test).image_scores
    for detector in (from_paths, from_features):
        assert torch.equal(detector.score(category.test).image_scores, expected)
    assert torch.equal(from_split.score(from_split.extractor.extract(category.test)).image_scores, expected)


@both
def test_scores_do_not_depend_on_the_company(fitted, make, photos):
    scores = fitted[make].score(photos)
    for i in (0, 4, 6):
        alone = fitted[make].score([photos[i]])
        torch.testing.assert_close(alone.image_scores[0], scores.image_scores[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.patch_scores[0], scores.patch_scores[i], atol=1e-5, rtol=1e-5)


@both
def test_features_are_scored_in_batches_that_change_nothing(tiny, make, photos):
    detector = make(tiny).fit(photos)
    features = detector.extractor.extract(photos)
    whole = detector.score(features)
    detector.extractor.batch_size = 2
    parts = detector.score(features)
    torch.testing.assert_close(parts.patch_scores, whole.patch_scores, atol=1e-5, rtol=1e-5)
    assert parts.indices == whole.indices and parts.sizes == whole.sizes


@both
def test_unreadable_images_are_skipped_and_listed_or_raise(tiny, make, photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    paths = [photos[0], broken, *photos[1:]]
    with pytest.raises(ImageError, match=re.escape(str(broken))):
        make(tiny).fit(paths)
    detector = make(tiny).fit(paths, on_error="skip")
    assert detector.fitted_on["images"] == 7 and detector.fitted_on["skipped"][0][0] == broken.as_posix()
    with pytest.raises(ImageError, match=re.escape(str(broken))):
        detector.score(paths)
    features = detector.extractor.extract(paths, on_error="skip")
    for scores in (detector.score(paths, on_error="skip"), detector.score(features)):
        assert scores.indices == [0, 2, 3, 4, 5, 6, 7] and [path for path, _ in scores.skipped] == [broken]
        torch.testing.assert_close(scores.image_scores, detector.score(photos).image_scores, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=re.escape(f"none of the images could be read; the first, {broken}")):
        detector.score([broken], on_error="skip")


@both
def test_before_fit_there_is_one_clear_error(tiny, make, photos, tmp_path):
    detector = make(tiny)
    for use in (lambda: detector.score(photos), detector.threshold, detector.normal_scores,
                lambda: detector.save(tmp_path / "m")):  # fmt: skip
        with pytest.raises(RuntimeError, match=rf"this {type(detector).__name__} has no memory yet: call fit"):
            use()
    assert not (tmp_path / "m").exists()


@both
def test_features_of_other_settings_are_refused(fitted, make, tiny, photos):
    other = rcp.PatchExtractor(replace(tiny, patch_size=5), device="cpu").extract(photos)
    with pytest.raises(ValueError, match="patch_size=5.*this detector needs.*patch_size=3"):
        fitted[make].score(other)
    with pytest.raises(ValueError, match="patch_size=5.*this detector needs.*patch_size=3"):
        make(tiny).fit(other)


def test_features_of_other_weights_under_the_same_name_are_refused(tiny, photos, tmp_path):
    file = tmp_path / "w.safetensors"
    state = timm.create_model("test_resnet", pretrained=False).state_dict()
    safetensors.torch.save_file(state, file)
    settings = replace(tiny, pretrained=True, weights=str(file))
    features = rcp.PatchExtractor(settings, device="cpu").extract(photos)
    safetensors.torch.save_file({n: t + t.is_floating_point() * t for n, t in state.items()}, file)
    detector = patchcore(settings)
    assert detector.extractor.backbone.sha256 != features.weights_sha256
    with pytest.raises(ValueError, match="weights"):
        detector.fit(features)


@both
def test_no_images_are_refused(tiny, make):
    with pytest.raises(ValueError, match="there are no images"):
        make(tiny).fit([])


# --- a bound on memory, and features of half the size ----------------------------------------------------


@pytest.fixture
def files(monkeypatch) -> list[str]:
    """The folders in which mapped files were made."""
    folders, real = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *, dir: folders.append(str(dir)) or real(dir=dir))
    return folders


def assert_fitted_alike(a, b) -> None:
    assert torch.equal(a.coreset.indices, b.coreset.indices) and torch.equal(a.coreset.radii, b.coreset.radii)
    assert torch.equal(a.memory.rows, b.memory.rows) and a.memory.rows.dtype == b.memory.rows.dtype == torch.float32
    for name, tensor in a.calibration.tensors().items():
        assert torch.equal(tensor, b.calibration.tensors()[name])
    assert a.fitted_on == b.fitted_on and a.settings() == b.settings()


@both
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", [{}, {"projection": None}])
def test_fitted_in_files_is_fitted_in_memory_bit_by_bit(make, tiny, photos, category, tmp_path, files, stored, change):
    options = {"bank": replace(BANK, **change)}
    kept = make(replace(tiny, stored=stored), **options).fit(photos)
    assert files == [] and kept.limit == MemoryLimit()
    mapped = make(replace(tiny, stored=stored), limit=MemoryLimit(1, tmp_path), **options).fit(photos)
    assert files == [str(tmp_path)] * 2  # features, and their projection
    assert list(tmp_path.iterdir()) == []
    assert_fitted_alike(kept, mapped)
    if make is reconpatch:
        assert torch.equal(kept.weight, mapped.weight)
        assert mapped.weight.untyped_storage().nbytes() == mapped.weight.nbytes
    found, expected = mapped.score(category.test), kept.score(category.test)
    assert torch.equal(found.patch_scores, expected.patch_scores) and len(files) == 2


def test_the_points_of_a_fold_wait_in_a_file_too_if_they_are_picked_in_parts(tiny, photos, tmp_path, files, monkeypatch):
    monkeypatch.setattr(rcp.detectors.bank, "CHUNK", 100)  # several, the last one shorter
    bank = replace(BANK, parts=2)
    kept, mapped = (patchcore(tiny, bank=bank, limit=limit).fit(photos) for limit in
                    (MemoryLimit(), MemoryLimit(1, tmp_path)))  # fmt: skip
    assert len(files) == 2 + BANK.folds
    assert_fitted_alike(kept, mapped)
    points = torch.randn(333, 5, generator=torch.Generator().manual_seed(0))
    where = torch.arange(332, 2, -2)  # 165 of them
    for detector in (kept, mapped):
        assert torch.equal(detector._copied(points, where), points[where])


def test_batches_of_whole_images_are_drawn_from_a_file_too(tiny, photos, tmp_path):
    training = replace(TRAINING, batch="images", epochs=2)
    fitted = [reconpatch(tiny, training=training, limit=limit).fit(photos) for limit in
              (MemoryLimit(), MemoryLimit(1, tmp_path))]  # fmt: skip
    assert torch.equal(fitted[0].weight, fitted[1].weight)
    assert_fitted_alike(*fitted)


def test_the_members_of_an_ensemble_have_limits_of_their_own(tiny, category, tmp_path, files):
    def members(**options):
        return [patchcore(tiny, variant="amazon", **options), reconpatch(tiny, **options)]

    kept = Ensemble(members()).fit(category.train)
    mapped = Ensemble(members(limit=MemoryLimit(1, tmp_path))).fit(category.train)
    assert len(files) == 4 and list(tmp_path.iterdir()) == []
    for a, b in zip(kept.members, mapped.members, strict=True):
        assert_fitted_alike(a, b)
    assert torch.equal(kept.score(category.test).patch_scores, mapped.score(category.test).patch_scores)


@both
def test_pages_of_the_features_are_let_go_of_whenever_they_were_read(make, tiny, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(rcp.detectors.bank, "CHUNK", 100)  # 672 rows: seven chunks
    detector, events = make(tiny, limit=MemoryLimit(1, tmp_path)), []
    features, embed, release = detector.extractor.extract(photos, limit=detector.limit), detector.embed, Store.release
    monkeypatch.setattr(Store, "release", lambda self: events.append(self is features.store) or release(self))
    detector.embed = lambda rows: events.append("read") or embed(rows)
    detector.fit(features)
    # The points chunk by chunk; the memory's rows; then for each of three folds its memory's rows, and the images held out.
    assert events == ["read", True] * 7 + ["read", True] + ["read", "read", True] * 3
    del detector.embed
    assert_fitted_alike(detector, make(tiny).fit(photos))


@both
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_streamed_and_stored_features_score_bit_by_bit_the_same(make, tiny, photos, category, stored):
    detector = make(replace(tiny, stored=stored)).fit(photos)
    detector.extractor.batch_size = 3
    features = detector.extractor.extract(category.test)
    streamed, kept = detector.score(category.test), detector.score(features)
    assert features.values.dtype == getattr(torch, stored) and streamed.patch_scores.dtype == torch.float32
    assert torch.equal(streamed.patch_scores, kept.patch_scores)
    assert torch.equal(streamed.image_scores, kept.image_scores)


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
@pytest.mark.parametrize("limit", [False, True])
def test_the_coreset_of_half_precise_features_is_picked_in_float32(tiny, photos, tmp_path, stored, limit):
    limit = MemoryLimit(1, tmp_path) if limit else MemoryLimit()
    detector = patchcore(replace(tiny, stored=stored), limit=limit).fit(photos)
    rows = detector.extractor.extract(photos).rows.float()
    slow = greedy_coreset(rows, 0.1, generator=torch.Generator().manual_seed(0), projection=16)
    assert torch.equal(detector.coreset.indices, slow.indices)
    torch.testing.assert_close(detector.coreset.radii, slow.radii)
    assert torch.equal(detector.memory.rows, rows[slow.indices])


@both
@pytest.mark.parametrize(("stored", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precise_features_score_close_to_float32(fitted, make, tiny, photos, category, stored, tolerance):
    half = make(replace(tiny, stored=stored)).fit(photos)
    half.coreset, half.memory = fitted[make].coreset, fitted[make].memory  # nearly tied picks may differ
    found, expected = (d.score(category.test).image_scores for d in (half, fitted[make]))
    assert float((found - expected).norm() / expected.norm()) < tolerance


@both
def test_features_stored_another_way_are_refused(fitted, make, tiny, photos):
    half = rcp.PatchExtractor(replace(tiny, stored="float16"), device="cpu").extract(photos)
    with pytest.raises(ValueError, match="stored='float16'.*this detector needs.*stored='float32'"):
        fitted[make].score(half)


@both
def test_how_features_are_stored_is_saved_and_where_they_waited_is_not(make, tiny, photos, category, tmp_path):
    (tmp_path / "here").mkdir()
    detector = make(replace(tiny, stored="float16"), limit=MemoryLimit(1, tmp_path / "here")).fit(photos)
    loaded = rcp.load(detector.save(tmp_path / "model"), device="cpu")
    assert loaded.features.stored == "float16" and loaded.limit == MemoryLimit()
    assert torch.equal(loaded.score(category.test).patch_scores, detector.score(category.test).patch_scores)


# --- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [lambda tiny: PatchCore(tiny, coreset=0.1), lambda tiny: PatchCore(tiny, layers=(2, 3)),
     lambda tiny: ReConPatch(tiny, epochs=3), lambda tiny: ReConPatch(tiny, variant="paper"),
     lambda tiny: BankSettings(coreset_ratio=0.1), lambda tiny: TrainSettings(lr=1e-3),
     lambda tiny: Ensemble([PatchCore(tiny)], weights=[1]), lambda tiny: PatchCore(tiny).fit([], epochs=3),
     lambda tiny: PatchCore(tiny).score([], batch_size=3), lambda tiny: PatchCore.load("x", strict=False)],
)  # fmt: skip
def test_an_unknown_option_is_an_error(tiny, call):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        call(tiny)


@pytest.mark.parametrize("bad", [{"coreset": 0}, {"coreset": 1.5}, {"coreset": -0.1}, {"folds": 1}, {"folds": -2},
                                 {"smoothing": -1.0}])  # fmt: skip
def test_bank_settings_that_cannot_be_are_refused_at_once(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        BankSettings(**bad)


@pytest.mark.parametrize("bad", [{"search": "annoy"}, {"neighbours": 1}, {"projection": 0}])
def test_more_bank_settings_that_cannot_be_are_refused_at_once(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        BankSettings(**bad)


def test_an_unknown_reweighting_is_refused_at_once(tiny):
    with pytest.raises(ValueError, match="reweight"):
        ReConPatch(tiny, reweight="pixel")


def test_an_unknown_variant_is_refused(tiny):
    with pytest.raises(ValueError, match="variant must be one of concat, paper, amazon, got 'anomalib'"):
        PatchCore(tiny, variant="anomalib")


def test_nothing_is_loaded_before_it_is_needed(monkeypatch):
    monkeypatch.setattr(rcp.features, "load_backbone", pytest.fail)
    assert PatchCore("wide_resnet50_2").features.backbone == "wide_resnet50_2"
    assert ReConPatch(FeatureSettings("densenet201")).features.backbone == "densenet201"


# --- PatchCore's variants --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variants(tiny, photos) -> dict[str, PatchCore]:
    return {name: patchcore(tiny, variant=name).fit(photos) for name in ("concat", "paper", "amazon")}


def test_the_variants_are_what_their_names_say(variants):
    said = {name: (d.features.merge, d.reweight, d.squared) for name, d in variants.items()}
    assert said == {"concat": ("concat", "off", False), "paper": ("pool", "image", False),
                    "amazon": ("pool", "off", True)}  # fmt: skip
    assert PatchCore().variant == "concat"


def test_amazons_scores_are_the_papers_distances_squared(variants, category):
    paper, amazon = (variants[name].score(category.test) for name in ("paper", "amazon"))
    assert torch.equal(variants["paper"].memory.rows, variants["amazon"].memory.rows)
    torch.testing.assert_close(amazon.patch_scores, paper.patch_scores**2)
    torch.testing.assert_close(amazon.image_scores, paper.patch_scores.flatten(1).amax(1) ** 2)


def test_the_paper_variant_reweights_the_image_score_only(variants, category):
    scores, plain = variants["paper"].score(category.test), variants["concat"].score(category.test)
    assert bool((scores.image_scores < scores.patch_scores.flatten(1).amax(1)).all())
    assert torch.equal(plain.image_scores, plain.patch_scores.flatten(1).amax(1))


def test_concat_and_paper_have_different_features(variants):
    assert variants["concat"].memory.rows.shape == (67, 240)
    assert variants["paper"].memory.rows.shape == (67, 1024)


def test_concat_is_coreset_and_nearest_row_by_hand(tiny, photos, category):
    detector = patchcore(tiny).fit(photos)
    rows, test = (detector.extractor.extract(images).rows for images in (photos, category.test))
    chosen = greedy_coreset(rows, 0.1, generator=torch.Generator().manual_seed(0), projection=16).indices
    assert torch.equal(detector.coreset.indices, chosen) and detector.coreset.dimension == 16
    assert torch.equal(detector.memory.rows, rows[chosen])
    slow = torch.cdist(test.double(), rows[chosen].double()).min(1).values.view(7, 8, 12)
    scores = detector.score(category.test)
    torch.testing.assert_close(scores.patch_scores.double(), slow, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.image_scores.double(), slow.flatten(1).amax(1), atol=1e-4, rtol=1e-4)


def test_both_searches_give_the_same_scores(tiny, photos, category):
    found = [patchcore(tiny, bank=replace(BANK, search=search)).fit(photos) for search in ("torch", "faiss")]
    torch.testing.assert_close(*(d.score(category.test).patch_scores for d in found), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(*(d.calibration.image_scores for d in found), atol=1e-4, rtol=1e-4)


# --- ReConPatch ------------------------------------------------------------------------------------------


def test_untrained_reconpatch_is_a_random_f_then_coreset_then_nearest_row(tiny, photos, category):
    detector = reconpatch(tiny, training=UNTRAINED, reweight="off", seed=5).fit(photos)
    f = Head(240, 24, 12, generator=torch.Generator().manual_seed(5)).f.weight.detach()
    rows, test = (detector.extractor.extract(images).rows @ f.T for images in (photos, category.test))
    chosen = greedy_coreset(rows, 0.1, generator=torch.Generator().manual_seed(5), projection=16).indices
    assert torch.equal(detector.weight, f) and detector.history == []
    assert torch.equal(detector.coreset.indices, chosen)
    torch.testing.assert_close(detector.memory.rows, rows[chosen], atol=1e-5, rtol=1e-5)
    slow = torch.cdist(test.double(), rows[chosen].double()).min(1).values.view(7, 8, 12)
    torch.testing.assert_close(detector.score(category.test).patch_scores.double(), slow, atol=1e-4, rtol=1e-4)


def test_by_default_reconpatch_reweights_every_patch(tiny, photos, category):
    detector = reconpatch(tiny).fit(photos)
    test = detector.extractor.extract(category.test).values @ detector.weight.T
    images, grids = score_images(test, MemoryBank(detector.memory.rows), reweight="patch", neighbours=9)
    scores = detector.score(category.test)
    torch.testing.assert_close(scores.patch_scores, grids, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scores.image_scores, images, atol=1e-5, rtol=1e-4)
    assert ReConPatch(tiny).reweight == "patch"


@pytest.mark.parametrize("reweight", ["off", "image", "patch"])
@pytest.mark.parametrize("b", [2, 20])
def test_the_settings_of_eq_10_reach_the_scores(tiny, photos, category, reweight, b):
    detector = reconpatch(tiny, training=UNTRAINED, reweight=reweight, bank=replace(BANK, neighbours=b)).fit(photos)
    test = detector.extractor.extract(category.test).values @ detector.weight.T
    images, grids = score_images(test, MemoryBank(detector.memory.rows), reweight=reweight, neighbours=b)
    scores = detector.score(category.test)
    torch.testing.assert_close(scores.patch_scores, grids, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scores.image_scores, images, atol=1e-5, rtol=1e-4)


def test_training_moves_f_and_leaves_a_history_and_g_behind(tiny, photos):
    trained, untrained = reconpatch(tiny).fit(photos), reconpatch(tiny, training=UNTRAINED).fit(photos)
    assert trained.weight.shape == untrained.weight.shape == (24, 240)
    assert not torch.equal(trained.weight, untrained.weight) and not trained.weight.requires_grad
    assert [record.epoch for record in trained.history] == [1]


def test_the_embedding_is_the_students_f_after_the_last_step(tiny, photos):
    seen = []
    training = replace(TRAINING, epochs=2, learning_rate=1e-3)
    detector = reconpatch(tiny, training=training)
    detector.fit(photos, callbacks=[lambda end: seen.append(end.head.f.weight.detach().clone())])
    assert torch.equal(detector.weight, seen[-1]) and not torch.equal(seen[-2], seen[-1])
    rows = detector.extractor.extract(photos).rows[detector.coreset.indices]
    torch.testing.assert_close(detector.memory.rows, rows @ detector.weight.T, atol=1e-5, rtol=1e-4)


def test_callbacks_and_checkpoints_reach_the_training(tiny, photos, tmp_path):
    seen = []
    file = tmp_path / "ck.safetensors"
    first = reconpatch(tiny).fit(photos, callbacks=[lambda end: seen.append(end.epoch)], checkpoint=file)
    again = reconpatch(tiny).fit(photos, checkpoint=file)  # nothing left to train
    assert seen == [0, 1] and file.is_file() and torch.equal(first.weight, again.weight)


@both
def test_rows_are_embedded_in_chunks_that_change_nothing(fitted, make, tiny, photos, monkeypatch):
    monkeypatch.setattr(rcp.detectors.bank, "CHUNK", 100)  # does not divide 672 rows
    parts = make(tiny).fit(photos)
    assert torch.equal(parts.coreset.indices, fitted[make].coreset.indices)
    torch.testing.assert_close(parts.coreset.radii, fitted[make].coreset.radii, atol=1e-4, rtol=1e-4)


# --- randomness ------------------------------------------------------------------------------------------


@both
def test_the_same_seed_gives_the_same_scores_and_another_seed_others(fitted, make, tiny, photos, category):
    expected = fitted[make].score(category.test)
    same, other = make(tiny).fit(photos), make(tiny, seed=1).fit(photos)
    assert torch.equal(same.score(category.test).patch_scores, expected.patch_scores)
    assert torch.equal(same.coreset.indices, fitted[make].coreset.indices)
    assert not torch.equal(other.score(category.test).patch_scores, expected.patch_scores)


@both
def test_fitting_again_forgets_the_first_time(make, tiny, photos, category):
    detector = make(tiny).fit(category.test.paths).fit(photos)
    fresh = make(tiny).fit(photos)
    assert torch.equal(detector.score(category.test).patch_scores, fresh.score(category.test).patch_scores)
    assert torch.equal(detector.calibration.image_scores, fresh.calibration.image_scores)


@both
def test_global_seeds_decide_nothing(make, tiny, photos):
    torch.manual_seed(1)
    first = make(tiny).fit(photos).score(photos)
    torch.manual_seed(2)
    assert torch.equal(make(tiny).fit(photos).score(photos).patch_scores, first.patch_scores)


@pytest.mark.parametrize("make", [patchcore, reconpatch])
def test_global_generators_are_left_alone(make, tiny, photos):
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    make(tiny).fit(photos).score(photos)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


# --- few and flat images ---------------------------------------------------------------------------------


@both
def test_one_training_image_fits_and_scores_but_has_no_threshold(make, tiny, photos, category):
    with pytest.warns(UserWarning, match="single training image"):
        detector = make(tiny).fit(photos[:1])
    assert detector.calibration is None
    assert bool(torch.isfinite(detector.score(category.test).image_scores).all())
    with pytest.raises(RuntimeError, match="no held-out normal scores: fit it with folds >= 2 on at least two images"):
        detector.threshold()


@both
def test_a_coreset_of_a_tiny_set_has_one_row(make, tiny, photos, category):
    detector = make(tiny, bank=BankSettings(coreset=0.001, folds=0)).fit(photos[:1])
    scores = detector.score(category.test)
    assert len(detector.memory) == 1 and bool((scores.image_scores > 0).all())


@both
def test_a_set_of_equal_flat_images_is_defined(make, tiny, photos, tmp_path):
    flat = [tmp_path / f"{i}.png" for i in range(3)]
    for path in flat:
        Image.new("RGB", (130, 90), (90, 120, 60)).save(path)
    detector = make(tiny).fit(flat)
    own, other = detector.score(flat), detector.score(photos[:1])
    assert bool(torch.isfinite(own.image_scores).all())
    torch.testing.assert_close(own.image_scores, own.image_scores[:1].expand(3), atol=1e-4, rtol=1e-4)
    assert float(other.image_scores[0]) > float(own.image_scores[0])
    limit = detector.threshold(0.25)
    assert not bool((own.image_scores > limit.value + 1e-5).any()) and float(other.image_scores[0]) > limit.value


def test_the_threshold_is_that_of_the_held_out_scores(fitted):
    detector = fitted[patchcore]
    assert detector.threshold(0.2) == threshold(detector.calibration.image_scores, 0.2)
    with pytest.raises(ValueError, match="7 held-out normal images cannot support a false-alarm rate of 0.05"):
        detector.threshold()


# --- maps ------------------------------------------------------------------------------------------------


def one_hot_scores(patch: tuple[int, int], sizes: list[tuple[int, int]], smoothing: float) -> Scores:
    grids = torch.zeros(len(sizes), 8, 12)
    grids[:, *patch] = 1
    return Scores(grids.amax((1, 2)), grids, list(range(len(sizes))), sizes, [], Geometry(72, (64, 96)), smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 2.0])
def test_a_hot_patch_is_hot_at_its_place_in_the_file(smoothing):
    sizes = [(90, 130), (72, 120), (144, 400)]  # resized to 72x104, 72x120, 72x200; cropped at the centre
    scores = one_hot_scores((2, 9), sizes, smoothing)  # its centre: pixel (20, 76) of the crop
    for i, (h, w) in enumerate(sizes):
        found = scores.original_map(i)
        resized_w = (104, 120, 200)[i]
        y, x = (20 + 4) * h / 72, (76 + (resized_w - 96) / 2) * w / resized_w
        top = (found > 0.98 * found.max()).nonzero().double().mean(0) + 0.5
        assert found.shape == (h, w) and abs(float(top[0]) - y) <= 1 and abs(float(top[1]) - x) <= 1
    y, x = divmod(int(scores.maps[0].argmax()), 96)
    assert abs(y - 20) <= 1 and abs(x - 76) <= 1 and scores.maps.shape == (3, 64, 96)


def test_without_a_crop_the_original_map_is_the_whole_image(tiny, photos):
    detector = patchcore(replace(tiny, resize=(64, 96), crop=None), bank=replace(BANK, smoothing=2.0)).fit(photos)
    scores = detector.score(photos)
    for i, size in enumerate(scores.sizes):
        torch.testing.assert_close(scores.original_map(i), pixel_maps(scores.patch_scores, size, 2.0)[i])


# --- the ensemble ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ensemble(tiny, category) -> Ensemble:
    coarse = PatchCore(replace(tiny, levels=(3,)), bank=BANK, device="cpu")  # 4x6 patches
    return Ensemble([coarse, reconpatch(tiny), patchcore(tiny, variant="amazon")]).fit(category.train)


def slow_z(values: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    middle = np.median(normal)
    return (values - middle) / (1.4826 * np.median(np.abs(normal - middle)))


@pytest.fixture
def odd(tiny, category) -> Ensemble:
    """Fitted on seven images: the median is a score, whatever the convention for even numbers."""
    return Ensemble([patchcore(tiny, variant="amazon"), reconpatch(tiny)]).fit(category.train[:7])


def test_the_ensembles_score_is_the_mean_of_modified_z_scores(odd, category):
    parts = [slow_z(m.score(category.test).image_scores, m.calibration.image_scores.numpy()) for m in odd.members]
    expected = (parts[0] + parts[1]) / 2
    assert not torch.allclose(parts[0], parts[1])
    torch.testing.assert_close(odd.score(category.test).image_scores.double(), expected.double(), atol=1e-4, rtol=1e-4)


def test_the_ensembles_patches_are_the_mean_on_the_finest_grid(ensemble, category):
    found, parts = ensemble.score(category.test), []
    for member in ensemble.members:
        normal = member.calibration
        z = (member.score(category.test).patch_scores - normal.patch_median) / (1.4826 * float(normal.patch_mad))
        parts.append(F.interpolate(z[:, None], (8, 12), mode="bilinear")[:, 0])
    assert ensemble.members[0].fitted_on["grid"] == [4, 6] and found.patch_scores.shape == (7, 8, 12)
    torch.testing.assert_close(found.patch_scores, sum(parts) / 3, atol=1e-4, rtol=1e-4)
    assert found.maps.shape == (7, 64, 96) and found.sizes == ensemble.members[0].score(category.test).sizes


def test_no_members_unit_decides_the_ensembles_score(odd, category):
    before = odd.score(category.test).image_scores
    member = odd.members[0]  # squared distances: scaling its features by 10 scales its scores by 100
    member.memory = MemoryBank(member.memory.rows * 10)
    member.embed = lambda rows: rows * 10
    was = member.calibration
    member.calibration = Calibration(was.image_scores * 100, was.patch_quantiles * 100, was.patch_mad * 100)
    torch.testing.assert_close(odd.score(category.test).image_scores, before, atol=1e-3, rtol=1e-3)


def test_the_ensembles_threshold_comes_from_its_held_out_scores(odd):
    held_out = [slow_z(m.calibration.image_scores, m.calibration.image_scores.numpy()) for m in odd.members]
    expected = threshold((held_out[0] + held_out[1]) / 2, 0.25)
    found = odd.threshold(0.25)
    assert found.value == pytest.approx(expected.value, rel=1e-4) and found.normals == 7


def test_an_ensemble_of_one_ranks_as_its_member(tiny, category):
    member = patchcore(tiny).fit(category.train)
    found = Ensemble([member]).score(category.test).image_scores
    assert torch.equal(found.argsort(), member.score(category.test).image_scores.argsort())


def test_an_ensemble_skips_and_lists_as_its_members_do(ensemble, photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.touch()
    scores = ensemble.score([broken, *photos[:2]], on_error="skip")
    assert scores.indices == [1, 2] and [path for path, _ in scores.skipped] == [broken]
    assert scores.image_scores.shape == (2,)


def test_the_colour_scale_is_set_by_held_out_normals(ensemble, tiny):
    tops = []
    for member in ensemble.members:
        normal = member.calibration
        assert member.colour_limits() == normal.colour_limits()
        tops.append(float(normal.patch_quantiles[999] - normal.patch_median) / (1.4826 * float(normal.patch_mad)))
    assert ensemble.colour_limits() == pytest.approx((0.0, 2 * sum(tops) / 3), rel=1e-4)
    assert patchcore(tiny).colour_limits() is None


def test_members_with_another_geometry_are_refused(tiny):
    with pytest.raises(ValueError, match="same resize and crop"):
        Ensemble([PatchCore(tiny), PatchCore(replace(tiny, crop=(64, 64)))])


def test_an_ensemble_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one detector"):
        Ensemble([])


def test_members_without_held_out_scores_are_refused(tiny, photos):
    with pytest.raises(ValueError, match="folds >= 2"):
        Ensemble([patchcore(tiny, bank=replace(BANK, folds=0))]).fit(photos)
    with pytest.raises(RuntimeError, match="has no memory yet"):
        Ensemble([patchcore(tiny)]).score(photos)


def test_normal_scores_that_are_all_equal_are_refused(tiny, category):
    member = patchcore(tiny).fit(category.train)
    member.calibration = replace(member.calibration, image_scores=torch.ones(8))
    for use in (lambda: Ensemble([member]).score(category.test), Ensemble([member]).threshold):
        with pytest.raises(ValueError, match="median absolute deviation of the normal scores is 0"):
            use()


def test_an_ensemble_can_be_evaluated(ensemble, category):
    result = rcp.evaluate(ensemble, category.test, false_alarm_rate=0.2)
    assert result.verdict.threshold == ensemble.threshold(0.2)


# --- the import ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modules_after_import() -> set[str]:
    code = "import sys, rcp; print(*sys.modules, sep='\\n')"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["matplotlib", "faiss", "umap", "ipywidgets",
                                    "IPython", "sklearn", "pytest"])  # fmt: skip
def test_importing_rcp_does_not_import(module, modules_after_import):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed, so nothing could import it")
    assert "rcp.detectors.bank" in modules_after_import
    assert module not in modules_after_import


def test_a_coreset_in_parts_serves_the_detector_and_its_calibration(tiny, photos):
    whole, split = (patchcore(tiny, bank=replace(BANK, parts=parts)).fit(photos) for parts in (1, 3))
    assert len(split.memory) == len(whole.memory)
    assert len(split.calibration.image_scores) == len(photos) and (split.calibration.image_scores > 0).all()
    assert not torch.equal(split.coreset.indices, whole.coreset.indices)
    with pytest.raises(ValueError, match="parts"):
        BankSettings(parts=0)


def test_calibration_in_parts_holds_its_fold_out(tiny, photos, monkeypatch):
    seen, pick = [], PatchCore._pick

    def spying(self, points, generator, among=None):
        seen.append((among, pick(self, points, generator, among)))
        return seen[-1][1]

    monkeypatch.setattr(PatchCore, "_pick", spying)
    patchcore(tiny, bank=replace(BANK, parts=2)).fit(photos)
    assert [among is None for among, _ in seen] == [True, False, False, False]
    assert all(among[found.indices].all() for among, found in seen[1:])
