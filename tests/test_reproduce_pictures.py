"""`rcp reproduce figureN`: what is there is not measured again, one that fails does not stop the others, each category's features once."""

from __future__ import annotations

import gc
import importlib.machinery
import json
import sys
import types
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_reproduce import make_small, parsed

from rcp import TrainSettings, miniatures, plots, plots_paper, presets
from rcp.backbones import WeightsError
from rcp.experiments import Machine
from rcp.plots_paper import read
from rcp.reproduce import command, pictures
from rcp.reproduce.figure_files import picture
from rcp.reproduce.figures import FIGURES, Settings
from rcp.reproduce.setup import Setup
from rcp.store import MemoryLimit

NAMES = ("figure3", "figure4", "figure5")
SETTINGS = Settings(TrainSettings(dimension=16, projection=16, epochs=2, steps=1, batch_size=32), (1, 2), (0,), rounds=5)
SETUP = Setup("mvtec", ("bottle", "capsule"), quick=True)


class FlatUMAP:
    """Two of the columns, at once."""

    def __init__(self, **options):
        pass

    def fit_transform(self, rows):
        return rows[:, :2]


def make_smaller(patch) -> None:
    """All of it small: networks, pictures, trainings, UMAP."""
    make_small(patch)
    umap = types.ModuleType("umap")
    umap.UMAP, umap.__spec__ = FlatUMAP, importlib.machinery.ModuleSpec("umap", None)
    patch.setitem(sys.modules, "umap", umap)
    patch.setattr(pictures, "QUICK", SETTINGS)
    patch.setattr("rcp.experiments.measure._probes", lambda *_: {})  # no figure shows them


@pytest.fixture(autouse=True)
def little(monkeypatch):
    make_smaller(monkeypatch)


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    return miniatures.mvtec(tmp_path_factory.mktemp("mini") / "mvtec", categories=("bottle", "capsule"), train=3, good=2)


@pytest.fixture(scope="module")
def there(mini, tmp_path_factory) -> tuple[Path, list[str]]:
    """The three figures, measured and drawn, and what was said."""
    out, lines = tmp_path_factory.mktemp("figures"), []
    with pytest.MonkeyPatch.context() as patch:
        make_smaller(patch)
        drawn = pictures.draw(NAMES, SETUP, mini, out, say=lines.append)
    assert drawn == pictures.Drawn(tuple(out / f"{name}.png" for name in NAMES), {})
    return out, lines


def stub(monkeypatch, **instead) -> None:
    """Put other functions in the place of some measurements; what they return is drawn as it is."""
    monkeypatch.setattr(pictures, "FIGURES", FIGURES | instead)
    monkeypatch.setattr(pictures, "picture", lambda path: path.with_suffix(".png"))


def test_each_figure_is_measured_on_the_papers_category_and_drawn_beside_its_file(there):
    out, lines = there
    assert sorted(lines) == ["figure3: capsule, 2 epochs", "figure4: bottle, 2 epochs", "figure5: bottle, 2 epochs"]
    for name in NAMES:
        file = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        assert file["dataset"]["category"] == pictures.SHOWN[name] and (out / f"{name}.png").stat().st_size > 1000
        assert file["source"] == f"a drawn miniature of mvtec {pictures.SHOWN[name]}"
        assert file["settings"]["training"]["epochs"] == 2 and file["settings"]["features"]["backbone"] == "test_resnet"


def test_what_is_there_is_drawn_without_computing_a_feature(there, mini, monkeypatch):
    out, _ = there
    before = {name: (out / f"{name}.json").read_bytes() for name in NAMES}
    for name in NAMES:
        (out / f"{name}.png").unlink()

    def never(*_, **__):
        raise AssertionError("features were computed")

    monkeypatch.setattr(pictures, "prepare", never)
    lines = []
    drawn = pictures.draw(NAMES, SETUP, mini, out, say=lines.append)
    assert not drawn.failures and all(path.is_file() for path in drawn.paths) and len(drawn.paths) == 3
    assert all(f"{name}: {out / name}.json is there already" in lines for name in NAMES)
    assert {name: (out / f"{name}.json").read_bytes() for name in NAMES} == before


def changed(file: dict, key: str) -> dict:
    """The file, as if it were of other images, weights or settings."""
    if key == "images":
        file["dataset"]["test"]["fingerprint"] = "0" * 64
    elif key == "weights":
        file["backbone"]["sha256"] = "0" * 64
    elif key in ("training", "features"):
        part = file["settings"][key]
        name = next(iter({"training": {"alpha"}, "features": {"patch_size"}}[key]))
        part[name] = 0.25 if key == "training" else 7
    else:
        file["settings"][key] = [7] if isinstance(file["settings"][key], list) else 7
    return file


@pytest.mark.parametrize(
    "name, key",
    [*((name, key) for name in NAMES for key in ("images", "weights", "training", "features")),
     ("figure3", "epochs"), ("figure3", "seed"), ("figure4", "seeds"), ("figure5", "seed")],
)  # fmt: skip
def test_a_file_of_other_images_weights_or_settings_is_measured_anew(there, mini, tmp_path, monkeypatch, name, key):
    text = (there[0] / f"{name}.json").read_text(encoding="utf-8")
    calls = []
    stub(monkeypatch, **{name: lambda material, out, settings: calls.append(name)})
    (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    pictures.draw([name], SETUP, mini, tmp_path, say=lambda line: None)
    assert calls == []
    (tmp_path / f"{name}.json").write_text(json.dumps(changed(json.loads(text), key)), encoding="utf-8")
    pictures.draw([name], SETUP, mini, tmp_path, say=lambda line: None)
    assert calls == [name]


def test_a_figure_that_fails_is_told_and_the_others_are_drawn(mini, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("no luck today")

    stub(monkeypatch, figure3=lambda *_: None, figure4=broken, figure5=lambda *_: None)
    drawn = pictures.draw(NAMES, SETUP, mini, tmp_path, say=lambda line: None)
    assert drawn.paths == (tmp_path / "figure3.png", tmp_path / "figure5.png")
    assert drawn.failures == {"figure4": "ValueError: no luck today"}


def test_a_damaged_file_is_told_and_stops_no_other(mini, tmp_path, monkeypatch):
    stub(monkeypatch, figure3=lambda *_: None, figure4=lambda *_: None)
    (tmp_path / "figure4.json").write_text("{", encoding="utf-8")
    drawn = pictures.draw(("figure3", "figure4"), SETUP, mini, tmp_path, say=lambda line: None)
    assert drawn.paths == (tmp_path / "figure3.png",)
    assert "figure4.json is not a JSON file" in drawn.failures["figure4"]


def test_ctrl_c_ends_all_of_it(mini, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    stub(monkeypatch, figure4=interrupted)
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        pictures.draw(("figure4",), SETUP, mini, tmp_path, machine=Machine(threads=threads + 1), say=lambda line: None)
    assert torch.get_num_threads() == threads


def test_features_are_computed_once_a_category_and_never_held_of_two(mini, tmp_path, monkeypatch):
    made, whole = [], pictures.prepare

    def counted(category, *arguments, **options):
        gc.collect()
        assert all(material() is None for _, material in made), "the features of two categories at once"
        found = whole(category, *arguments, **options)
        made.append((category.name, weakref.ref(found)))
        return found

    monkeypatch.setattr(pictures, "prepare", counted)
    stub(monkeypatch, **dict.fromkeys(NAMES, lambda *_: None))
    monkeypatch.setattr(pictures, "SHOWN", {"figure3": "bottle", "figure4": "capsule", "figure5": "bottle"})
    pictures.draw(NAMES, SETUP, mini, tmp_path, say=lambda line: None)
    assert [name for name, _ in made] == ["bottle", "capsule"]


def test_figures_obey_threads_and_the_bound_on_memory(mini, tmp_path, monkeypatch):
    seen, before = [], torch.get_num_threads()

    def looked(material, out, settings):
        seen.append((torch.get_num_threads(), material.limit))

    stub(monkeypatch, figure4=looked)
    for machine in (Machine(threads=before + 1, max_memory=2**40), Machine()):
        pictures.draw(["figure4"], SETUP, mini, tmp_path / "new", machine=machine, say=lambda line: None)
        assert torch.get_num_threads() == before
    assert seen == [(before + 1, MemoryLimit(2**40, tmp_path / "new")), (before, MemoryLimit())]


def test_without_the_papers_category_the_first_one_is_shown():
    asked = replace(SETUP, categories=("cable", "pill"))
    assert [pictures.shown(name, asked) for name in NAMES] == ["cable"] * 3
    assert [pictures.shown(name, SETUP) for name in NAMES] == ["capsule", "bottle", "bottle"]


def test_without_quick_the_figures_have_the_papers_training_and_the_seeds_asked_for():
    found = pictures.settings_of(Setup("mvtec", ("bottle",), seeds=(0, 1)))
    assert found.training == presets.get("single-224").training and found.training.epochs == 120
    assert (found.seeds, found.epochs) == ((0, 1), (1, 40, 58))
    assert pictures.settings_of(SETUP) is SETTINGS


# The command


def run(out: Path, *arguments: str) -> int:
    return command.reproduce(parsed(*arguments, "--quick", "--backbone", "paper", "--seeds", "1", "--threads", "1", "--out", str(out)))


def test_the_command_measures_a_figure_and_a_second_run_finds_it(mini, tmp_path, monkeypatch, capsys):
    assert run(tmp_path, "figure4", "--data", "mvtec", str(mini), "--category", "capsule") == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [(tmp_path / "figure4.png").as_posix()] and (tmp_path / "figure4.png").is_file()
    assert "figure4: capsule, 2 epochs" in said.err and "figure4: 1 trainings of 2 steps in all, 32 patches a step" in said.err
    monkeypatch.setattr(pictures, "prepare", None)
    assert run(tmp_path, "figure4", "--data", "mvtec", str(mini), "--category", "capsule") == 0
    assert "is there already" in capsys.readouterr().err


def test_a_figure_that_fails_makes_the_exit_status_3(mini, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no luck today")

    stub(monkeypatch, figure4=broken, figure5=lambda *_: None)
    assert run(tmp_path, "figure5", "figure4", "--data", "mvtec", str(mini)) == 3
    said = capsys.readouterr()
    assert "failed: figure4: RuntimeError: no luck today" in said.err
    assert said.out.splitlines() == [(tmp_path / "figure5.png").as_posix()]


def test_the_command_hands_the_machine_on(mini, tmp_path, monkeypatch):
    seen = {}

    def looked(names, setup, root, out, *, machine, say):
        seen.update(names=names, root=root, machine=machine)
        return pictures.Drawn((), {})

    monkeypatch.setattr(pictures, "draw", looked)
    assert run(tmp_path, "figure5", "figure3", "--data", "mvtec", str(mini), "--max-memory", "7", "--device", "cpu") == 0
    assert seen == {"names": ["figure3", "figure5"], "root": mini, "machine": Machine("cpu", 1, 7_000_000_000)}


def test_weights_that_cannot_be_had_are_told_before_anything_is_measured(mini, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise WeightsError("no net")

    monkeypatch.setattr("rcp.reproduce.cost.load_backbone", offline)
    with pytest.raises(WeightsError, match=r"test_resnet cannot be had .* --weights test_resnet=FILE"):
        run(tmp_path / "out", "figure4", "--data", "mvtec", str(mini))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["figure3", "figure4", "figure5"])
def test_a_picture_carries_its_caption_which_says_what_it_was_measured_on(name, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "write", lambda figure, path: drawn.append(figure) or path)
    path = picture(Path(__file__).resolve().parent.parent / "figures" / "results" / f"{name}.json")
    words = drawn[0].get_suptitle()
    assert path.name == f"{name}.png" and " ".join(words.split()) == plots_paper.caption(read(path.with_suffix(".json"), name))
    assert words.startswith("embedded synthetic data, terminal")
