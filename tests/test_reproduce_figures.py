"""The paper's figures: what is measured stands in the files, what is drawn comes from the files alone."""

from __future__ import annotations

import ast
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rcp
from rcp import hits, metrics, plots_grids, plots_paper, positions
from rcp.experiments.collection import read_rows
from rcp.experiments.results import write_collection
from rcp.reproduce import figure_files, figures
from rcp.reproduce.figures import Settings

TRAINING = rcp.TrainSettings(dimension=16, projection=16, epochs=3, steps=2, batch_size=32)
SETTINGS = Settings(TRAINING, epochs=(1, 2), seeds=(3, 4), rounds=20)
LAYOUTS = []  # what the stand-in for UMAP was asked


class FlatUMAP:
    """Two of the columns: the real one takes seconds to compile itself, and the notebook runs it."""

    def __init__(self, **options):
        LAYOUTS.append(options)

    def fit_transform(self, rows):
        return rows[:, :2]


def random_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def material(tiny, category):
    return figures.prepare(category, tiny, device="cpu")


@pytest.fixture(scope="module")
def files(material, tmp_path_factory):
    """The three files, on 8x12 patches of 64x96 pixels."""
    out = tmp_path_factory.mktemp("figures")
    LAYOUTS.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=FlatUMAP))
        return {name: measure(material, out, SETTINGS) for name, measure in figures.FIGURES.items()}


@pytest.fixture
def nothing_but_files(monkeypatch):
    """Whoever opens a data set, loads a network or trains one fails."""

    def refuse(*args, **options):
        raise AssertionError("a figure is drawn from its file alone")

    for owner, name in (
        (rcp.PatchExtractor, "__init__"), (rcp.data, "find"), (torch.nn.Module, "__call__"), (torch.Tensor, "__matmul__"),
        (rcp.detectors.BankDetector, "fit"), (rcp.scoring, "pixel_maps"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, refuse)


def content(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def offsets(axes) -> np.ndarray:
    return np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections])


def titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


# Positions and hits


def test_the_papers_positions_stand_at_28_and_keep_their_place_on_other_grids():
    assert positions.positions(28, 28) == list(positions.POSITIONS)
    for h, w in ((8, 12), (40, 60), (5, 3)):
        for (r, c), (row, column) in zip(positions.POSITIONS, positions.positions(h, w), strict=True):
            assert row <= (r + 0.5) / 28 * h < row + 1 and column <= (c + 0.5) / 28 * w < column + 1


GROUPS = torch.arange(4).repeat_interleave(5)


def test_separation_is_a_loop_over_pairs():
    rows = random_rows(20, 6)
    within, between = [], []
    for i in range(20):
        for j in range(20):
            if i != j:
                (within if GROUPS[i] == GROUPS[j] else between).append(float((rows[i] - rows[j]).norm()))
    assert positions.separation(rows, GROUPS) == pytest.approx((np.mean(within), np.mean(between)), rel=1e-5)


@pytest.mark.parametrize("k", (1, 3, 19))
def test_agreement_is_a_loop_over_rows(k):
    rows = random_rows(20, 6)
    shares = []
    for i in range(20):
        order = sorted((float((rows[i] - rows[j]).norm()), int(GROUPS[j])) for j in range(20) if j != i)
        shares.append(np.mean([group == GROUPS[i] for _, group in order[:k]]))
    assert positions.neighbour_agreement(rows, GROUPS, k) == pytest.approx(np.mean(shares))


# What every file says


def test_every_file_says_what_it_was_measured_on_and_how(files, material):
    for name, path in files.items():
        found = content(path)
        assert found["dataset"]["test"]["fingerprint"] == material.category.test.fingerprint()
        assert found["backbone"]["sha256"] == material.extractors[0].backbone.sha256
        assert found["settings"]["training"]["epochs"] == 3 and found["steps"] == 2
        assert (found["size"], found["grid"]) == ([64, 96], [8, 12]) and found["versions"]["torch"]
        words = plots_paper.caption(plots_paper.read(path, name))
        assert words.startswith("mvtec thing, 8 training images") and "3 epochs of 2 steps of 32 patches" in words
    assert content(files["figure3"])["versions"]["umap-learn"]


def test_drawing_opens_no_data_and_no_network(files, nothing_but_files):
    for name, path in files.items():
        assert getattr(plots_paper, name)(path).axes


@pytest.mark.parametrize("room", [plots_paper, plots_grids])
def test_the_rooms_that_draw_import_nothing_that_computes(room):
    imported = set()
    for node in ast.walk(ast.parse(Path(room.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            imported |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    computing = {
        "torch",
        "timm",
        "umap",
        *(f"rcp.{name}" for name in ("data", "features", "head", "detectors", "memory", "evaluation")),
    }
    assert not imported & computing


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_a_file_that_is_missing_cut_off_or_something_else_is_named_with_what_to_do(files, name, tmp_path):
    draw = getattr(plots_paper, name)
    with pytest.raises(FileNotFoundError, match=f"there is no file .*measure it anew, by rcp.reproduce.figures.{name}"):
        draw(tmp_path / "none.json")
    whole = files[name].read_text(encoding="utf-8")
    path = tmp_path / "damaged.json"
    path.write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(ValueError, match=r"damaged.json is not a JSON file.*measure it anew"):
        draw(path)
    other = next(one for one in files if one != name)
    for text in (whole.replace('"schema": 1', '"schema": 0'), files[other].read_text(encoding="utf-8"), "[]"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"damaged.json is no result file of {name}, schema 1: measure it anew"):
            draw(path)


# Figure 3


def test_figure_3_has_the_features_of_the_four_places_before_and_after_f(files, material):
    found = content(files["figure3"])
    assert [tuple(place) for place in found["positions"]] == positions.positions(8, 12)
    assert [row["stage"] for row in found["rows"]] == ["PatchCore", "epoch 1", "epoch 2"]
    four = torch.cat([material.train[0].values[:, r, c] for r, c in positions.positions(8, 12)])
    groups = torch.arange(4).repeat_interleave(8)
    assert found["groups"] == groups.tolist()
    assert np.allclose(found["rows"][0]["coordinates"], four[:, :2], atol=5e-4)  # the stand-in keeps two columns
    within, between = positions.separation(four, groups)
    assert found["rows"][0]["ratio"] == pytest.approx(between / within)
    kept = []
    rcp.head.train_head(
        material.train[0].rows,
        TRAINING,
        seed=3,
        patches_per_image=96,
        callbacks=[lambda e: kept.append(e.head.f.weight.detach().clone())],
    )
    for row, f in zip(
        found["rows"][1:], kept[1:3], strict=True
    ):  # as in the whole training: rates fall as for all epochs
        within, between = positions.separation(four @ f.T, groups)
        assert row["ratio"] == pytest.approx(between / within, rel=1e-5)
        assert np.allclose(row["coordinates"], (four @ f.T)[:, :2], atol=1e-3)


def test_layouts_are_seeded_and_each_starts_from_the_one_before(files):
    first, second, third = LAYOUTS[:3]
    assert all(one["random_state"] == 3 and one["n_jobs"] == 1 and one["n_epochs"] == 20 for one in LAYOUTS)
    assert isinstance(first["init"], str)
    found = [row["coordinates"] for row in content(files["figure3"])["rows"]]
    assert np.allclose(second["init"], found[0], atol=1e-3) and np.allclose(third["init"], found[1], atol=1e-3)


def test_figure_3_draws_every_point_and_the_number_below(files):
    found, figure = content(files["figure3"]), plots_paper.figure3(files["figure3"])
    assert titles(figure) == [row["stage"] for row in found["rows"]]
    for axes, row in zip(figure.axes, found["rows"], strict=True):
        assert np.allclose(offsets(axes), row["coordinates"])  # rows lie position by position
        assert axes.get_xlabel().endswith(f"= {row['ratio']:.2f}") and not len(axes.get_xticks())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        str(place) for place in positions.positions(8, 12)
    ]
    assert len({c.get_paths()[0].vertices.tobytes() for c in figure.axes[0].collections}) == 4  # never colour alone


def test_a_wrong_choice_of_epochs_is_refused():
    for epochs in ((2, 1), (1, 4), (1, 1), (-1, 2)):
        with pytest.raises(ValueError, match="epochs must rise from 0 to 3"):
            replace(SETTINGS, epochs=epochs)
    with pytest.raises(ValueError, match="at least of each|one at least"):
        replace(SETTINGS, seeds=())


def test_ctrl_c_in_the_training_leaves_no_file(material, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=FlatUMAP))
    monkeypatch.setattr(figures, "train_head", lambda *args, **options: None)  # ended before the last epoch asked for
    with pytest.raises(KeyboardInterrupt):
        figures.figure3(material, tmp_path, SETTINGS)
    assert not list(tmp_path.iterdir())


def test_figure_3_says_what_it_needs(material, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="umap-learn"):
        figures.figure3(material, tmp_path, SETTINGS)


# Figure 4


def test_dprime_in_the_file_is_that_of_its_own_scores(files):
    rows = content(files["figure4"])["rows"]
    expected = [(name, seed) for name in ("PatchCore", "untrained f", "ReConPatch") for seed in (3, 4)]
    assert [(row["detector"], row["seed"]) for row in rows] == expected
    for row in rows:
        labels = [int(defect != "good") for defect, _ in row["images"]]
        assert sum(labels) == 3 and len(labels) == 7
        assert metrics.dprime(labels, [score for _, score in row["images"]]) == pytest.approx(row["d_prime"], rel=1e-4)


def test_figure_4_counts_every_image_once_and_states_measured_beside_published(files):
    rows, figure = content(files["figure4"])["rows"], plots_paper.figure4(files["figure4"])
    for axes, name in zip(figure.axes, ("PatchCore", "untrained f", "ReConPatch"), strict=True):
        values = [row["d_prime"] for row in rows if row["detector"] == name]
        first, second = axes.get_title().splitlines()
        assert first == f"{name}: d' = {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
        assert second.endswith({"PatchCore": "4.32", "ReConPatch": "4.92"}.get(name, "no published number"))
        normal, abnormal = (sum(bar.get_height() for bar in bars) for bars in axes.containers)
        assert (normal, abnormal) == (pytest.approx(4), pytest.approx(3))
        assert min(bar.get_x() for bar in axes.patches) == pytest.approx(0)


def test_results_that_are_there_are_not_measured_again(files, material, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "measure", None)
    again = figures.figure4(material, tmp_path, SETTINGS, cells=files["figure4"].parent / "cells")
    assert content(again)["rows"] == content(files["figure4"])["rows"]


def test_scaling_changes_no_dprime():
    labels, scores = np.repeat([0, 1], 9), random_rows(18).double().numpy() * 7 + 40
    assert plots_paper.scaled(scores).min() == 0 and plots_paper.scaled(scores).max() == 1
    assert metrics.dprime(labels, plots_paper.scaled(scores)) == pytest.approx(metrics.dprime(labels, scores))
    assert not plots_paper.scaled(np.full(3, 2.0)).any()


def test_the_spread_is_that_of_a_sample():
    assert plots_paper.spread([1.0, 3.0]) == "2.00 ± 1.41" and plots_paper.spread([1.234], 1) == "1.2"


# Figure 5


@pytest.fixture(scope="module")
def judged(material):
    """PatchCore as Figure 5 has it, and what it makes of the test images."""
    detector = figures._fitted(material, SETTINGS)["PatchCore"]
    return detector, rcp.evaluate(detector, material.category.test, features=material.test[0])


def test_figure_5_has_threshold_limits_and_counts_of_the_maps(files, material, judged):
    detector, result = judged
    masks, maps = hits.masks_of(material.category.test, result), result.scores.maps.numpy()
    found = content(files["figure5"])["detectors"]["PatchCore"]
    assert found["threshold"] == pytest.approx(metrics.f1_threshold(masks, maps)[1])
    assert found["limits"] == pytest.approx(detector.colour_limits(), rel=1e-5)
    assert (found["maximum_inside"], found["abnormal"]) == hits.peaks_inside(maps, masks)
    assert found["reached"] == sum(
        (heat >= found["threshold"]).any() for heat, label in zip(maps, result.labels) if label
    )


def test_figure_5_has_scores_outline_and_maximum_of_each_image(files, material, judged):
    _, result = judged
    rows = content(files["figure5"])["rows"]
    assert [row["defect"] for row in rows] == ["good", "scratch"]
    masks = hits.masks_of(material.category.test, result)
    for row in rows:
        i = [p.relative_to(material.category.test.root).as_posix() for p in material.category.test.paths].index(
            row["image"]
        )
        scores = row["scores"]["PatchCore"]
        assert (
            np.allclose(scores["patch_scores"], result.scores.patch_scores[i], rtol=6e-4)
            and len(scores["patch_scores"]) == 8
        )
        x, y = scores["maximum"]
        assert result.scores.maps[i][y, x] == result.scores.maps[i].max()
        picture = rcp.images.read_image(files["figure5"].parent / row["picture"])
        seen = result.scores.geometry.apply(rcp.images.read_image(material.category.test[i].path))
        assert picture.shape == seen.shape == (64, 96, 3) and np.abs(picture.astype(int) - seen).mean() < 4
        assert bool(row["outline"]) == masks[i].any()
        if row["outline"]:
            spots, rows_columns = np.concatenate([np.array(line) for line in row["outline"]]), np.argwhere(masks[i])
            assert np.allclose(spots.min(0), rows_columns.min(0)[::-1] - 0.5)  # half a pixel around the mask
            assert np.allclose(spots.max(0), rows_columns.max(0)[::-1] + 0.5)


def test_lines_lie_where_the_level_is_and_close_at_the_border():
    values = np.tile(np.arange(7.0), (4, 1))  # 4x7, rising to the right
    [line] = figures._lines(values, 2.5)
    assert sorted(line) == [[2.5, 0.0], [2.5, 3.0]]
    full = np.ones((4, 7))
    assert figures._lines(full, 0.5) == []
    [around] = figures._lines(full, 0.5, closed=True)
    assert (
        around[0] == around[-1]
        and np.min(around, 0).tolist() == [-0.5, -0.5]
        and np.max(around, 0).tolist() == [6.5, 3.5]
    )


def test_figure_5_draws_what_its_file_says(files):
    found, figure = content(files["figure5"]), plots_paper.figure5(files["figure5"])
    photos, maps = figure.axes[:2], figure.axes[2:8]
    assert [axes.get_title() for axes in photos] == ["good", "scratch"]
    for axes, row in zip(photos, found["rows"], strict=True):
        lines = [segment for c in axes.collections for segment in c.get_segments()]
        assert len(lines) == len(row["outline"])
    panels = [(name, row) for name in found["detectors"] for row in found["rows"]]
    for axes, (name, row) in zip(maps, panels, strict=True):
        [picture], scores = axes.get_images(), row["scores"][name]
        assert np.allclose(picture.get_array(), scores["patch_scores"]) and picture.get_extent() == [
            -0.5,
            95.5,
            63.5,
            -0.5,
        ]
        assert list(picture.get_clim()) == found["detectors"][name]["limits"]
        drawn = [segment for c in axes.collections for segment in c.get_segments()]
        assert len(drawn) == len(row["outline"]) + len(scores["contour"])
        assert [float(v[0]) for v in axes.lines[-1].get_data()] == scores["maximum"]
        for line in row["outline"]:  # the window holds the whole defect
            x, y = np.array(line).T
            assert axes.get_xlim()[0] <= x.min() and x.max() <= axes.get_xlim()[1]
            assert axes.get_ylim()[1] <= y.min() and y.max() <= axes.get_ylim()[0]
        assert np.ptp(axes.get_xlim()) == pytest.approx(np.ptp(axes.get_ylim()))
    assert any("oracle" in text.get_text() for text in figure.legends[0].get_texts())


def test_the_window_holds_a_large_defect_with_room_and_stays_in_the_crop():
    row = {"outline": [[[10.0, 5.0], [50.0, 30.0]]], "scores": {"a": {"maximum": [95, 63]}}}
    left, right, top, bottom = plots_paper._window(row, "a", (64, 96))
    assert (left, right, top, bottom) == (0, 60, -0.5, 59.5)  # 40 wide: half a side is three quarters of it
    left, right, top, bottom = plots_paper._window(row | {"outline": []}, "a", (64, 96))
    assert (right, bottom) == (95.5, 63.5) and right - left == pytest.approx(2 * 0.16 * 96) == bottom - top


def test_figures_that_need_masks_or_test_images_say_so(material, tiny, tmp_path):
    whole = material.category
    blind = replace(whole, test=replace(whole.test, samples=tuple(replace(s, mask=None) for s in whole.test.samples)))
    with pytest.raises(ValueError, match="has no masks"):
        figures.figure5(replace(material, category=blind), tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="no test images"):
        figures.prepare(replace(whole, test=replace(whole.test, samples=())), tiny)


# Files at hand


def test_a_file_of_these_very_images_is_taken_and_no_other(files, material, tmp_path, monkeypatch):
    folder = files["figure4"].parent
    asked = []
    monkeypatch.setitem(figure_files.FIGURES, "figure4", lambda *call: asked.append(call) or Path("measured"))
    assert figure_files.found_or_measured("figure4", material, (tmp_path, folder)) == files["figure4"] and not asked
    other = replace(material.category, test=material.category.test[:-1])
    assert figure_files.at_hand("figure4", other, (folder,)) is None
    found = figure_files.found_or_measured("figure4", replace(material, category=other), (folder, tmp_path))
    assert found == Path("measured") and asked[0][1] == tmp_path / "mvtec-thing" and asked[0][2] == figures.QUICK
    assert figure_files.at_hand("figure3", material.category, (tmp_path,)) is None


def test_the_picture_lies_beside_its_file(files, tmp_path):
    copy = tmp_path / "figure3.json"
    copy.write_bytes(files["figure3"].read_bytes())
    assert figure_files.picture(copy).read_bytes().startswith(b"\x89PNG") and (tmp_path / "figure3.png").is_file()
    with pytest.raises(ValueError, match="not named after a figure"):
        figure_files.picture(tmp_path / "other.json")


def test_the_embedded_data_are_called_so():
    category = rcp.mvtec(rcp.synthetic.cached(), "terminal")
    assert (
        figures.source(category) == "embedded synthetic data, terminal" and figures.dataset_of(category) == "embedded"
    )


KEPT = Path(__file__).resolve().parent.parent / "figures" / "results"


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_the_repository_keeps_the_files_of_its_own_figures(name, nothing_but_files):
    found = plots_paper.read(KEPT / f"{name}.json", name)
    assert found["dataset"]["name"] == "embedded" and (KEPT / f"{name}.json").stat().st_size < 400_000
    assert getattr(plots_paper, name)(KEPT / f"{name}.json").axes
    if name == "figure5":
        assert sorted(row["picture"] for row in found["rows"]) == sorted(
            f"figure5/{p.name}" for p in (KEPT / "figure5").iterdir()
        )


# Grids


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A collection in the form that `rcp experiments --collect` writes, with numbers that one can check."""
    conditions = ["q", *(f"q, {what} on {side}" for what, side in (
        ("all", "both"), ("all", "train"), ("blur", "test"), ("rotation", "test"), ("all", "test")))]  # fmt: skip
    rows = []
    for place, label in enumerate(conditions):
        for category, shift in (("brick", 0.0), ("screw", 0.1)):
            for seed in (0, 1):
                value = 0.9 - 0.02 * place - shift + 0.01 * seed
                names = {"data": label, "category": category, "backbone": "Lite0", "varied": {}, "seed": seed}
                base = {"address": "0", **names, "seconds": 1.0, "probes": {}}
                rows.append(base | {"method": "PatchCore", "metrics": numbers(value)})
                early = {str(e): {"metrics": numbers(value - 0.05 + 0.001 * e)} for e in (0, 1, 10)}
                rows.append(
                    base | {"method": "ReConPatch", "metrics": numbers(value + 0.03), "epochs": 40, "snapshots": early}
                )
    path = tmp_path_factory.mktemp("grid") / "quality.json"
    return read_rows(write_collection(path, {"schema": 1, "title": "Image quality"}, rows))


def numbers(value: float) -> dict[str, float]:
    return {"image_auroc": value, "pixel_auroc": value, "aupro": value, "d_prime": 10 * value}


def test_bars_are_means_over_categories_with_deviations_over_seeds(collected, nothing_but_files):
    figure = plots_grids.robustness(collected, data="q")
    [axes] = figure.axes
    shown = [tick.get_text().replace("\n", " ") for tick in axes.get_xticklabels()]
    assert shown == ["clean", "rotation test", "blur test", "all train", "all test", "all both"]
    bars = {c.get_label(): c for c in axes.containers if hasattr(c, "patches")}
    assert list(bars) == ["PatchCore", "untrained f", "ReConPatch"] and axes.get_ylim() == (50, 100)
    order = [0, 4, 3, 2, 5, 1]  # places of the conditions in the fixture
    for name, shift in (("PatchCore", 0.0), ("untrained f", -5.0), ("ReConPatch", 3.0)):
        expected = [100 * (0.9 - 0.02 * place - 0.05 + 0.005) + shift for place in order]
        assert [bar.get_height() for bar in bars[name]] == pytest.approx(expected)
        ends = bars[name].errorbar.lines[2][0].get_segments()
        assert [np.ptp(end[:, 1]) / 2 for end in ends] == pytest.approx([np.std([0, 1], ddof=1)] * 6)
        assert [bar.get_x() + bar.get_width() / 2 for bar in bars["untrained f"]] == pytest.approx(range(6))


def test_a_seed_that_lacks_a_category_is_left_out(collected):
    some = [row for row in collected if row.data == "q" and row.method == "PatchCore"]
    assert plots_grids.over_seeds(some[:-1], "image_auroc", ["brick", "screw"]) == pytest.approx([85.0])
    assert plots_grids.over_seeds(some, "d_prime", ["brick"]) == pytest.approx([9.0, 9.1])


def test_bars_without_rows_or_of_two_backbones_are_refused(collected):
    with pytest.raises(ValueError, match="rows of 'w' as it comes, and of one backbone; there are no rows"):
        plots_grids.robustness(collected, data="w")
    two = [*collected, replace(collected[0], backbone="Lite1")]
    with pytest.raises(ValueError, match="Lite0, Lite1"):
        plots_grids.robustness(two, data="q")


def test_curves_go_through_the_means_of_each_epoch(collected, nothing_but_files):
    figure = plots_grids.epochs_curve(collected, categories=[("q", "brick"), ("q", "screw")], backbone="Lite0")
    assert len(figure.axes) == 4 and titles(figure)[:2] == ["brick", "screw"]
    axes = figure.axes[0]
    assert [tick.get_text() for tick in figure.axes[2].get_xticklabels()] == [
        "0",
        "1",
        "10",
        "40",
    ]  # the lower row tells
    line = next(line for c in axes.containers for line in [c.lines[0]] if c.get_label() == "ReConPatch")
    assert line.get_ydata() == pytest.approx([100 * (0.905 - 0.05 + 0.001 * e) for e in (0, 1, 10)] + [93.5])
    level = next(line for line in axes.lines if line.get_label() == "PatchCore")
    assert level.get_ydata() == pytest.approx([90.5, 90.5])
    flat = [replace(row, metrics=numbers(1.0)) for row in collected]  # all equal: no axis must blow up rounding
    still = plots_grids.epochs_curve(flat, categories=[("q", "brick")], backbone="Lite0")
    assert np.ptp(still.axes[0].get_ylim()) >= 2
    with pytest.raises(ValueError, match="no result for q pill with Lite0"):
        plots_grids.epochs_curve(collected, categories=[("q", "pill")], backbone="Lite0")
