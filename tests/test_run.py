"""From a folder of images to result.json, model and figures; and the same through the command line."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rcp
import rcp.store
from rcp import head, options, synthetic
from rcp.allocator import give_back
from rcp.cli import _unique_names, main
from rcp.comparison import Row, as_csv, compare, markdown, summary
from rcp.estimate import RATE, coreset_seconds, estimate, size
from rcp.files import read_json, read_tensors
from rcp.run import run

TINY = rcp.FeatureSettings("resnet18", pretrained=False, resize=64, crop=(48, 64))
FAST = rcp.TrainSettings(epochs=2, steps=2, dimension=16, projection=16, batch_size=64)
BANK = rcp.BankSettings(coreset=0.05, folds=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small embedded dataset: one category of 24 + 4 + 8 images."""
    return synthetic.write(tmp_path_factory.mktemp("data"), categories=("flange",), train=24, good=4, per_defect=2)


@pytest.fixture(scope="module")
def record(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    detector = rcp.ReConPatch(TINY, training=FAST, bank=BANK)
    content = run(rcp.mvtec(root, "flange"), detector, out, maps=True, say=lambda line: None)
    return out, content, detector


def test_result_file_holds_everything_that_a_reader_needs(record):
    out, content, _ = record
    saved = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert set(saved["metrics"]) == {"image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro"}
    assert all(0 <= value <= 1 for value in saved["metrics"].values())
    assert {"features", "training", "coreset", "calibration", "scoring", "metrics", "total"} <= set(saved["seconds"])
    assert saved["peak_rss_bytes"] > 10**8
    assert saved["seeds"] == {"detector": 0} and saved["protocol"] == "crop"
    assert len(saved["backbone"]["sha256"]) == 64 and saved["versions"]["torch"]
    assert saved["dataset"]["train"]["counts"] == {"good": 24} and len(saved["dataset"]["train"]["fingerprint"]) == 64
    assert saved["settings"]["training"]["epochs"] == 2 and len(saved["history"]) == 2
    assert saved["predicted"]["rows"] == saved["fitted_on"]["patches"] == 24 * 6 * 8
    assert len(saved["images"]) == 12 and {"file", "defect", "score"} == set(saved["images"][0])
    assert content["skipped"] == [] and saved["skipped"] == []


def test_run_leaves_model_figures_and_maps_and_no_checkpoint(record):
    out, _, _ = record
    files = {path.name for path in out.iterdir()}
    assert {"result.json", "model", "scores.png", "maps.png", "maps.safetensors"} == files
    tensors, header = read_tensors(out / "maps.safetensors")
    assert tensors["maps"].shape == (12, 48, 64) and tensors["patch_scores"].shape == (12, 6, 8)
    assert header["defects"][0] in synthetic.DEFECTS["flange"] + ("good",)


def test_saved_model_scores_as_the_fitted_one(record, root):
    out, _, detector = record
    test = rcp.mvtec(root, "flange").test
    a, b = detector.score(test).image_scores, rcp.load(out / "model").score(test).image_scores
    assert (a == b).all()


def test_a_killed_run_goes_on_from_its_last_epoch_to_the_same_result(root, tmp_path, record, monkeypatch):
    category = rcp.mvtec(root, "flange")
    calls = []
    original = head._Run.epoch

    def dies_in_the_second(self, number, shown):
        calls.append(number)
        if number == 2 and len(calls) == 2:
            raise RuntimeError("killed")
        return original(self, number, shown)

    monkeypatch.setattr(head._Run, "epoch", dies_in_the_second)
    predicted = estimate(rcp.PatchCore(TINY), category.train)  # its own probe would train, too
    monkeypatch.setattr("rcp.run.estimate", lambda *_: predicted)
    make = lambda: rcp.ReConPatch(TINY, training=FAST, bank=BANK)  # noqa: E731
    with pytest.raises(RuntimeError, match="killed"):
        run(category, make(), tmp_path, figures=False, say=lambda line: None)
    assert (tmp_path / "training.safetensors").exists() and not (tmp_path / "result.json").exists()
    content = run(category, make(), tmp_path, figures=False, say=lambda line: None)
    assert calls == [1, 2, 2]
    assert content["metrics"] == record[1]["metrics"]


def test_an_interrupted_training_leaves_no_result_but_its_checkpoint(root, tmp_path, monkeypatch):
    original = head._Run.epoch

    def interrupted(self, number, shown):
        if number == 2 and self.settings.epochs == 2 and self.steps == 2:
            raise KeyboardInterrupt
        return original(self, number, shown)

    category = rcp.mvtec(root, "flange")
    predicted = estimate(rcp.PatchCore(TINY), category.train)
    monkeypatch.setattr("rcp.run.estimate", lambda *_: predicted)
    monkeypatch.setattr(head._Run, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="interrupted"):
        run(category, rcp.ReConPatch(TINY, training=FAST, bank=BANK), tmp_path, say=lambda line: None)
    assert (tmp_path / "training.safetensors").exists() and not (tmp_path / "result.json").exists()


def test_a_later_run_leaves_nothing_of_an_earlier_one_and_spares_a_foreign_checkpoint(root, tmp_path):
    category, quiet = rcp.mvtec(root, "flange"), lambda line: None
    run(category, rcp.PatchCore(TINY, bank=BANK), tmp_path, maps=True, say=quiet)
    (tmp_path / "training.safetensors").write_bytes(b"another command's")
    run(category, rcp.PatchCore(TINY, bank=BANK), tmp_path, figures=False, say=quiet)
    assert {p.name for p in tmp_path.iterdir()} == {"result.json", "model", "training.safetensors"}


def test_a_run_that_is_refused_leaves_the_earlier_result_and_model(root, tmp_path):
    category, quiet = rcp.mvtec(root, "flange"), lambda line: None
    run(category, rcp.PatchCore(TINY, bank=BANK), tmp_path, figures=True, say=quiet)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(MemoryError, match="no room"):
        run(category, rcp.PatchCore(TINY, bank=BANK, seed=1, limit=rcp.MemoryLimit(1)), tmp_path, say=quiet)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_comparison_says_what_it_will_cost_before_each_category(root):
    said = []
    compare([rcp.mvtec(root, "flange")], features=TINY, training=FAST, seeds=(0,), say=said.append)
    assert "patches" in said[0] and "about" in said[0] and len(said) == 4


def test_an_interrupted_comparison_gives_no_table(root, monkeypatch):
    original = head._Run.epoch

    def interrupted(self, number, shown):
        if number == 2 and self.settings == FAST:
            raise KeyboardInterrupt
        return original(self, number, shown)

    monkeypatch.setattr(head._Run, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="interrupted"):
        compare([rcp.mvtec(root, "flange")], features=TINY, training=FAST, seeds=(0,))


def test_images_of_one_name_get_heat_maps_of_their_own():
    names = _unique_names([Path("bottle/good/000.png"), Path("pill/good/000.png"), Path("x/a.png")])
    assert len(set(names)) == 3 and names[2] == "a"


def test_without_test_images_there_is_a_model_and_a_result_without_metrics(root, tmp_path):
    good = rcp.folder(root / "flange" / "train" / "good")
    content = run(good, rcp.PatchCore(TINY, bank=BANK), tmp_path, say=lambda line: None)
    assert set(content["metrics"].values()) == {None} and len(content["metrics"]) == 6 and (tmp_path / "model" / "model.json").exists()
    assert read_json(tmp_path / "result.json")["fitted_on"]["images"] == 24


def test_undefined_metrics_are_null_in_the_file(root, tmp_path):
    place = tmp_path / "plain"
    shutil.copytree(root / "flange" / "train", place / "train")
    shutil.copytree(root / "flange" / "test", place / "test")
    run(rcp.find(place), rcp.PatchCore(TINY, bank=BANK), tmp_path / "out", figures=False, say=lambda line: None)
    metrics = read_json(tmp_path / "out" / "result.json")["metrics"]
    assert metrics["pixel_auroc"] is None and metrics["aupro"] is None and 0 <= metrics["image_auroc"] <= 1


def test_skipped_files_are_listed_in_the_result(root, tmp_path):
    place = tmp_path / "flange"
    shutil.copytree(root / "flange", place)
    (place / "train" / "good" / "003.png").write_bytes(b"no image")
    (place / "test" / "good" / "001.png").write_bytes(b"no image")
    detector = rcp.PatchCore(TINY, bank=BANK)
    with pytest.raises(ValueError, match="003.png"):
        run(rcp.mvtec(tmp_path, "flange"), detector, tmp_path / "out", figures=False, say=lambda line: None)
    content = run(
        rcp.mvtec(tmp_path, "flange"), detector, tmp_path / "out", figures=False, on_error="skip", say=lambda line: None
    )
    assert [path.rsplit("/", 1)[1] for path, _ in content["skipped"]] == ["003.png", "001.png"]
    assert len(content["images"]) == 11


# The estimate


def test_estimate_predicts_rows_and_bytes_exactly(root):
    category = rcp.mvtec(root, "flange")
    detector = rcp.ReConPatch(TINY, training=FAST, bank=BANK)
    predicted = estimate(detector, category.train, category.test)
    features = detector.extractor.extract(category.train)
    assert predicted.rows == len(features.rows) and predicted.feature_bytes == features.values.nbytes
    detector.fit(features)
    assert predicted.memory_rows == len(detector.memory) and predicted.memory_bytes == detector.memory.rows.nbytes
    assert all(seconds >= 0 for seconds in predicted.seconds.values()) and "patches" in str(predicted)


def test_the_coresets_predicted_seconds_are_those_that_were_measured_within_a_factor_of_two():
    curves = read_json(Path(__file__).parents[1] / "figures" / "bench_growth.json")["growth"]["curves"]
    rows, ratio = curves["coreset rows"], curves["coreset ratio"]
    measured = [(n, n // 100, s) for n, s in zip(rows["sizes"], rows["seconds"], strict=True)]
    measured += [(100_352, int(100_352 * r), s) for r, s in zip(ratio["sizes"], ratio["seconds"], strict=True)]
    for n, kept, seconds in measured:
        assert 0.5 < coreset_seconds(n, kept, RATE) / seconds < 2
    assert coreset_seconds(10**6, 10**4, RATE / 2) == pytest.approx(2 * coreset_seconds(10**6, 10**4, RATE))


def test_the_coreset_is_predicted_with_its_embedding_and_once_smaller_for_each_fold(root, monkeypatch):
    monkeypatch.setattr("rcp.estimate._product_rate", lambda device: 1e6)  # slow: seconds that can be told apart
    category, bank = rcp.mvtec(root, "flange"), replace(BANK, folds=4)
    for detector in (rcp.PatchCore(TINY, bank=bank), rcp.ReConPatch(TINY, training=FAST, bank=bank)):
        predicted = estimate(detector, category.train)
        rows, kept, width = predicted.rows, predicted.memory_rows, detector.output_width
        picking = coreset_seconds(rows, kept, 1e6)
        embedding = 2 * rows * predicted.width * 16 / 1e6 if isinstance(detector, rcp.ReConPatch) else 0
        assert predicted.seconds["coreset"] == pytest.approx(picking + embedding)
        smaller = coreset_seconds(1, 1, 1e6) * (0.75 * rows) * (0.75 * kept) ** 0.6  # of three quarters of the rows
        searching = 3 * 2 * rows * kept * width / 1e6
        assert predicted.seconds["calibration"] == pytest.approx(4 * smaller + searching)


def test_sizes_read_as_people_write_them():
    assert size(1_006_000_000) == "1.0 GB" and size(44_000_000) == "44 MB"


# The bound on memory


@pytest.fixture
def nothing_held(monkeypatch):
    """A process that holds nothing and needs nothing to work in: a bound of a few bytes bites, and can be kept."""
    monkeypatch.setattr(rcp.store, "anonymous_bytes", lambda: 0)
    monkeypatch.setattr(rcp.store, "WORKING", 0)


@pytest.fixture
def files(monkeypatch) -> list[str]:
    """The folders in which mapped files were made."""
    folders, real = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *, dir: folders.append(str(dir)) or real(dir=dir))
    return folders


def test_the_result_says_what_was_allowed_and_what_was_held(root, record, tmp_path):
    _, content, _ = record
    assert content["max_bytes"] is None
    assert 5 * 10**7 < content["peak_anonymous_bytes"] <= 1.05 * content["peak_rss_bytes"]
    limit = rcp.MemoryLimit(64 * 10**9, tmp_path / "files")  # never looked for: it fits
    detector = rcp.PatchCore(TINY, bank=BANK, limit=limit)
    run(rcp.mvtec(root, "flange"), detector, tmp_path, figures=False, say=lambda line: None)
    saved = read_json(tmp_path / "result.json")
    assert saved["max_bytes"] == 64 * 10**9 and saved["predicted"]["mapped"] is False
    assert 5 * 10**7 < saved["peak_anonymous_bytes"] < 64 * 10**9


def test_the_peak_counts_what_a_stage_held_and_gave_back(root, tmp_path, monkeypatch, fresh):
    original, size_of_it = rcp.PatchCore.fit, 200 * 2**20
    gc.collect()  # what earlier tests left must not go while this one measures
    give_back()
    before = rcp.timing.anonymous_bytes()

    def hungry(self, *args, **named):
        array = fresh(size_of_it)
        array.fill(1)
        time.sleep(0.2)
        fitted = original(self, *args, **named)
        assert len(array) == size_of_it
        return fitted

    monkeypatch.setattr(rcp.PatchCore, "fit", hungry)
    detector = rcp.PatchCore(TINY, bank=BANK)
    content = run(rcp.mvtec(root, "flange"), detector, tmp_path, figures=False, say=lambda line: None)
    assert content["peak_anonymous_bytes"] > before + 0.8 * size_of_it


@pytest.mark.parametrize(  # the bounds hold the memory of the detector, but not the points that it is picked among
    ("make", "bound"), [(rcp.PatchCore, 400_000), (lambda *a, **k: rcp.ReConPatch(*a, training=FAST, **k), 30_000)]
)
def test_a_run_in_files_equals_a_run_in_memory_and_leaves_no_file(root, tmp_path, nothing_held, files, make, bound):
    category, said, contents = rcp.mvtec(root, "flange"), [], []
    for name, limit in (("kept", rcp.MemoryLimit()), ("mapped", rcp.MemoryLimit(bound, tmp_path / "mapped"))):
        detector = make(TINY, bank=BANK, limit=limit)
        contents.append(run(category, detector, tmp_path / name, figures=False, say=said.append))
    kept, mapped = contents
    assert [content["predicted"]["mapped"] for content in contents] == [False, True]
    assert [" in a file;" in line for line in said if "patches ×" in line] == [False, True]
    assert len(files) == 2 and {path.name for path in (tmp_path / "mapped").iterdir()} == {"result.json", "model"}
    for name in ("metrics", "images", "verdict", "fitted_on", "settings"):
        assert kept[name] == mapped[name]
    assert (kept["max_bytes"], mapped["max_bytes"]) == (None, bound)


@pytest.mark.parametrize("folds", [0, 2])
def test_a_memory_of_patches_that_the_bound_does_not_hold_is_refused(root, tmp_path, monkeypatch, nothing_held, folds):
    category, bank = rcp.mvtec(root, "flange"), replace(BANK, folds=folds)
    memory = estimate(rcp.PatchCore(TINY, bank=bank), category.train).memory_bytes
    least = memory * (4 if folds else 2)  # with what the search makes of it; and another one for calibration
    fits = rcp.PatchCore(TINY, bank=bank, limit=rcp.MemoryLimit(least, tmp_path))
    run(category, fits, tmp_path, figures=False, say=lambda line: None)
    monkeypatch.setattr(rcp.PatchCore, "fit", pytest.fail)
    with pytest.raises(MemoryError, match="for the memory of normal patches"):
        run(category, rcp.PatchCore(TINY, bank=bank, limit=rcp.MemoryLimit(least - 1)), tmp_path, say=lambda line: None)


def test_a_bound_is_checked_before_anything_is_fitted(root, tmp_path, monkeypatch):
    monkeypatch.setattr(rcp.PatchCore, "fit", pytest.fail)
    with pytest.raises(MemoryError, match="a bound of 0.01 GB leaves no room to work in"):
        limit = rcp.MemoryLimit(10**7, tmp_path)
        run(rcp.mvtec(root, "flange"), rcp.PatchCore(TINY, limit=limit), tmp_path, say=lambda line: None)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_estimate_knows_the_bytes_of_stored_features_and_where_they_will_lie(root, nothing_held, stored):
    category, settings = rcp.mvtec(root, "flange"), replace(TINY, stored=stored)
    count = rcp.PatchExtractor(settings).extract(category.train).values.nbytes
    for bound, mapped in ((None, False), (count, False), (count - 1, True)):
        predicted = estimate(rcp.PatchCore(settings, limit=rcp.MemoryLimit(bound)), category.train)
        assert predicted.feature_bytes == count and predicted.mapped is mapped
        assert (" in a file" in str(predicted)) is mapped and predicted.record()["mapped"] is mapped


def test_the_command_keeps_a_bound_and_says_where_the_features_wait(root, tmp_path, nothing_held, files, capsys):
    common = ["run", "--data", str(root), "--category", "flange", "--detector", "patchcore", "--image-size", "64",
              "--folds", "2", "--no-figures", "--stored", "float16", "--out"]  # fmt: skip
    assert main([*common, str(tmp_path / "kept")]) == 0
    assert " in a file" not in capsys.readouterr().out and files == []
    assert main([*common, str(tmp_path / "mapped"), "--max-memory", "0.0001"]) == 0
    assert " in a file" in capsys.readouterr().out
    kept, mapped = (read_json(tmp_path / name / "result.json") for name in ("kept", "mapped"))
    assert mapped["max_bytes"] == 100_000 and kept["max_bytes"] is None and kept["metrics"] == mapped["metrics"]
    assert mapped["settings"]["features"]["stored"] == "float16"
    assert set(files) == {str(tmp_path / "mapped")}
    assert {path.name for path in (tmp_path / "mapped").iterdir()} == {"result.json", "model"}


def test_the_command_takes_a_bound_that_is_not_reached(root, tmp_path, files, capsys, monkeypatch):
    monkeypatch.setattr(rcp.store, "anonymous_bytes", lambda: 5 * 10**8)  # whatever earlier tests left behind
    status = main([
        "run", "--data", str(root), "--category", "flange", "--detector", "reconpatch", "--image-size", "64", "--folds",
        "2", "--no-figures", "--epochs", "1", "--steps", "1", "--max-memory", "2", "--out", str(tmp_path / "a" / "b"),
    ])  # fmt: skip
    assert status == 0 and files == [] and " in a file" not in capsys.readouterr().out
    saved = read_json(tmp_path / "a" / "b" / "result.json")
    assert saved["max_bytes"] == 2 * 10**9 and saved["settings"]["features"]["stored"] == "float32"


@pytest.mark.parametrize("wrong", ["0", "abc", "-1", "nan", "inf", "1e-10", ""])
def test_a_bound_that_is_no_number_of_gigabytes_is_refused(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "--data", "x", "--detector", "patchcore", f"--max-memory={wrong}"])
    assert stop.value.code == 2 and "--max-memory: expected gigabytes" in capsys.readouterr().err


def test_gigabytes_are_thousands_of_millions_of_bytes():
    assert options._gigabytes("2") == 2 * 10**9 and options._gigabytes("0.5") == 5 * 10**8


@pytest.mark.parametrize("command", ["run", "compare"])
def test_features_are_stored_in_one_of_three_ways(command, capsys):
    detector = ["--detector", "patchcore"] if command == "run" else []
    with pytest.raises(SystemExit) as stop:
        main([command, "--data", "x", "--stored", "float64", *detector])
    assert stop.value.code == 2 and "--stored" in capsys.readouterr().err


# The comparison


def test_comparison_fits_three_detectors_per_seed_on_the_same_features(root):
    rows = compare([rcp.mvtec(root, "flange")], features=TINY, training=FAST, seeds=(0, 1))
    assert [(row.detector, row.seed) for row in rows] == [
        (name, seed) for seed in (0, 1) for name in ("PatchCore", "untrained f", "ReConPatch")
    ]
    alone = rcp.PatchCore(TINY, bank=rcp.BankSettings(folds=0), seed=1).fit(rcp.mvtec(root, "flange").train)
    assert rcp.evaluate(alone, rcp.mvtec(root, "flange").test).metrics == rows[3].metrics
    assert rows[1].metrics != rows[2].metrics


def test_summary_averages_over_categories_within_a_seed_first():
    cell = lambda c, s, v: Row(c, "d", s, {"m": v})  # noqa: E731
    found = summary([cell("a", 0, 0.2), cell("a", 1, 0.4), cell("b", 0, 0.8), cell("b", 1, 0.6)], "m")
    assert found["a", "d"] == (pytest.approx(0.3), pytest.approx(np.std([0.2, 0.4], ddof=1)))
    assert found["mean", "d"] == (pytest.approx(0.5), pytest.approx(0.0))


def test_tables_keep_the_detectors_of_a_category_together():
    metrics = dict.fromkeys(("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro"), 0.5)
    rows = [Row(c, d, 0, metrics) for c in ("b", "a") for d in ("x", "y")]
    lines = markdown(rows, "caption").splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["b", "b", "a", "a", "mean", "mean"]
    assert "50.00" in lines[4] and "±" not in lines[4] and lines[0] == "caption"  # one seed has no deviation
    two = markdown(rows + [Row(r.category, r.detector, 1, r.metrics) for r in rows], "caption")
    assert "50.00 ± 0.00" in two
    assert as_csv(rows).splitlines()[1].startswith("b,x,0,0.500000")


# The command


def test_run_and_predict_on_the_command_line(root, tmp_path, capsys):
    out, images = tmp_path / "out", root / "flange" / "test"
    status = main([
        "run", "--data", str(root), "--category", "flange", "--detector", "patchcore", "--image-size", "96",
        "--folds", "4", "--out", str(out), "--no-figures", "--epochs", "3",
    ])  # fmt: skip
    captured = capsys.readouterr()
    printed = captured.out
    assert "--epochs has no effect" in captured.err
    assert status == 0 and "patches" in printed and "image_auroc" in printed and "one pass" in printed
    assert read_json(out / "result.json")["settings"]["features"]["resize"] == 110
    chosen = [str(images / "good" / "000.png"), str(images / "rust" / "000.png")]
    assert main(["predict", str(out), *chosen, "--out", str(tmp_path / "heat")]) == 0
    printed = capsys.readouterr().out
    assert len(list((tmp_path / "heat").glob("*.png"))) == 2
    assert printed.count("normal") + printed.count("anomalous") >= 2 and "limit" in printed
    with Image.open(next((tmp_path / "heat").glob("*.png"))) as picture:
        assert picture.size[0] > 600


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--data", "{root}", "--category", "flnge", "--detector", "patchcore"], "flange"),
        (["run", "--data", "nowhere", "--category", "x", "--detector", "patchcore"], "nowhere"),
        (["run", "--data", "{root}", "--category", "flange", "--detector", "patchcore", "--coreset", "2"], "coreset"),
        (["run", "--data", "{root}", "--category", "flange", "--detector", "patchcore", "--backbone", "nope"], "nope"),
        (["predict", "nowhere", "x.png"], "nowhere"),
        (["run", "--data", "{root}", "--category", "flange", "--detector", "reconpatch", "--variant", "paper"], "--variant"),
        (["run", "--data", "{root}", "--category", "flange", "--detector", "patchcore", "--levels", "2", "--strides", "8"], "--strides"),
        (["run", "--data", "{root}", "--category", "flange", "--detector", "patchcore", "--device", "moon"], "moon"),
        (["run", "--data", "{root}", "--category", "flange", "--detector", "patchcore", "--max-memory", "0.001"], "no room"),
        (["run", "--data", "{root}", "--category", "flange", "--detector", "patchcore", "--out", "{root}/flange/train/good/000.png"], "000.png"),
    ],
)
def test_bad_input_is_answered_by_one_sentence_and_status_1(arguments, sentence, root, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # runs/latest is made where one stands
    assert main([a.format(root=root) for a in arguments]) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("rcp: ") and "Traceback" not in error


def test_help_of_every_command_and_unknown_options():
    for command in ([], ["run"], ["compare"], ["predict"], ["synthetic"], ["demo"], ["bench"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
    for wrong in (
        ["run", "--data", "x", "--detector", "patchcore", "--epoch-count", "3"],
        ["compare", "--data", "x", "--seed", "5"],  # not a short form of --seeds
        ["compare", "--data", "x", "--seeds", "0"],
        ["run", "--data", "x", "--detector", "patchcore", "--seed", "-1"],
        ["run", "--data", "x", "--detector", "patchcore", "--false-alarm-rate", "2"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2


def test_compare_takes_a_single_category_folder_and_writes_its_table(root, tmp_path, capsys):
    status = main([
        "compare", "--data", str(root / "flange"), "--seeds", "1", "--epochs", "0", "--image-size", "64", "--resize", "64",
        "--out", str(tmp_path / "table"),
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert status == 0 and printed.count("| flange |") == 3 and "seed 0" in printed
    assert (tmp_path / "table" / "table.md").read_text(encoding="utf-8").strip() == printed.strip()
    assert len((tmp_path / "table" / "rows.csv").read_text(encoding="utf-8").splitlines()) == 4


def test_synthetic_on_the_command_line(tmp_path, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr("rcp.cli.synthetic.write_with_bar", lambda root, seed: asked.update(root=root, seed=seed) or root)
    assert main(["synthetic", str(tmp_path / "d"), "--seed", "7"]) == 0
    assert asked == {"root": str(tmp_path / "d"), "seed": 7} and "flange" in capsys.readouterr().out


def test_the_installed_command_answers():
    done = subprocess.run([sys.executable, "-m", "rcp", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"rcp {rcp.__version__}"
