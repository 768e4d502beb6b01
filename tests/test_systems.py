"""The face that all the other systems share, on small pictures with H != W; through `rcp run` and a grid as well."""

from __future__ import annotations

import inspect
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_grid import TINY

import rcp
from rcp import options
from rcp.bench.systems import costs
from rcp.cli import main
from rcp.data import Split
from rcp.detectors import PAPERS, SYSTEMS
from rcp.detectors.pixel import TrainedDetector
from rcp.estimate import _rest, estimate
from rcp.experiments import Data, Grid, Method, Results, plan, run_grid
from rcp.experiments.runner import find_category
from rcp.files import read_json
from rcp.images import ImageError
from rcp.pixels import load_pixels
from rcp.scoring import pixel_maps

QUICK = {
    "histogram": {},
    "spade": {"neighbours": 3},
    "padim": {"dimension": 12},
    "fyd": {"steps": 2, "coarse_steps": 2, "angles": 4, "dimension": 12, "batch_size": 2},
    "students": {
        "steps": 2, "students": 2, "fields": (17,), "dimension": 8, "width": 8, "crops": 8, "side": 32, "teacher_steps": 2, "teacher_batch": 4,
    },
    "mkd": {"steps": 2, "width": 4, "batch_size": 2},
    "rd4ad": {"steps": 2, "batch_size": 2},
    "recontrast": {"steps": 2, "batch_size": 2},
    "inctrl": {"prompts": 2, "steps": 4, "training_prompts": (2, 4)},
}  # fmt: skip
KINDS = sorted(SYSTEMS)
every = pytest.mark.parametrize("kind", KINDS)
TRAINED = [kind for kind in KINDS if issubclass(SYSTEMS[kind], TrainedDetector)]
DRAWN = [kind for kind in KINDS if kind not in ("histogram", "spade")]  # the others have nothing to draw but who is held out


def features(kind: str, crop: tuple[int, int] = (64, 96)) -> rcp.FeatureSettings:
    return replace(TINY, levels=SYSTEMS[kind].levels, patch_size=1, crop=crop)


def made(kind: str, auxiliary, seed: int = 0, **options) -> rcp.detectors.PixelDetector:
    system = SYSTEMS[kind]
    detector = system(features(kind), options=system.Options(**QUICK[kind] | options), seed=seed, device="cpu")
    return detector.pretrain([auxiliary]) if kind == "inctrl" else detector


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Teachers of these tests are kept for these tests, and learn from noise: the embedded images need not be drawn."""
    noise = torch.randint(0, 256, (4, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RCP_CACHE", str(tmp_path_factory.mktemp("teachers")))
        patch.setattr("rcp.detectors.students_teacher.pictures", lambda: [list(noise[:2]), list(noise[2:])])
        yield


@pytest.fixture(scope="module")
def fitted(category, photos) -> dict:
    """One of each, fitted on the seven photos, each when it is first asked for."""

    class Fitted(dict):
        def __missing__(self, kind):
            self[kind] = made(kind, category).fit(photos)
            return self[kind]

    return Fitted()


def test_every_system_has_a_test_here_and_its_papers_settings():
    assert set(QUICK) == set(SYSTEMS) == set(PAPERS)
    for kind, (options, settings) in PAPERS.items():
        assert isinstance(options, SYSTEMS[kind].Options) and settings.levels and SYSTEMS[kind].kind == kind


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "histogram"])  # that is a baseline
def test_a_system_is_read_in_one_sitting_beside_its_paper(kind):
    source = inspect.getsource(inspect.getmodule(SYSTEMS[kind]))
    assert 80 <= len(source.splitlines()) <= 250
    assert re.search(r"\barXiv\s+\d{4}\.\d{5}", source) and "here we differ" in source


@every
def test_scores_have_the_shapes_that_they_say(fitted, kind, photos):
    scores = fitted[kind].score(photos)
    assert scores.image_scores.shape == (7,) and scores.maps.shape == (7, 64, 96) and scores.patch_scores.ndim == 3
    assert scores.image_scores.dtype == scores.patch_scores.dtype == torch.float32
    assert bool(scores.patch_scores.isfinite().all()) and bool(scores.image_scores.isfinite().all())
    h, w = scores.patch_scores.shape[1:]
    assert 0.5 < (h / w) / (64 / 96) < 2  # a grid as the image lies: not on its side
    assert scores.indices == list(range(7)) and scores.sizes == [Image.open(p).size[::-1] for p in photos]
    assert torch.equal(scores.maps, pixel_maps(scores.patch_scores, (64, 96), fitted[kind].smoothing)) and scores.unit


@every
def test_scores_do_not_depend_on_the_company(fitted, kind, photos):
    scores = fitted[kind].score(photos)
    for i in (0, 5):
        alone = fitted[kind].score([photos[i]])
        torch.testing.assert_close(alone.image_scores[0], scores.image_scores[i], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(alone.patch_scores[0], scores.patch_scores[i], atol=1e-4, rtol=1e-3)


@every
def test_paths_and_pixels_give_the_same(fitted, kind, photos, category):
    detector = fitted[kind]
    pixels = load_pixels(category.test, detector.features.geometry)
    given, streamed = detector.score(pixels), detector.score(category.test)
    assert torch.equal(given.image_scores, streamed.image_scores) and torch.equal(given.patch_scores, streamed.patch_scores)
    other = made(kind, category).fit(load_pixels(photos, detector.features.geometry))
    torch.testing.assert_close(other.score(pixels).patch_scores, given.patch_scores, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="these pixels were made with"):
        detector.score(load_pixels(photos, replace(detector.features, crop=(32, 32)).geometry))


@every
def test_a_saved_detector_scores_as_the_fitted_one(fitted, kind, category, tmp_path):
    detector = fitted[kind]
    detector.save(tmp_path / "model")
    loaded = rcp.load(tmp_path / "model", device="cpu")
    a, b = detector.score(category.test), loaded.score(category.test)
    assert type(loaded) is type(detector) and loaded.settings() == detector.settings() and loaded.fitted_on == detector.fitted_on
    assert torch.equal(a.image_scores, b.image_scores) and torch.equal(a.patch_scores, b.patch_scores)
    assert torch.equal(loaded.normal_scores().image_scores, detector.normal_scores().image_scores)
    size = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert detector.nbytes() <= size < detector.nbytes() + 65536


@every
def test_the_same_seed_gives_the_same_scores_and_another_seed_others(fitted, kind, photos, category):
    again = made(kind, category).fit(photos).score(category.test).patch_scores
    assert torch.equal(again, fitted[kind].score(category.test).patch_scores)
    if kind in DRAWN:
        other = made(kind, category, seed=1).fit(photos).score(category.test).patch_scores
        assert not torch.allclose(other, again)


@every
def test_global_generators_decide_nothing_and_are_left_alone(kind, photos, category, fitted):
    expected = fitted[kind].score(photos).image_scores
    torch.manual_seed(123)
    np.random.seed(123)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(made(kind, category).fit(photos).score(photos).image_scores, expected)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()


@every
def test_before_fit_there_is_one_clear_error(kind, photos, tmp_path):
    detector = SYSTEMS[kind](features(kind), device="cpu")
    for use in (lambda: detector.score(photos), detector.normal_scores, detector.nbytes, lambda: detector.save(tmp_path / "m")):
        with pytest.raises(RuntimeError, match=rf"this {type(detector).__name__} has no {detector.missing} yet: call fit"):
            use()
    assert not (tmp_path / "m").exists()


@every
def test_unreadable_images_are_skipped_and_listed_or_raise(kind, photos, category, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    paths = [photos[0], broken, *photos[1:]]
    detector = made(kind, category)
    with pytest.raises(ImageError, match=re.escape(str(broken))):
        detector.fit(paths)
    detector.fit(paths, on_error="skip")
    assert detector.fitted_on["images"] == 7 and detector.fitted_on["skipped"][0][0] == broken.as_posix()
    assert detector.score(paths, on_error="skip").indices == [0, 2, 3, 4, 5, 6, 7]


@every
def test_normal_scores_come_from_images_that_were_held_out(fitted, kind):
    normal = fitted[kind].normal_scores()
    assert 1 <= len(normal.image_scores) <= 7 and normal.patch_quantiles.shape == (1001,)
    low, high = fitted[kind].colour_limits()
    assert high > low


@every
def test_one_good_image_is_enough_or_refused_in_one_sentence(kind, photos, category):
    detector = made(kind, category)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            detector.fit(photos[:1])
        except ValueError as error:
            assert "at least" in str(error) and "\n" not in str(error)
            return
    assert any("no threshold" in str(one.message) for one in told)
    assert bool(detector.score(photos).image_scores.isfinite().all()) and detector.colour_limits() is None
    with pytest.raises(RuntimeError, match="no held-out normal scores"):
        detector.normal_scores()


@every
def test_options_of_another_system_and_unknown_ones_are_refused(kind):
    other = SYSTEMS["spade" if kind != "spade" else "padim"].Options()
    with pytest.raises(ValueError, match=f"takes {SYSTEMS[kind].Options.__name__}"):
        SYSTEMS[kind](options=other)
    with pytest.raises(TypeError):
        SYSTEMS[kind].Options(no_such_option=1)
    with pytest.raises(ValueError, match="smoothing must be a finite number, got nan"):
        SYSTEMS[kind](options=SYSTEMS[kind].Options(smoothing=float("nan")))
    assert SYSTEMS[kind].options_of({}) == SYSTEMS[kind].Options()


@every
def test_feature_settings_that_would_do_nothing_are_refused(kind):
    system = SYSTEMS[kind]
    usual = system.features_of("efficientnet_lite0")
    system(usual), system(rcp.FeatureSettings(levels=system.levels))  # its own, and what is there where nothing is said
    for name, value in {"patch_size": 5, "merge": "pool", "pooled_width": 7, "stored": "float16"}.items():
        if name not in system.unused:
            system(replace(usual, **{name: value}))
        else:
            with pytest.raises(ValueError, match=f"{system.__name__} has no use for {name}={value!r}: leave it out"):
                system(replace(usual, **{name: value}))


def test_options_that_only_extend_a_systems_are_another_systems():
    with pytest.raises(ValueError, match="RD4AD takes RD4ADOptions, got ReContrastOptions"):
        rcp.RD4AD(options=rcp.ReContrastOptions())


@pytest.mark.parametrize(("kind", "options", "images", "said"), [
    ("padim", {}, 2, "at least three images"),
    ("spade", {"left_out": 0}, 3, "with left_out above 0"),
    ("rd4ad", {"held_out": 0.0}, 3, "with held_out above 0"),
    ("inctrl", {"calibration": 0}, 3, "with calibration above 0"), ("inctrl", {}, 2, "more images than it takes as prompts"),
])  # fmt: skip
def test_where_no_threshold_can_be_had_it_is_said_what_to_do(kind, options, images, said, photos, category):
    detector = made(kind, category, **options)
    with pytest.warns(UserWarning, match="no threshold"):
        detector.fit(photos[:images])
    with pytest.raises(RuntimeError, match=said):
        detector.threshold(0.05)


@every
def test_the_bytes_that_it_will_hold_are_said_beforehand(fitted, kind):
    said = fitted[kind].state_bytes(7, (64, 96))
    assert 0.5 * said <= fitted[kind].nbytes() <= 2 * said + 65536


@pytest.mark.parametrize("kind", TRAINED)
def test_a_training_tells_its_history_and_goes_on_from_its_checkpoint(kind, photos, category, tmp_path, fitted):
    told, file = [], tmp_path / "training.safetensors"

    def kill(record):
        if record.step == 1:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        made(kind, category).fit(photos, callbacks=[kill], checkpoint=file)
    assert list(tmp_path.glob(f"{file.name}*"))
    again = made(kind, category).fit(photos, callbacks=[told.append], checkpoint=file)
    whole = fitted[kind].history
    assert [one.step for one in again.history] == [one.step for one in whole] and [one.losses for one in again.history] == [one.losses for one in whole]
    assert told == list(again.history)[1:] and again.finished  # what was done before is not done again
    finished = made(kind, category).fit(photos, checkpoint=file)
    assert list(finished.history) == list(again.history)
    unbroken = []
    assert list(made(kind, category).fit(photos, callbacks=[unbroken.append]).history) == unbroken
    assert torch.equal(again.score(photos).patch_scores, fitted[kind].score(photos).patch_scores)
    with pytest.raises(ValueError, match="belongs to a training with other settings"):
        made(kind, category, seed=1).fit(photos, checkpoint=file)


# Through the command and the grid


def arguments(kind: str, root, out, *more: str) -> list[str]:
    values = [f"{k}={','.join(map(str, v)) + ',' if isinstance(v, tuple) else v}" for k, v in QUICK[kind].items()]
    options = [part for value in values for part in ("--set", value)]
    return ["run", "--data", str(root), "--category", "thing", "--detector", kind, "--image-size", "64x96", "--resize", "72", "--device",
            "cpu", "--out", str(out), "--no-figures", *options, *more]  # fmt: skip


@pytest.mark.parametrize("kind", ["padim", "rd4ad"])
def test_rcp_run_says_what_it_costs_and_predict_takes_the_model(kind, category, tmp_path, capsys):
    root, out = category.root.parent, tmp_path / "out"
    assert main(arguments(kind, root, out)) == 0
    said, record = capsys.readouterr(), read_json(out / "result.json")
    assert "8 images" in said.out and "the detector will hold" in said.out and "image_auroc" in said.out
    assert ("one pass; it does not train" in said.out) == (kind == "padim")
    assert record["detector"] == kind and record["settings"]["options"]["smoothing"] == 4.0
    assert record["predicted"]["steps"] == len(record["history"]) == (2 if kind == "rd4ad" else 0)
    assert not (out / "training.safetensors").exists()
    cost = costs(out)
    assert cost["fit_seconds"] == record["seconds"]["images"] + record["seconds"]["training"] and cost["pretraining_seconds"] == 0
    assert cost["image_seconds"] == record["seconds"]["scoring"] / 7
    assert cost["disk_bytes"] > rcp.load(out / "model", device="cpu").nbytes() and cost["peak_bytes"] > 1e8
    images = [str(path) for path in category.test.paths[:2]]
    assert main(["predict", str(out), *images, "--out", str(tmp_path / "heat")]) == 0
    assert len(list((tmp_path / "heat").glob("*.png"))) == 2


def test_a_cost_is_predicted_also_where_many_prompts_are_needed(category, photos):
    for prompts in (2, 5, 7):
        found = estimate(made("inctrl", category, prompts=prompts), category.train, category.test)
        assert found.images == len(category.train) and found.seconds["training"] >= 0
    twice = Split("train", category.train.root, tuple(category.train) * 2)
    assert estimate(made("inctrl", category, prompts=len(category.train) + 2), twice).images == len(twice)
    with pytest.raises(ValueError, match="9 prompts need at least as many good images, got"):
        estimate(made("inctrl", category, prompts=9), category.train)


def test_a_training_of_several_stages_is_predicted_stage_by_stage_and_leaves_no_checkpoint(category, tmp_path):
    assert _rest((10, 6), (4, 4), [9, 9, 9, 2, 9, 9, 9, 3]) == 6 * 2 + 2 * 3
    assert _rest((0, 6), (0, 4), [9, 9, 9, 3]) == 2 * 3 and _rest((5,), (5,), [1] * 5) == 0
    assert main(arguments("fyd", category.root.parent, tmp_path / "out")) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.json", "model"}
    assert read_json(tmp_path / "out" / "result.json")["predicted"]["steps"] == 4


def test_a_preset_gives_way_to_what_is_said_besides():
    def asked(*more: str):
        line = ["run", "--data", "d", "--detector", "padim", *more]
        return options.system(options.parser({}).parse_args(line))

    teaching, paper = asked(), asked("--preset", "paper")
    assert teaching == (rcp.PaDiM.features_of("efficientnet_lite0"), rcp.PaDiMOptions()) and paper == PAPERS["padim"][::-1]
    settings, chosen = asked("--preset", "paper", "--set", "epsilon=1", "--backbone", "resnet18", "--image-size", "96")
    assert chosen == replace(PAPERS["padim"][0], epsilon=1.0) and (settings.backbone, settings.crop, settings.resize) == ("resnet18", 96, 110)
    assert settings.levels == PAPERS["padim"][1].levels


def test_options_without_effect_are_told_and_wrong_ones_refused(category, tmp_path, capsys):
    root, out = category.root.parent, tmp_path / "out"
    assert main(arguments("histogram", root, out, "--coreset", "0.1", "--epochs", "3", "--auxiliary", "nowhere")) == 0
    said = capsys.readouterr().err
    assert all(f"--{name} has no effect" in said for name in ("coreset", "epochs", "auxiliary"))
    assert main(arguments("rd4ad", root, out, "--stored", "float16", "--patch-size", "5", "--set", "steps=1")) == 0
    said = capsys.readouterr().err
    assert all(f"--{name} has no effect: RD4AD has no use for it" in said for name in ("stored", "patch-size"))
    for wrong, words in (("nope=1", "expected NAME=VALUE with one of"), ("steps", "expected NAME=VALUE"), ("steps=some", "steps")):
        assert main(arguments("rd4ad", root, out, "--set", wrong)) == 1
        assert words in capsys.readouterr().err
    assert main(["run", "--data", str(root), "--category", "thing", "--detector", "patchcore", "--set", "steps=1", "--out", str(out),
                 "--image-size", "64x96", "--no-figures", "--folds", "0"]) == 0  # fmt: skip
    assert "--set has no effect" in capsys.readouterr().err


@pytest.fixture(scope="module")
def root(category, tmp_path_factory):
    """Two categories of the same pictures."""
    import shutil

    folder = tmp_path_factory.mktemp("grid")
    for name in ("thing", "other"):
        shutil.copytree(category.root, folder / name)
    (folder / "other" / "train" / "good" / "0.png").unlink()
    return folder


def grid(*methods: Method, **data) -> Grid:
    return Grid("all systems", (Data("painted", **{"categories": ("thing",)} | data),), {"tiny": TINY}, methods)


def test_a_grid_measures_every_system_and_tells_its_cost(root, tmp_path):
    learned = {"inctrl": {"auxiliary": "others"}}
    methods = [Method(kind, kind, options=QUICK[kind] | learned.get(kind, {})) for kind in KINDS]
    groups = plan(grid(*methods, Method("PatchCore", "patchcore")), {"painted": root}, tmp_path)
    outcome = run_grid(groups, tmp_path)
    assert outcome.complete and len(outcome.done) == len(KINDS) + 1
    for group in groups:
        for cell, name in zip(group.cells, group.names, strict=True):
            record = Results(tmp_path).read(name)
            assert 0 <= record["metrics"]["image_auroc"] <= 1 and record["metrics"]["aupro"] is not None
            assert {"fit_seconds", "image_seconds", "state_bytes", "peak_bytes"} == set(record["cost"])
            if cell.detector in TRAINED:
                assert record["records"][-1]["step"] >= 2  # of all stages together, where there are several
            assert ("auxiliary" in record["dataset"]) == (cell.detector == "inctrl")
    assert run_grid(groups, tmp_path).complete  # nothing is measured twice


def test_what_a_generalist_learns_from_is_part_of_its_address(root, tmp_path):
    one = grid(Method("InCTRL", "inctrl", options=QUICK["inctrl"] | {"auxiliary": "others"}))
    before = plan(one, {"painted": root}, tmp_path)[0].names
    picture = next((root / "other" / "test" / "good").glob("*.png"))
    kept = picture.read_bytes()
    Image.new("RGB", (130, 90), "red").save(picture)
    changed = plan(one, {"painted": root}, tmp_path)[0].names
    picture.write_bytes(kept)
    assert changed != before == plan(one, {"painted": root}, tmp_path)[0].names


def test_one_model_for_all_categories_is_fitted_on_the_good_images_of_all(root, tmp_path):
    data = Data("painted", ("thing", "other"), pooled=True)
    found = find_category(data, "thing", str(root), tmp_path)
    assert data.label == "painted, one model" and len(found.train) == 8 + 7 and {p.parents[2].name for p in found.train.paths} == {"thing", "other"}
    assert found.test == rcp.mvtec(root, "thing").test and found.train.fingerprint() != rcp.mvtec(root, "thing").train.fingerprint()
    assert isinstance(found.train, Split)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Method("a", "padim", bank={"coreset": 0.1}), "has no memory of patches, so bank has no effect"),
        (Method("a", "padim", training={"epochs": 1}), "does not train f"),
        (Method("a", "padim", options={"nope": 1}), "there is no options.nope"),
        (Method("a", "inctrl", options={"auxiliary": "moon"}), "auxiliary must be one of embedded, others"),
        (Method("a", "padim", options={"dimension": 0.5}), "dimension must be a whole number"),
    ],
)
def test_a_method_that_cannot_be_is_told(method, words):
    with pytest.raises(ValueError, match=words):
        grid(method).cells(lambda data: [])
