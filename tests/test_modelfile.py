"""Files: a detector comes back to the bit or the error says why; a file is whole or not there; no pickle."""

import json
import math
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

import rcp
from rcp import BankSettings, Ensemble, FeatureSettings, PatchCore, ReConPatch, TrainSettings, modelfile
from rcp.backbones import WeightsError
from rcp.files import read_json, read_tensors, write_atomically, write_json, write_tensors
from rcp.modelfile import VersionWarning, read_model, versions, write_model

BANK = BankSettings(coreset=0.1, projection=16, folds=3, neighbours=5, smoothing=2.5)
TRAINING = TrainSettings(dimension=24, projection=12, epochs=2, batch_size=96, relative_sigma=True)

MAKERS = {
    "concat": lambda tiny: PatchCore(tiny, bank=BANK, seed=3, device="cpu"),
    "paper": lambda tiny: PatchCore(tiny, variant="paper", bank=BANK, device="cpu"),
    "amazon": lambda tiny: PatchCore(replace(tiny, pooled_width=64), variant="amazon", bank=BANK, device="cpu"),
    "faiss": lambda tiny: PatchCore(tiny, bank=replace(BANK, search="faiss", projection=None), device="cpu"),
    "strides": lambda tiny: PatchCore(
        replace(tiny, strides=(4, 8), resize=(64, 96), crop=None), bank=BANK, device="cpu"
    ),
    "recon": lambda tiny: ReConPatch(tiny, training=TRAINING, bank=BANK, seed=4, device="cpu"),
    "recon-image": lambda tiny: ReConPatch(tiny, training=TRAINING, bank=BANK, reweight="image", device="cpu"),
    "no-folds": lambda tiny: ReConPatch(tiny, training=TRAINING, bank=replace(BANK, folds=0), device="cpu"),
}


@pytest.fixture(scope="module")
def fitted(tiny, photos) -> PatchCore:
    return MAKERS["concat"](tiny).fit(photos)


@pytest.fixture
def saved(fitted, tmp_path) -> Path:
    return fitted.save(tmp_path / "model")


def edit(folder: Path, **changes) -> None:
    write_json(folder / "model.json", read_json(folder / "model.json") | changes)


def tensors_of(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


# --- there and back --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_detector_comes_back_to_the_bit(name, tiny, photos, category, tmp_path):
    detector = MAKERS[name](tiny).fit(photos)
    detector.save(tmp_path / "deep" / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error", VersionWarning)
        loaded = rcp.load(tmp_path / "deep" / "model", device="cpu")
    before, after = detector.score(category.test), loaded.score(category.test)
    assert type(loaded) is type(detector)
    assert torch.equal(before.image_scores, after.image_scores) and torch.equal(before.patch_scores, after.patch_scores)
    assert torch.equal(before.maps, after.maps)
    for what in ("features", "bank", "seed", "reweight", "squared"):
        assert getattr(loaded, what) == getattr(detector, what), what
    assert torch.equal(loaded.coreset.indices, detector.coreset.indices)
    assert torch.equal(loaded.coreset.radii, detector.coreset.radii)
    assert loaded.coreset.dimension == detector.coreset.dimension
    assert {key: loaded.fitted_on[key] for key in detector.fitted_on} == detector.fitted_on
    if detector.calibration is None:
        assert loaded.calibration is None
    else:
        assert loaded.threshold(0.2) == detector.threshold(0.2)
        assert loaded.calibration.colour_limits() == detector.calibration.colour_limits()
        assert torch.equal(loaded.calibration.patch_mad, detector.calibration.patch_mad)


def test_reconpatchs_training_comes_back(tiny, photos, tmp_path):
    detector = MAKERS["recon"](tiny).fit(photos)
    loaded = ReConPatch.load(detector.save(tmp_path), device="cpu")
    assert torch.equal(loaded.weight, detector.weight)
    assert loaded.training == detector.training and loaded.history == detector.history and len(loaded.history) == 2


def test_an_ensemble_comes_back_to_the_bit(tiny, photos, category, tmp_path):
    ensemble = Ensemble([MAKERS["paper"](tiny), MAKERS["recon"](tiny)]).fit(photos)
    folder = ensemble.save(tmp_path / "ensemble")
    for loaded in (rcp.load(folder, device="cpu"), Ensemble.load(folder, device="cpu")):
        assert [type(member) for member in loaded.members] == [PatchCore, ReConPatch]
        before, after = ensemble.score(category.test), loaded.score(category.test)
        assert torch.equal(before.image_scores, after.image_scores)
        assert torch.equal(before.patch_scores, after.patch_scores)
        assert loaded.threshold(0.25) == ensemble.threshold(0.25)


def test_a_loaded_detector_can_be_saved_again_and_is_the_same_file(fitted, saved, tmp_path):
    again = PatchCore.load(saved, device="cpu").save(tmp_path / "again")
    assert read_json(again / "model.json") == read_json(saved / "model.json")
    assert tensors_of(again).read_bytes() == tensors_of(saved).read_bytes()


def test_an_embedded_backbone_comes_back_by_its_hash(photos, tmp_path):
    settings = FeatureSettings("efficientnet_lite0", resize=72, crop=(64, 96))
    detector = PatchCore(settings, bank=BANK, device="cpu").fit(photos[:3])
    loaded = rcp.load(detector.save(tmp_path), device="cpu")
    assert torch.equal(loaded.score(photos).patch_scores, detector.score(photos).patch_scores)


# --- what lies in the folder -----------------------------------------------------------------------------


def test_the_folder_holds_one_json_and_one_safetensors_file_and_no_pickle(saved):
    files = sorted(path.suffix for path in saved.iterdir())
    assert files == [".json", ".safetensors"]
    safetensors.torch.load_file(tensors_of(saved))
    assert not any(mark in path.read_bytes() for path in saved.iterdir() for mark in (b"PK\x03\x04", b"c__builtin__"))


def test_an_ensembles_folder_holds_only_json_and_safetensors(tiny, photos, tmp_path):
    folder = Ensemble([MAKERS["recon"](tiny), MAKERS["recon"](tiny)]).fit(photos).save(tmp_path / "e")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 5 and {path.suffix for path in files} == {".json", ".safetensors"}


def test_the_json_says_in_words_what_it_is(fitted, saved):
    content = json.loads((saved / "model.json").read_text(encoding="utf-8"))
    assert (content["schema"], content["kind"], content["versions"]) == (1, "patchcore", versions())
    assert content["backbone"]["sha256"] == fitted.extractor.backbone.sha256
    assert content["backbone"]["tag"] == "test_resnet+random" and content["backbone"]["source"] == "random"
    assert content["settings"]["features"]["crop"] == [64, 96] and content["settings"]["bank"]["coreset"] == 0.1
    assert content["settings"]["seed"] == 3 and content["fitted_on"]["images"] == 7
    assert content["tensors"]["file"] == tensors_of(saved).name


def test_saving_over_an_older_model_leaves_one_tensor_file(tiny, photos, category, saved):
    newer = MAKERS["paper"](tiny).fit(photos)
    before = tensors_of(saved).name
    newer.save(saved)
    assert tensors_of(saved).name != before and len(list(saved.iterdir())) == 2
    loaded = rcp.load(saved, device="cpu")
    assert torch.equal(loaded.score(category.test).image_scores, newer.score(category.test).image_scores)


@pytest.mark.parametrize("broken", ["write_json", "write_tensors"])
def test_a_save_that_breaks_off_leaves_the_older_model_whole(broken, fitted, tiny, photos, saved, monkeypatch):
    newer = MAKERS["paper"](tiny).fit(photos)

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(modelfile, broken, fail)
    with pytest.raises(KeyboardInterrupt):
        newer.save(saved)
    loaded = rcp.load(saved, device="cpu")
    assert torch.equal(loaded.score(photos).image_scores, fitted.score(photos).image_scores)


def test_a_detector_saved_over_an_ensemble_replaces_it(fitted, tiny, photos, tmp_path):
    Ensemble([MAKERS["concat"](tiny)]).fit(photos).save(tmp_path)
    fitted.save(tmp_path)
    assert isinstance(rcp.load(tmp_path, device="cpu"), PatchCore)


# --- what is refused -------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path):
    for load in (rcp.load, PatchCore.load):
        with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'none'} holds no saved detector")):
            load(tmp_path / "none")


def test_another_kind_of_detector_is_named(saved):
    with pytest.raises(ValueError, match=re.escape(f"{saved} holds a patchcore, not a reconpatch: load it")):
        ReConPatch.load(saved)
    edit(saved, kind="cflow")
    with pytest.raises(ValueError, match="unknown detector 'cflow'.*patchcore, reconpatch"):
        rcp.load(saved)


@pytest.mark.parametrize("schema", [0, 2, None, "1"])
def test_another_schema_is_refused(saved, schema):
    edit(saved, schema=schema)
    with pytest.raises(ValueError, match=f"schema {schema}, this version of rcp reads 1"):
        rcp.load(saved)


def test_an_ensemble_of_another_schema_is_refused(tiny, photos, tmp_path):
    Ensemble([MAKERS["concat"](tiny)]).fit(photos).save(tmp_path)
    write_json(tmp_path / "ensemble.json", read_json(tmp_path / "ensemble.json") | {"schema": 7})
    with pytest.raises(ValueError, match="schema 7, this version of rcp reads 1"):
        rcp.load(tmp_path)


def test_one_changed_number_is_noticed(saved):
    tensors, header = read_tensors(tensors_of(saved))
    tensors["memory"][0, 0] += 1e-4
    write_tensors(tensors_of(saved), tensors, header)
    with pytest.raises(ValueError, match=re.escape(f"{saved}: the tensors are not those that model.json")):
        rcp.load(saved)


def test_a_truncated_a_foreign_and_a_missing_tensor_file_are_named(saved):
    file = tensors_of(saved)
    whole = file.read_bytes()
    for content in (whole[:-7], whole[:100], b"", b"PK\x03\x04"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{file} is not a file that this project wrote")):
            rcp.load(saved)
    safetensors.torch.save_file({"memory": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=re.escape(f"{file} is not a file that this project wrote")):
        rcp.load(saved)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"there is no file {file}")):
        rcp.load(saved)


@pytest.mark.parametrize("content", [b'{"schema": 1, "ki', b"\xff\xfe", b""])
def test_a_damaged_json_is_named(saved, content):
    (saved / "model.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{saved / 'model.json'} is not a JSON file")):
        rcp.load(saved)


@pytest.mark.parametrize("content", ['{"schema": 1}', "[]", "3"])
def test_a_json_that_is_not_ours_is_refused(saved, content):
    (saved / "model.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(saved))):
        rcp.load(saved)


@pytest.mark.parametrize(("name", "tensor"), [("concat", "memory"), ("recon", "memory"), ("recon", "f")])
def test_tensors_of_another_shape_than_the_settings_say_are_refused(name, tensor, tiny, photos, tmp_path):
    MAKERS[name](tiny).fit(photos).save(tmp_path)
    file = read_model(tmp_path)
    file.tensors[tensor] = file.tensors[tensor][:, :-1].contiguous()
    write_model(tmp_path, file)
    with pytest.raises(ValueError, match=f"the tensor '{tensor}' should be"):
        rcp.load(tmp_path)
    del file.tensors[tensor]
    write_model(tmp_path, file)
    with pytest.raises(ValueError, match=f"the tensor '{tensor}' should be .* found None"):
        rcp.load(tmp_path)


@pytest.mark.parametrize("name", ["torch", "rcp", "numpy", "python"])
def test_another_version_is_warned_of_by_name(saved, name, photos):
    edit(saved, versions=versions() | {name: "0.0.1"})
    with pytest.warns(VersionWarning, match=re.escape(f"{saved} was written with {name} 0.0.1 (here ")) as caught:
        loaded = rcp.load(saved, device="cpu")
    assert str(caught[0].message).count("here") == 1 and len(loaded.score(photos)) == 7


# --- weights ---------------------------------------------------------------------------------------------


@pytest.fixture
def with_weights(tiny, photos, tmp_path) -> tuple[PatchCore, Path, Path]:
    """A saved detector whose backbone's weights are a local file: (detector, its folder, the file)."""
    file = tmp_path / "w.safetensors"
    state = timm.create_model("test_resnet", pretrained=False).state_dict()
    safetensors.torch.save_file(state, file)
    settings = replace(tiny, pretrained=True, weights=str(file))
    detector = PatchCore(settings, bank=BANK, device="cpu").fit(photos)
    return detector, detector.save(tmp_path / "model"), file


def test_weights_that_lie_elsewhere_now_can_be_pointed_to(with_weights, photos, tmp_path):
    detector, folder, file = with_weights
    moved = file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(WeightsError, match=re.escape(f"there is no file {file}")):
        rcp.load(folder, device="cpu")
    for load in (rcp.load, PatchCore.load):
        loaded = load(folder, device="cpu", weights=str(moved))
        assert torch.equal(loaded.score(photos).image_scores, detector.score(photos).image_scores)


def test_other_weights_than_those_of_the_memory_are_refused(with_weights):
    detector, folder, file = with_weights
    state = safetensors.torch.load_file(file)
    state["conv1.0.weight"][0, 0, 0, 0] += 1e-3
    safetensors.torch.save_file(state, file)
    with pytest.raises(ValueError, match="fitted with the weights") as caught:
        rcp.load(folder, device="cpu")
    assert detector.extractor.backbone.sha256[:12] in str(caught.value) and "fit again" in str(caught.value)


# --- files -----------------------------------------------------------------------------------------------


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert path.read_text(encoding="utf-8") == "old" and listing(tmp_path) == ["a.json"]


def test_while_it_is_written_a_file_is_not_there_and_afterwards_alone(tmp_path):
    path = tmp_path / "new" / "deep" / "a.txt"

    def write(temporary: Path) -> None:
        assert temporary.parent == path.parent and temporary.suffix == ".txt" and not path.exists()
        temporary.write_text("whole")

    assert write_atomically(path, write) == path
    assert path.read_text(encoding="utf-8") == "whole" and listing(path.parent) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "ours.json", {})
    assert (tmp_path / "ours.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_not_a_number_becomes_null_wherever_it_is(tmp_path):
    content = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, "nan")}], 3: Path("x") / "y"}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [1.5, None, {"c": [None, "nan"]}], "3": "x/y"}
    assert "NaN" not in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_json_keeps_letters_of_all_languages_and_all_digits(tmp_path):
    content = {"σ": "Kratzer, große", "x": 0.1 + 0.2, "n": 2**60, "t": True, "none": None}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "a.json") == content and "große" in text and text.endswith("}\n")


def test_content_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == 1 and listing(tmp_path) == ["a.json"]


def test_tensors_and_header_come_back(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor([1, 2]), "c": torch.rand(2, requires_grad=True)}
    write_tensors(tmp_path / "t.safetensors", tensors, {"schema": 1, "x": math.nan})
    found, header = read_tensors(tmp_path / "t.safetensors")
    assert header == {"schema": 1, "x": None} and set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


def test_tensors_that_cannot_be_written_leave_the_old_file(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.ones(1)}, 1)
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):
        write_tensors(path, {"a": shared, "b": shared}, 2)
    assert read_tensors(path)[1] == 1 and listing(tmp_path) == ["t.safetensors"]
