"""`rcp reproduce`: no published number is lost, no measured one invented, and each table says what it is."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from rcp import miniatures, presets, published
from rcp.experiments.collection import Row
from rcp.head import PAPER_ENSEMBLE, PAPER_SINGLE
from rcp.reproduce import render, words
from rcp.reproduce.compare import METRICS, NAMES, Entry, Failure, Table, Value, compare
from rcp.reproduce.cost import predict
from rcp.reproduce.setup import DATA, Setup
from rcp.reproduce.tables import sheet

NUMBERS = range(1, 8)


def setup(number: int, **changes) -> Setup:
    data = changes.pop("data", "btad" if number == 7 else "mvtec")
    return Setup(data, changes.pop("categories", tuple(DATA[data])), **changes)


def invented(one, asked: Setup) -> list[Row]:
    """A row for every state of every cell, its value told by what it is: shares between 0.5 and 1."""
    rows = []
    for cell in one.grid.cells(lambda data: asked.categories):
        names = cell.names()
        for epoch, last in [*((at, False) for at in cell.snapshots), (cell.training.epochs if cell.training else None, True)]:
            metrics = {}
            for metric in METRICS:
                text = f"{names['method']}{names['backbone']}{names['data']}{names['varied']}{names['category']}{metric}{epoch}"
                metrics[metric] = 0.5 + sum(text.encode()) % 400 / 1000 + names["seed"] / 1000
            rows.append(Row(**names, epoch=epoch, metrics=metrics, probes={}, last=last))
    return rows


def finished(number: int, rows=None, failures=(), **changes):
    asked = setup(number, **changes)
    one = sheet(number, asked)
    return compare(one, asked, invented(one, asked) if rows is None else rows, failures, "A caption.", ["A reason."])


def value(table, category, method, metric="image_auroc"):
    [entry] = [entry for entry in table.entries if (entry.category, entry.label) == (category, method)]
    return entry.values[metric]


# The rows


@pytest.mark.parametrize("backbone", ["paper", "embedded"])
@pytest.mark.parametrize("number", NUMBERS)
def test_every_published_number_of_the_table_has_a_line_and_those_of_the_two_methods_are_measured(number, backbone):
    lines = sheet(number, setup(number, backbone=backbone)).lines
    shown = {one for line in lines for one in line.published}
    measured = {one for line in lines if line.cells for one in line.published}
    own = published.table(number)
    assert set(own) <= shown
    assert {one for one in own if one.method.startswith(("ReConPatch", "PatchCore"))} <= measured


@pytest.mark.parametrize("number", NUMBERS)
def test_every_published_number_is_printed_beside_a_measured_one_or_alone(number):
    table = finished(number)
    printed = {
        (name, metric, value.published) for entry in table.entries for metric, value in entry.values.items()
        for name in [entry.category] if value.published is not None
    }  # fmt: skip
    for one in published.table(number):
        if one.our_metric in METRICS:
            assert (NAMES.get(one.category, one.category), one.our_metric, one.value) in printed, one
            if one.method.startswith(("ReConPatch", "PatchCore")):
                matching = [
                    v for entry in table.entries if entry.category == NAMES.get(one.category, one.category)
                    for metric, v in entry.values.items() if metric == one.our_metric and v.published == one.value
                ]  # fmt: skip
                assert any(v.measured is not None and v.difference == v.measured - v.published for v in matching), one


@pytest.mark.parametrize("number", NUMBERS)
def test_every_line_has_its_cells_and_every_cell_its_line(number):
    one = sheet(number, setup(number))
    cells = one.grid.cells(lambda data: [])
    lines = [line for line in one.lines if line.cells]
    for line in lines:
        own = [cell for cell in cells if line.cells.of(cell.names())]
        assert len(own) == len(one.grid.seeds) * len(cells and one.grid.data[0].categories), line.label
        assert line.cells.epoch is None or all(line.cells.epoch in cell.snapshots for cell in own)
    assert all(any(line.cells.of(cell.names()) for line in lines) for cell in cells)
    asked = [repr((cell.data, cell.category, cell.settings())) for cell in cells]
    assert len(set(asked)) == len(asked), "two methods ask for the same cell, and one would be lost"


@pytest.mark.parametrize("number", NUMBERS)
def test_reconpatch_never_stands_without_patchcore_and_an_untrained_f_on_the_same_features(number):
    one = sheet(number, setup(number))
    cells = one.grid.cells(lambda data: [])
    for features in {cell.features for cell in cells if cell.detector == "reconpatch"}:
        own = [cell for cell in cells if cell.features == features]
        assert any(cell.detector in ("patchcore", "reduced") for cell in own)
        assert any(cell.training and (0 in cell.snapshots or cell.training.epochs == 0) for cell in own)
    assert any(line.label.startswith("untrained f") for line in one.lines)


@pytest.mark.parametrize("number", NUMBERS)
def test_without_further_options_the_papers_settings_are_measured(number):
    for cell in sheet(number, setup(number)).grid.cells(lambda data: []):
        paper = PAPER_ENSEMBLE if number == 6 else PAPER_SINGLE
        if cell.training and cell.training.epochs:
            varied = {"dimension": cell.training.dimension} if number in (1, 2) else {}
            assert cell.training == replace(paper, **varied)
        assert cell.protocol == "crop" and cell.seed in (0, 1, 2)
        assert {(one.resize, one.crop) for one in cell.features} <= {(256, 224), (366, 320), (512, 480)}
        assert all(one.backbone in ("wide_resnet50_2", "wide_resnet101_2", "resnext101", "densenet201") for one in cell.features)


def test_table_2_has_patchcore_at_every_width_by_random_projection_and_by_pca():
    cells = sheet(2, setup(2)).grid.cells(lambda data: [])
    for method in ("random", "pca"):
        widths = {cell.options["dimension"] for cell in cells if cell.options.get("method") == method}
        assert widths == {1024, 512, 256, 128, 64}
    assert {cell.training.dimension for cell in cells if cell.training} == widths


def test_table_4_tells_the_sides_apart_and_the_magnitudes():
    one = sheet(4, setup(4))
    assert [(data.sides if data.quality else None) for data in one.grid.data] == [None, "test", "train", "both"]
    assert "magnitudes" in one.remarks[0] and "rotation 5 degrees" in one.remarks[0]


def test_table_4_has_the_papers_patchcore_beside_its_quarter_and_says_that_one_draw_serves_all_seeds():
    one = sheet(4, setup(4))
    for line in one.lines:
        if line.label.startswith("PatchCore"):
            assert bool(line.published) == ("coreset 25 %" in line.label), line.label
    assert any("one draw (seed 0), the same for all seeds" in remark for remark in one.remarks)
    assert {cell.data.quality.seed for cell in one.grid.cells(lambda data: []) if cell.data.quality} == {0}


def test_visa_gets_the_grid_of_table_5_with_its_own_objects_and_no_published_number():
    asked = setup(5, data="visa")
    table = finished(5, data="visa")
    assert {entry.category for entry in table.entries} == {"mean", *DATA["visa"]} and len(asked.categories) == 12
    assert all(v.published is None and v.measured is not None for entry in table.entries for v in entry.values.values())
    assert any("no table for VisA" in remark for remark in sheet(5, asked).remarks)


# The numbers


def test_a_difference_is_measured_less_published_in_percent_over_the_seeds_means():
    asked, label = setup(5), "ReConPatch, WRN-101 at 480 px"
    table = finished(5)
    rows = [r for r in invented(sheet(5, asked), asked) if (r.method, r.backbone, r.last) == ("ReConPatch", "WRN-101 at 480 px", True)]
    bottle = [100 * r.metrics["pixel_auroc"] for r in rows if r.category == "bottle"]
    found = value(table, "bottle", label, "pixel_auroc")
    assert found.published == 98.78 and found.seeds == 3
    assert found.measured == pytest.approx(sum(bottle) / 3) and found.difference == pytest.approx(sum(bottle) / 3 - 98.78)
    assert found.std == pytest.approx(0.1)  # the invented seeds are 0.1 % apart
    every = [100 * sum(r.metrics["image_auroc"] for r in rows if r.seed == seed) / 15 for seed in (0, 1, 2)]
    assert value(table, "mean", label).measured == pytest.approx(sum(every) / 3)
    objects = [r for r in rows if r.category not in ("carpet", "grid", "leather", "tile", "wood")]
    assert value(table, "mean of objects", label).measured == pytest.approx(sum(100 * r.metrics["image_auroc"] for r in objects) / 30)


def test_one_seed_has_no_deviation():
    assert value(finished(7, seeds=(0,)), "class_01", "ReConPatch, WRN-101 at 480 px").std is None


def test_untrained_numbers_are_those_of_epoch_0_and_not_of_the_end():
    asked = setup(7)
    one = sheet(7, asked)
    rows = [replace(r, metrics=dict.fromkeys(METRICS, 0.6 if r.epoch == 0 else 0.9)) for r in invented(one, asked)]
    table = finished(7, rows)
    assert value(table, "mean", "untrained f, WRN-101 at 480 px").measured == pytest.approx(60)
    assert value(table, "mean", "ReConPatch, WRN-101 at 480 px").measured == pytest.approx(90)


def test_a_part_of_the_categories_has_a_mean_of_its_own_and_none_beside_the_papers():
    table = finished(5, categories=("bottle", "pill"))
    label = "ReConPatch, WRN-101 at 480 px"
    whole, part = value(table, "mean", label), value(table, "mean of these 2", label)
    assert whole.published == 99.62 and whole.measured is None and whole.difference is None
    assert "2 of the 15 categories" in table.footnotes[whole.measured_notes[0] - 1]
    assert part.published == pytest.approx((100 + 96.21) / 2) and part.measured is not None
    assert "computed here" in table.footnotes[part.published_notes[0] - 1]
    assert value(table, "bottle", label).difference is not None
    absent = value(table, "cable", label)
    assert absent.published == 99.66 and absent.measured is None and "Not run" in table.footnotes[absent.measured_notes[0] - 1]


def test_the_mean_of_a_part_has_the_source_and_the_troubles_of_the_numbers_that_it_is_made_of():
    line, one = next(
        (line, one) for line in sheet(5, setup(5)).lines for one in line.published
        if one.troubles and one.our_metric in METRICS and one.category not in NAMES
    )  # fmt: skip
    other = next(name for name in DATA["mvtec"] if name != one.category)
    table = finished(5, categories=tuple(name for name in DATA["mvtec"] if name in (one.category, other)))
    [entry] = [entry for entry in table.entries if (entry.category, entry.label) == ("mean of these 2", line.label)]
    notes = {table.footnotes[mark - 1] for mark in entry.values[one.our_metric].published_notes}
    assert set(one.troubles) <= notes and any("computed here" in note for note in notes)
    assert entry.source == one.source


def test_the_papers_patchcore_ensemble_stands_beside_ours_with_how_its_scores_are_joined():
    lines = [line for line in sheet(6, setup(6)).lines if line.label.startswith("PatchCore ensemble,")]
    assert len(lines) == 2 and all("Scores are joined as ReConPatch's" in line.notes[0] for line in lines)


def test_no_mean_of_published_numbers_is_taken_where_one_of_them_is_missing():
    asked = setup(5, categories=("bottle", "pill"))
    one = sheet(5, asked)
    label = "ReConPatch, WRN-101 at 480 px"
    lines = [replace(line, published=tuple(n for n in line.published if n.category != "pill")) for line in one.lines]
    table = compare(replace(one, lines=tuple(lines)), asked, invented(one, asked), (), "A caption.", [])
    part = value(table, "mean of these 2", label)
    assert part.published is None and part.measured is not None and part.difference is None


@pytest.mark.parametrize("number", [1, 2, 3, 6])
def test_a_part_of_the_categories_is_shown_even_where_the_paper_has_only_means(number):
    table = finished(number, categories=("bottle", "pill"))
    shown = {entry.category for entry in table.entries}
    assert {"bottle", "pill", "mean of these 2"} <= shown and "cable" not in shown  # neither published nor asked for
    assert all(v.difference is None for entry in table.entries for v in entry.values.values())


def test_all_objects_without_the_textures_compare_with_the_mean_of_objects():
    objects = tuple(name for name in DATA["mvtec"] if name not in ("carpet", "grid", "leather", "tile", "wood"))
    table = finished(4, categories=objects)
    label = "ReConPatch, images as they are"
    assert value(table, "mean of objects", label).difference is not None
    assert value(table, "mean of textures", label).measured is None and value(table, "mean", label).measured is None


def test_a_failed_cell_is_a_dash_with_its_error_and_no_mean_is_taken_without_it():
    asked, label = setup(7), "ReConPatch, WRN-101 at 480 px"
    one = sheet(7, asked)
    rows = [r for r in invented(one, asked) if not (r.method == "ReConPatch" and r.category == "02")]
    names = [cell.names() for cell in one.grid.cells(lambda data: []) if cell.category == "02" and cell.method == "ReConPatch"]
    table = finished(7, rows, [Failure(names[0], "ImageError: broken.bmp")])
    for category in ("class_02", "mean"):
        found = value(table, category, label)
        assert found.published is not None and found.measured is None and found.difference is None
        notes = [table.footnotes[mark - 1] for mark in found.measured_notes]
        assert notes == ["02, seed 0: failed, ImageError: broken.bmp", "02, seed 1: not run.", "02, seed 2: not run."]
    assert value(table, "class_01", label).measured is not None
    rows = list(csv.DictReader(io.StringIO(render.as_csv(table))))
    assert all("02, seed 0: failed, ImageError: broken.bmp" in row["notes"] for row in rows if (row["category"], row["method"]) == ("class_02", label))
    line = next(line for line in render.markdown(table).splitlines() if line.startswith(f"| class_02 | {label} |"))
    assert line.split("|")[4].strip().startswith("– [")


def test_a_seed_that_is_missing_somewhere_is_left_out_of_the_mean_and_said():
    asked, label = setup(7), "PatchCore, coreset 1 %, WRN-101 at 480 px"
    rows = [r for r in invented(sheet(7, asked), asked) if not (r.method == "PatchCore" and r.category == "03" and r.seed == 1)]
    table = finished(7, rows)
    assert value(table, "mean", label).seeds == 2 and value(table, "class_01", label).seeds == 3
    assert [table.footnotes[m - 1] for m in value(table, "mean", label).measured_notes] == ["03, seed 1: not run."]


def test_an_undefined_metric_is_a_dash_and_not_zero():
    asked = setup(7)
    rows = [replace(r, metrics=r.metrics | {"pixel_auroc": None}) for r in invented(sheet(7, asked), asked)]
    found = value(table := finished(7, rows), "mean", "ReConPatch, WRN-101 at 480 px", "pixel_auroc")
    assert found.measured is None and "not defined" in table.footnotes[found.measured_notes[0] - 1]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_published_tables_troubles_stand_beside_the_numbers_that_they_touch(number):
    table, seen = finished(number), 0
    for line in sheet(number, setup(number)).lines:
        for one in line.published:
            if one.our_metric in METRICS and one.troubles:
                found = value(table, NAMES.get(one.category, one.category), line.label, one.our_metric)
                assert {table.footnotes[mark - 1] for mark in found.published_notes} == set(one.troubles)
                seen += 1
    assert (seen > 0) == (number in (2, 4, 5))
    marked = [v for entry in table.entries for v in entry.values.values() if v.published_notes]
    assert len(marked) == seen  # and beside no other


def test_what_the_paper_leaves_open_is_a_footnote_of_the_row():
    for number, words_ in ((2, "how PatchCore's features were brought"), (4, "whether test images"), (7, "neither backbone"), (5, "two models")):
        assert any(words_ in note for note in finished(number).footnotes), number


# The three forms


@pytest.mark.parametrize("number", NUMBERS)
def test_markdown_csv_and_latex_agree(number):
    table = finished(number)
    md = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in render.markdown(table).splitlines() if line.startswith("| ")][1:]
    tex = [line.removesuffix(r" \\").split(" & ") for line in render.latex(table).splitlines() if line.endswith(r" \\")][1:]
    rows = list(csv.DictReader(io.StringIO(render.as_csv(table))))
    assert len(md) == len(tex) == len(table.entries) and len(rows) == len(METRICS) * len(md)
    for i, (plain, latex) in enumerate(zip(md, tex, strict=True)):
        assert [render.tex(cell) for cell in plain] == [cell.strip() for cell in latex]
        for j, metric in enumerate(METRICS):
            row, (pub, mea, dif) = rows[len(METRICS) * i + j], plain[2 + 3 * j : 5 + 3 * j]
            assert (row["category"], row["method"], row["metric"]) == (plain[0], plain[1], metric)
            assert pub.split(" ")[0] == (f"{float(row['published']):.2f}" if row["published"] else "–")
            assert mea.split(" ")[0] == (f"{float(row['measured']):.2f}" if row["measured"] else "–")
            assert dif == (f"{float(row['difference']):+.2f}".replace("-", "−") if row["difference"] else "–")
            marks = {int(mark) for cell in (pub, mea, plain[-1]) for mark in re.findall(r"\d+(?=[\],])", cell.partition("[")[2])}
            assert row["notes"] == " | ".join(table.footnotes[mark - 1] for mark in sorted(marks))
            assert row["source"] == (plain[-2] if row["published"] else "")


def test_a_row_in_all_three_forms_to_the_letter():
    values = {"image_auroc": Value(99.56, 98.123456, 0.25, 3, (1,), (2,)), "pixel_auroc": Value(None, 97.5, None, 1)}
    entries = (Entry("bottle", "a | b", values, "the paper", (3,)),)
    table = Table(5, "T", "C.", (), entries, ("one", "two", "three"))
    assert r"| bottle | a \| b | 99.56 [1] | 98.12 ± 0.25 [2] | −1.44 | – | 97.50 | – | the paper | [3] |" in render.markdown(table).splitlines()
    assert render.as_csv(table).splitlines()[1:] == [
        "5,bottle,a | b,image_auroc,99.56,the paper,98.1235,0.2500,3,-1.4365,one | two | three",
        "5,bottle,a | b,pixel_auroc,,,97.5000,,1,,three",
    ]
    row = r"bottle & a \textbar{} b & 99.56 {[}1{]} & 98.12 $\pm$ 0.25 {[}2{]} & $-$1.44 & -- & 97.50 & -- & the paper & {[}3{]} \\"
    assert row in render.latex(table).splitlines()


@pytest.mark.parametrize("number", NUMBERS)
def test_the_latex_is_ascii_balanced_and_has_as_many_cells_in_each_row(number):
    text = render.latex(finished(number))
    assert text.isascii() and balanced(text)
    begun, ended = re.findall(r"\\begin{(\w+)}", text), re.findall(r"\\end{(\w+)}", text)
    assert sorted(begun) == sorted(ended)
    columns = re.search(r"longtable}{(\w+)}", text)[1]
    assert all(line.count(" & ") == len(columns) - 1 for line in text.splitlines() if line.endswith(r" \\"))
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert text.count("\\midrule") == len({entry.category for entry in finished(number).entries})  # below the head, and between two


@examples(st.text(alphabet="\\{}&%$#_~^<>|±–—−×≤≥σγα→…[]`a 7-"))
def test_any_text_of_ours_becomes_latex_without_open_braces_or_bare_signs(text):
    found = render.tex(text)
    assert found.isascii() and balanced(found)
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textasciigrave|ldots){}|\$[^$]*\$|\\[{}&%$#_]", "", found)
    assert not set(bare) & set("\\&%$#_~^")


def test_an_options_name_keeps_its_hyphens_and_a_dash_stays_a_dash():
    assert render.tex("--quick – 1–2") == "-{}-quick -- 1--2"


def test_a_sign_without_a_latex_form_is_an_error():
    with pytest.raises(ValueError, match="no LaTeX is known here for '☂'"):
        render.tex("a ☂")


def balanced(text: str) -> bool:
    depth = 0
    for sign in re.sub(r"\\[{}]", "", text):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth < 0:
            return False
    return depth == 0


# What a table says of itself


def said(number: int, miniature: bool = False, **changes) -> str:
    asked = setup(number, **changes)
    return words.caption(sheet(number, asked), asked, miniature=miniature)


def test_captions_are_true():
    plain = said(5)
    assert "MVTec AD, all 15 categories" in plain and "WRN-50 (wide_resnet50_2.tv_in1k), s=3, levels 2+3, short side 256, crop 224" in plain
    assert "WRN-101 (wide_resnet101_2.tv_in1k), s=3, levels 2+3, short side 512, crop 480" in plain and "s=5, levels 1+2+3" in plain
    assert "after 120 epochs over all patches, learning rate 1e-05" in plain and "seeds 0, 1, 2" in plain and "protocol crop" in plain
    assert "quick" not in plain and "drawn" not in plain
    quick = said(5, True, data="synthetic", quick=True, backbone="embedded", seeds=(0,), categories=("bottle", "pill"))
    assert "--quick" in quick and "drawn miniature of MVTec AD, 2 of 15 categories (bottle, pill)" in quick
    assert "Lite0 (tf_efficientnet_lite0.in1k)" in quick and "2 epochs of 4 steps of 128 patches" in quick and "one seed, 0" in quick
    assert "after 60 epochs over all patches, learning rate 1e-06" in said(6) and "s=5, levels 2+3" in said(3)
    assert "a drawn miniature of BTAD" in said(7, True)


def test_reasons_name_another_backbone_a_local_file_and_half_precision(tmp_path):
    root = miniatures.btad(tmp_path / "btad", scale=32)
    asked = setup(7, backbone="embedded", weights={"efficientnet_lite0": "some/mine.pth"}, quick=True)
    text = " ".join(words.reasons(sheet(7, asked), asked, root, miniature=True))
    assert "Lite0 where the paper has WRN-101" in text and "mine.pth" in text and "some/" not in text
    assert "float16" in text and "--quick" in text and "drawn" in text and words.is_miniature(root)
    same = setup(7)
    text = " ".join(words.reasons(sheet(7, same), same, root, miniature=False))
    assert "Another backbone" not in text and "--quick" not in text
    assert "stored at 50x50 pixels, released at (height x width): 01 1600x1600" in text
    assert "01 6/3/3 instead of 400/21/49" in text and not words.is_miniature(tmp_path)


def test_the_cost_is_told_in_cells_and_bytes():
    asked = setup(5)
    loaded = {one.features[0]: (4 if "pixel" in one.name else 8, 1000) for one in map(presets.get, ("single-224", "single-224-pixel", "single-480"))}
    images = dict.fromkeys(asked.categories, (100, 20)) | {"pill": (200, 100)}
    cost = predict(sheet(5, asked), images, loaded)
    assert cost.cells == 15 * 3 * 7 and cost.groups == 15 * 3
    assert {count for _, _, count in cost.largest} == {300 * 784 * 4000, 300 * 3136 * 2000, 300 * 3600 * 2000}
    assert all(category == "pill" for _, category, _ in cost.largest)
    assert "315 cells that share 45 sets of features" in str(cost) and "941 MB (pill)" in str(cost)
