"""A grid: its file, its errors, and the cells that it stands for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from small_grid import TINY, TRAINING, grid, toml

import rcp
from rcp.exact import exact
from rcp.experiments import Cell, Data, Grid, Method, read_grid
from rcp.experiments.command import GRIDS
from rcp.quality import BLUR, Quality


def cells(given: Grid) -> list[Cell]:
    return given.cells(lambda data: ["a", "b"])


def test_a_file_says_the_same_as_python(tmp_path):
    assert cells(read_grid(toml(tmp_path / "g.toml"))) == cells(grid())


def test_a_system_takes_from_a_shared_backbone_what_it_has_a_use_for():
    half = replace(TINY, stored="float16", patch_size=5, levels=(2,))
    spade, padim, core = (cells(grid([Method(kind, kind)], backbones={"tiny": half}))[0].features[0] for kind in ("spade", "padim", "patchcore"))
    assert (spade.stored, spade.patch_size, spade.levels) == ("float32", 1, (1, 2, 3, 4))
    assert (padim.stored, padim.patch_size, padim.levels) == ("float16", 1, (1, 2, 3)) and core == half


def test_every_key_of_a_file_arrives_where_it_belongs(tmp_path):
    path = toml(
        tmp_path / "g.toml",
        '[[methods]]\nname = "A"\ndetector = "reduced"\nmethod = "random"\nbackbones = ["tiny"]\nseeds = [7]\n'
        'data = ["painted"]\nvary = { "options.dimension" = [8, 4] }\n'
        '[[methods]]\nname = "E"\ndetector = "ensemble"\nmember = "reconpatch"\nmembers = ["tiny", "tiny"]\n'
        'features = { patch_size = 5 }\nbank = { coreset = 0.5 }\ntraining = { alpha = 0.25 }\nreweight = "off"\n',
        data='[[data]]\nname = "painted"\ncategories = ["a"]\nquality = { degrees = 3, blur = 0 }\nsides = "both"\n',
        head='seeds = [0]\nprotocol = "original"\n',
    )
    first, second, ensemble = cells(read_grid(path))
    assert first.data == Data("painted", ("a",), Quality(degrees=3, blur=0), "both") and first.category == "a"
    assert (first.method, first.detector, first.seed, first.protocol) == ("A", "reduced", 7, "original")
    assert first.features == (TINY,) and first.bank == rcp.BankSettings(coreset=0.1, folds=0) and first.training is None
    assert [dict(cell.options) for cell in (first, second)] == [
        {"method": "random", "dimension": width, "reweight": "off"} for width in (8, 4)
    ]
    assert second.varied == {"options.dimension": 4}
    assert ensemble.features == (replace(TINY, patch_size=5),) * 2 and ensemble.backbone == "tiny+tiny"
    assert ensemble.bank == rcp.BankSettings(coreset=0.5, folds=5)  # members are made comparable on held-out images
    assert ensemble.training == rcp.TrainSettings(**TRAINING | {"alpha": 0.25})
    assert ensemble.detector == "reconpatch" and dict(ensemble.options) == {"reweight": "off"}


METHOD = '[[methods]]\nname = "A"\ndetector = "{}"\n'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head": "sed = [0]\n"}, ["the file", "'sed'", "known:", "seeds"]),
        ({"head": "seeds = 3\n"}, ["seeds", "a list", "3"]),
        ({"head": "seeds = [0, -1]\n"}, ["seeds", "whole numbers", "-1"]),
        ({"head": "seeds = [1, 1]\n"}, ["seeds", "different"]),
        ({"head": "seeds = []\n"}, ["needs seeds"]),
        ({"head": 'protocol = "all"\n'}, ["protocol", "crop", "'all'"]),
        ({"head": "[bank2]\n"}, ["the file", "bank2", "known:"]),
        ({"data": ""}, ["needs data"]),
        ({"data": '[data]\nname = "a"\n'}, ["data must be tables", "[[data]]"]),
        ({"data": '[[data]]\nnam = "a"\n'}, ["[[data]]", "'nam'", "known:", "name"]),
        ({"data": '[[data]]\nsides = "test"\nquality = "blur"\n'}, ["[[data]]", "no 'name'"]),
        ({"data": '[[data]]\nname = "a/b"\n'}, ["[[data]] 'a/b'", "slashes"]),
        ({"data": '[[data]]\nname = "a"\nquality = "bad"\n'}, ["[[data]] 'a'", "quality", "rotation", "'bad'"]),
        ({"data": '[[data]]\nname = "a"\nquality = { blurr = 1 }\n'}, ["[[data]] 'a', quality", "'blurr'", "known:", "degrees"]),
        ({"data": '[[data]]\nname = "a"\nquality = { blur = -1 }\n'}, ["[[data]] 'a', quality", "blur", "-1"]),
        ({"data": '[[data]]\nname = "a"\nquality = "blur"\nsides = "left"\n'}, ["[[data]] 'a'", "train, test, both", "'left'"]),
        ({"data": '[[data]]\nname = "a"\nsides = "test"\n'}, ["[[data]] 'a'", "sides", "no effect"]),
        ({"data": '[[data]]\nname = "a"\ncategories = []\n'}, ["[[data]] 'a'", "categories", "at least one"]),
        ({"data": '[[data]]\nname = "a"\ncategories = "b"\n'}, ["[[data]] 'a'", "categories", "a list"]),
        ({"data": '[[data]]\nname = "a"\n[[data]]\nname = "a"\ncategories = ["b"]\n'}, ["'a'", "twice"]),
        ({"data": '[[data]]\nname = "a"\n[[backbones]]\nname = "tiny"\n'}, ["[[backbones]]", "'tiny'", "two of"]),
        ({"data": '[[data]]\nname = "a"\n[[backbones]]\nname = "b"\ncrops = 1\n'}, ["[[backbones]] 'b'", "'crops'", "crop"]),
        ({"data": '[[data]]\nname = "a"\n[[backbones]]\nname = "b"\npatch_size = 2\n'}, ["[[backbones]] 'b'", "patch_size", "2"]),
        ({"methods": "[methods]\n"}, ["methods must be tables"]),
        ({"methods": '[[methods]]\nname = "A"\n'}, ["[[methods]] 'A'", "no 'detector'"]),
        ({"methods": '[[methods]]\ndetector = "patchcore"\n'}, ["[[methods]]", "no 'name'"]),
        ({"methods": METHOD.format("patchcor")}, ["'A'", "detector", "patchcore, reduced", "'patchcor'"]),
        ({"methods": METHOD.format("patchcore") + 'reweight = "off"\n'}, ["[[methods]] 'A'", "'reweight'", "known:", "variant"]),
        ({"methods": METHOD.format("patchcore") * 2}, ["two methods", "'A'"]),
        ({"methods": METHOD.format("patchcore") + "snapshots = [0]\n"}, ["'A'", "does not train"]),
        ({"methods": METHOD.format("patchcore") + "bank = { corset = 1 }\n"}, ["'A'", "bank.corset", "known:", "coreset"]),
        ({"methods": METHOD.format("patchcore") + "bank = { coreset = 2.0 }\n"}, ["'A'", "coreset", "2.0"]),
        ({"methods": METHOD.format("patchcore") + 'bank = { coreset = "x" }\n'}, ["'A'"]),
        ({"methods": METHOD.format("patchcore") + "bank = { parts = 1.5 }\n"}, ["'A'", "parts", "whole number", "1.5"]),
        ({"methods": METHOD.format("patchcore") + "bank = { coreset = true }\n"}, ["'A'", "coreset", "number", "true"]),
        ({"methods": METHOD.format("patchcore") + "bank = { neighbours = nan }\n"}, ["'A'", "neighbours", "whole number", "nan"]),
        ({"methods": METHOD.format("patchcore") + "bank = { neighbours = inf }\n"}, ["'A'", "neighbours", "whole number", "inf"]),
        ({"methods": METHOD.format("reconpatch") + "training = { normalize = 1 }\n"}, ["'A'", "normalize", "true or false", "1"]),
        ({"methods": METHOD.format("reduced") + "dimension = 8.5\n"}, ["'A'", "dimension", "whole number", "8.5"]),
        ({"data": '[[data]]\nname = "a"\n[[backbones]]\nname = "b"\npatch_size = 3.5\n'}, ["[[backbones]] 'b'", "whole number"]),
        ({"methods": METHOD.format("patchcore") + 'variant = "x"\n'}, ["'A'", "variant", "concat", "'x'"]),
        ({"methods": METHOD.format("reconpatch") + "snapshots = [-1]\n"}, ["'A'", "snapshots", "-1"]),
        ({"methods": METHOD.format("reconpatch") + "snapshots = 1\n"}, ["[[methods]] 'A'", "snapshots", "a list"]),
        ({"methods": METHOD.format("reconpatch") + "seeds = []\n"}, ["'A'", "seeds", "something in it"]),
        ({"methods": METHOD.format("reconpatch") + "seeds = [1.5]\n"}, ["'A'", "seeds", "1.5"]),
        ({"methods": METHOD.format("reconpatch") + "vary = { alpha = [1] }\n"}, ["'A'", "training.alpha", "'alpha'"]),
        ({"methods": METHOD.format("reconpatch") + 'vary = { "training.alfa" = [1] }\n'}, ["'A'", "training.alfa", "alpha"]),
        ({"methods": METHOD.format("reconpatch") + 'vary = { "train.alpha" = [1] }\n'}, ["'A'", "train.alpha", "training"]),
        ({"methods": METHOD.format("reconpatch") + 'vary = { "training.alpha" = [] }\n'}, ["'A'", "training.alpha", "something"]),
        ({"methods": METHOD.format("reconpatch") + 'vary = { "options.reweight" = "off" }\n'}, ["'A'", "options.reweight", "list"]),
        ({"methods": METHOD.format("reconpatch") + 'vary = { "training.momentum" = [2.0] }\n'}, ["'A'", "momentum", "2.0"]),
        ({"methods": METHOD.format("patchcore") + 'vary = { "training.alpha" = [0.5] }\n'}, ["'A'", "does not train"]),
        ({"methods": METHOD.format("patchcore") + 'backbones = ["big"]\n'}, ["'A'", "backbones 'big'", "tiny"]),
        ({"methods": METHOD.format("patchcore") + 'data = ["mvtec"]\n'}, ["'A'", "data 'mvtec'", "painted"]),
        ({"methods": METHOD.format("patchcore") + 'members = ["tiny"]\n'}, ["'A'", "members"]),
        ({"methods": METHOD.format("ensemble") + 'member = "patchcore"\n'}, ["'A'", "members"]),
        ({"methods": METHOD.format("ensemble") + 'members = ["tiny"]\n'}, ["'A'", "member", "None"]),
        ({"methods": METHOD.format("ensemble") + 'members = ["big"]\nmember = "patchcore"\n'}, ["'A'", "'big'", "tiny"]),
        ({"methods": METHOD.format("ensemble") + 'members = ["tiny"]\nmember = "patchcore"\nreweight = "off"\n'}, ["'A'", "reweight"]),
    ],
)
def test_an_error_names_the_file_the_table_and_the_key(tmp_path, change, words):
    path = toml(tmp_path / "faulty.toml", **change)
    with pytest.raises(ValueError, match="faulty.toml") as caught:
        read_grid(path)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and "__init__" not in message


def test_unknown_common_settings_are_found(tmp_path):
    path = tmp_path / "g.toml"
    path.write_text(toml(path).read_text(encoding="utf-8").replace("steps", "stepps"), encoding="utf-8")
    with pytest.raises(ValueError, match="training: unknown 'stepps'; known: .*steps"):
        read_grid(path)


def test_no_file_no_toml_and_no_text_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="no grid file .*absent.toml"):
        read_grid(tmp_path / "absent.toml")
    for content in (b"title = ", b"\xff\xfe"):
        (tmp_path / "g.toml").write_bytes(content)
        with pytest.raises(ValueError, match=r"g\.toml: "):
            read_grid(tmp_path / "g.toml")


def test_a_grid_is_the_product_of_everything_in_it():
    found = cells(grid(backbones={"tiny": TINY, "other": replace(TINY, patch_size=5)}, data=(Data("x"), Data("y", ("c",)))))
    assert len(found) == (2 + 1) * 2 * 2 * 2
    keys = [(c.data.name, c.category, c.backbone, c.method, c.seed) for c in found]
    assert len(set(keys)) == len(keys)
    features = [(c.data, c.category, c.features) for c in found]
    assert sum(a != b for a, b in zip(features, features[1:], strict=False)) == 3 * 2 - 1  # shared features lie side by side


def test_varied_settings_are_combined_and_told():
    method = Method("A", "reconpatch", vary={"training.alpha": (0.0, 1.0), "bank.coreset": (0.5, 0.25, 0.1)})
    found = cells(grid([method], seeds=(3,), data=(Data("x", ("a",)),)))
    assert [(c.training.alpha, c.bank.coreset) for c in found] == [(a, b) for a in (0.0, 1.0) for b in (0.5, 0.25, 0.1)]
    assert found[-1].varied == {"training.alpha": 1.0, "bank.coreset": 0.1} and "alpha 1.0, coreset 0.1" in str(found[-1])


def test_a_method_can_be_kept_to_some_data_backbones_and_seeds():
    clear, blurred = Data("x"), Data("x", quality=BLUR)
    both = {"tiny": TINY, "other": replace(TINY, patch_size=5)}
    methods = [
        Method("everywhere", "patchcore"),
        Method("name", "patchcore", data=("x",), backbones=("other",), seeds=(9,)),
        Method("label", "patchcore", data=("x, blur on test",), seeds=(9,)),
    ]
    found = cells(grid(methods, data=(clear, blurred), backbones=both))
    of = {method.name: [c for c in found if c.method == method.name] for method in methods}
    assert {(c.data, c.backbone, c.seed) for c in of["everywhere"]} == {(d, b, s) for d in (clear, blurred) for b in both for s in (0, 1)}
    assert {(c.data, c.backbone, c.seed) for c in of["name"]} == {(clear, "other", 9), (blurred, "other", 9)}
    assert {(c.data, c.backbone, c.seed) for c in of["label"]} == {(blurred, "tiny", 9), (blurred, "other", 9)}


def test_a_snapshot_behind_the_end_is_no_snapshot():
    found = cells(grid([Method("A", "reconpatch", snapshots=(2, 1, 0, 5))]))
    assert {c.snapshots for c in found} == {(0, 1)}


def test_labels_of_degraded_data_differ_where_the_pictures_do():
    qualities = [Quality(degrees=d, blur=b, seed=s) for d in (5, 7, 7.0000001) for b in (0, 1.5) for s in (0, 1)]
    labels = [Data("x", quality=quality, sides=sides).label for quality in qualities for sides in ("train", "test", "both")]
    assert len(set(labels)) == len(labels)
    assert Data("x", quality=BLUR).label == "x, blur on test" and Data("x").label == "x"


def test_settings_are_plain_and_hold_every_default():
    for cell in cells(grid([Method("A", "reconpatch"), Method("B", "patchcore"), Method("C", "ported")])):
        settings = json.loads(json.dumps(cell.settings()))
        assert settings == cell.settings() | {"features": settings["features"]}
        assert settings["bank"]["neighbours"] == 9 and settings["features"][0]["patch_size"] == 3
        assert (settings["training"] is None) == (cell.detector == "patchcore")


def test_one_number_in_two_spellings_is_one_setting(tmp_path):
    def settings(crop, patch, rate, epochs, alpha, coreset, neighbours, dimension):
        methods = (
            f'[[methods]]\nname = "A"\ndetector = "reconpatch"\ntraining = {{ learning_rate = {rate}, epochs = {epochs} }}\n'
            f'bank = {{ coreset = {coreset}, neighbours = {neighbours} }}\nvary = {{ "training.alpha" = [{alpha}] }}\n'
            f'features = {{ levels = [{patch}] }}\n[[methods]]\nname = "B"\ndetector = "reduced"\ndimension = {dimension}\n'
        )
        path = toml(tmp_path / "g.toml", methods)
        text = path.read_text(encoding="utf-8").replace("crop = [64, 96]", f"crop = {crop}\npatch_size = {patch}")
        path.write_text(text, encoding="utf-8")
        return [json.dumps([cell.settings(), cell.names()]) for cell in cells(read_grid(path))]

    whole = settings("[64, 96]", 3, 1, 4, 1, 1, 5, 8)
    assert whole == settings("[64.0, 96.0]", "3.0", "1.0", "4.0", "1.0", "1.0", "5.0", "8.0")
    assert all(f'"{part}": {value}' in whole[0] for part, value in (
        ("learning_rate", "1.0"), ("epochs", "4"), ("training.alpha", "1.0"), ("coreset", "1.0"), ("neighbours", "5"), ("patch_size", "3")
    ))  # fmt: skip
    assert '"crop": [64, 96]' in whole[0] and '"levels": [3]' in whole[0] and '"dimension": 8,' in whole[-1]


def test_numbers_that_are_right_stay_what_they_are():
    given = {"learning_rate": 1e-5, "steps": None, "epochs": 0, "alpha": 0.0, "relative_sigma": None, "normalize": True, "labels": "soft"}
    assert json.dumps(exact(rcp.TrainSettings, given)) == json.dumps(given)
    sizes = {"levels": (2, 3), "resize": None, "crop": 224, "weights": None, "backbone": "a"}
    assert repr(exact(rcp.FeatureSettings, sizes)) == repr(sizes)


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_grids_that_come_along_can_be_read(path):
    assert cells(read_grid(path))
