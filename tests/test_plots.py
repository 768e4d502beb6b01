"""Figures and widgets: one colour scale, true outlines, and a slider that draws."""

from __future__ import annotations

import numpy as np
import pytest

import rcp
from rcp import plots, widgets


@pytest.fixture(scope="module")
def judged(tiny, category):
    detector = rcp.PatchCore(tiny, bank=rcp.BankSettings(coreset=0.1, folds=2)).fit(category.train)
    return category.test, {"PatchCore": (rcp.evaluate(detector, category.test, false_alarm_rate=0.2), detector.colour_limits())}

def images_of(axes):
    return [image for image in axes.get_images() if image.get_array().ndim == 2]

def test_all_maps_of_a_detector_share_one_scale_set_on_held_out_normals(judged):
    test, results = judged
    figure = plots.map_sheet(test, results)
    maps = [image for axes in figure.axes for image in images_of(axes)]
    limits = {image.get_clim() for image in maps}
    assert len(maps) >= 2 and limits == {results["PatchCore"][1]}

def test_the_lower_half_of_the_scale_is_what_normal_patches_score(judged):
    result, (low, high) = judged[1]["PatchCore"]
    normal = result.scores.patch_scores[result.labels == 0]
    assert low < float(normal.median()) * 1.5 and float(normal.quantile(0.5)) < (low + high) / 2

def test_outlines_are_drawn_on_defective_images_only(judged):
    test, results = judged
    result = results["PatchCore"][0]
    positions = [result.defects.index("good"), result.defects.index("scratch")]
    figure = plots.map_sheet(test, results, positions)
    drawn = [any("Contour" in type(child).__name__ for child in axes.get_children()) for axes in figure.axes[:2]]
    assert drawn == [False, True]

def test_typical_shows_one_of_each_kind_good_first(judged):
    result = judged[1]["PatchCore"][0]
    assert [result.defects[i] for i in plots.typical(result)] == ["good", "scratch"]

def test_histogram_counts_every_image(judged):
    test, results = judged
    figure = plots.score_histogram({"PatchCore": results["PatchCore"][0]})
    bars = [patch.get_height() for patch in figure.axes[0].patches]
    assert sum(bars) == len(test)

def test_type_is_large_enough_for_the_last_row(judged):
    test, results = judged
    figure = plots.map_sheet(test, results)
    assert all(axes.title.get_fontsize() >= 14 for axes in figure.axes if axes.get_title())

def test_figures_are_written_whole(judged, tmp_path):
    written = plots.write(plots.contact_sheet(judged[0], per_kind=2), tmp_path / "sheet.png")
    assert written.read_bytes()[:4] == b"\x89PNG" and [p.name for p in tmp_path.iterdir()] == ["sheet.png"]

def test_the_slider_changes_the_picture(judged):
    shown = widgets.browse(*judged)
    slider, before = shown.controls["rank"], shown.picture.png
    slider.value = 0
    assert shown.picture.png != before and shown.picture.png[:4] == b"\x89PNG"
    slider.value = slider.max
    assert shown.picture.png == before


def test_drawing_leaves_the_scores_alone(judged):
    test, results = judged
    before = results["PatchCore"][0].scores.maps.clone()
    plots.one_image(test, results, 0)
    assert np.array_equal(before, results["PatchCore"][0].scores.maps)


def test_the_verdict_figure_frames_what_the_network_saw(judged):
    test, results = judged
    result, limits = results["PatchCore"]
    figure = plots.verdict_figure(test[0].path, result.scores, 0, limits, result.verdict.threshold)
    frame = figure.axes[1].lines[0].get_xydata().tolist()
    top, left, bottom, right = result.scores.geometry.crop_box(*result.scores.sizes[0])
    assert frame == [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    above = float(result.scores.image_scores[0]) > result.verdict.threshold.value
    assert ("anomalous" if above else "normal") in figure.axes[1].get_title()
