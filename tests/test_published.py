"""The published tables: every row reads, one number is found or an error says why not, means hold or are told."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from rcp import published
from rcp.evaluation import METRICS as OURS

FOLDER = Path(published.__file__).parent
OBJECTS = ["bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor", "zipper"]
TEXTURES = ["carpet", "grid", "leather", "tile", "wood"]
BTAD = ["class_01", "class_02", "class_03"]
VISA = ["candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pipe_fryum"]
VISA += ["pcb1", "pcb2", "pcb3", "pcb4"]
GROUPS = [
    ("mean", OBJECTS + TEXTURES),
    ("mean_object", OBJECTS),
    ("mean_texture", TEXTURES),
    ("mean", BTAD),
    ("mean", VISA),
]
EVERY = [number for file in published.tables() for number in published.rows(file)]
SINGLE = "ReConPatch (Ours, single)"


def printed(file: str) -> list[dict[str, str]]:
    """The rows as text: a float forgets how many decimals were printed."""
    with open(FOLDER / f"{file}.csv", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def columns() -> dict[tuple[str, ...], dict[str, str]]:
    """Each column of each table: category → printed value."""
    found: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for file in published.tables():
        for row in printed(file):
            key = (file, *(row[name] for name in ("method", "backbone", "image_size", "dataset", "metric", "source")))
            assert row["category"] not in found[key], f"twice in {key}: {row['category']}"
            found[key][row["category"]] = row["value"]
    return found


def decimals(text: str) -> int:
    return len(text.partition(".")[2])


def mean_of(column: dict[str, str], categories: list[str]) -> Decimal:
    return sum(Decimal(column[category]) for category in categories) / len(categories)


def complete_columns() -> list[tuple[tuple[str, ...], str, Decimal, Decimal, int]]:
    """(column, which mean, printed mean, mean of the printed values, their decimals) where no category is missing."""
    return [
        (key, name, Decimal(column[name]), mean_of(column, group), max(decimals(column[c]) for c in group))
        for key, column in columns().items()
        for name, group in GROUPS
        if name in column and all(category in column for category in group)
    ]


def by_category(method: str, size: int, metric: str) -> list[float]:
    column = {n.category: n.value for n in published.select(table=5, method=method, image_size=size, metric=metric)}
    return [column[category] for category in OBJECTS + TEXTURES]


# --- the data --------------------------------------------------------------------------------------------------------


def test_every_row_of_every_file_reads_as_it_is_printed():
    assert len(published.tables()) == 8
    for file in published.tables():
        assert [dataclasses.asdict(number) for number in published.rows(file)] == [
            {**row, "value": float(row["value"])} for row in printed(file)
        ]
        assert all(text and text == text.strip() for row in printed(file) for text in row.values())


def test_values_lie_within_the_range_of_their_metric():
    for number in EVERY:
        if number.metric in published.METRICS:
            assert 0 <= number.value <= 100, number
        else:
            assert number.metric in ("inference_ms", "inference_s", "d_prime") and number.value > 0, number


def test_our_names_of_the_metrics_are_those_of_evaluate():
    assert set(published.METRICS.values()) <= set(OURS)


def test_each_source_stands_in_one_file():
    files = defaultdict(set)
    for file in published.tables():
        for number in published.rows(file):
            files[number.source].add(file)
    assert all(len(names) == 1 for names in files.values())


def test_a_number_that_stands_twice_disagrees_once_and_the_trouble_is_told():
    same = defaultdict(list)
    for n in EVERY:
        same[n.method, n.backbone, n.image_size, n.dataset, n.category, n.metric].append(n)
    assert any(len(numbers) > 1 for numbers in same.values())
    disagree = {key: numbers for key, numbers in same.items() if len({n.value for n in numbers}) > 1}
    assert list(disagree) == [("CFA", "WRN-50", "224", "MVTec AD", "mean", "image_AUROC")]
    assert all(n.troubles for numbers in disagree.values() for n in numbers)


# --- the means, computed again ---------------------------------------------------------------------------------------


def test_the_printed_means_are_the_means_of_the_printed_values_or_the_trouble_is_told():
    off = {}
    for key, name, mean, again, _ in complete_columns():
        places = min(
            max(1, decimals(str(mean))), 2
        )  # "96" is a 96.0 that lost its zero; a log's third decimal is noise
        last = Decimal(1).scaleb(-places)
        if mean.quantize(last, ROUND_HALF_UP) != again.quantize(last, ROUND_HALF_UP):
            off[key[0], key[1], key[5], name] = (mean, again.quantize(Decimal("0.01"), ROUND_HALF_UP))
    other = "other_systems_per_category"
    assert off == {
        ("patchcore_mvtec", "PatchCore-10% (paper)", "image_AUROC", "mean"): (Decimal("99.0"), Decimal("98.93")),
        (other, "AnoGAN", "PRO", "mean"): (Decimal("44.3"), Decimal("44.70")),
        (other, "K-Means", "PRO", "mean"): (Decimal("42.3"), Decimal("42.37")),
        (other, "l2-AE", "PRO", "mean"): (Decimal("79.0"), Decimal("79.07")),
        (other, "SSIM-AE", "PRO", "mean"): (Decimal("69.4"), Decimal("69.46")),
        (other, "CNN-Feature Dictionary", "PRO", "mean"): (Decimal("51.5"), Decimal("51.59")),
        (other, "STFPM (official repo)", "PRO", "mean"): (Decimal("92.83"), Decimal("92.84")),
    }
    for (file, method, metric, category), (mean, again) in off.items():
        number = published.find(file=file, method=method, metric=metric, category=category)
        [sentence] = [text for text in number.troubles if "mean of the 15 printed values" in text]
        assert str(again.normalize()) in sentence and str(mean) in sentence


def test_of_the_means_that_are_off_only_one_cannot_come_from_rounded_or_cut_values():
    """Rounded or cut to d decimals, each value and the mean may be off by one unit of its last digit, not more."""
    impossible = []
    for key, name, mean, again, places in complete_columns():
        rounding = Decimal("0.5").scaleb(-places) + Decimal("0.5").scaleb(-max(1, decimals(str(mean))))
        if abs(mean - again) > rounding:
            impossible.append((key[1], name))
    assert impossible == [("AnoGAN", "mean")]


def test_all_means_of_the_reconpatch_papers_tables_5_and_7_hold():
    held = [key for key, _, mean, again, _ in complete_columns() if key[0] in ("reconpatch_mvtec", "reconpatch_btad")]
    assert len(held) == 13 * 3 + 21  # Table 5: 13 complete columns with three means each; Table 7: 21 columns with one


def test_the_third_partys_means_are_computed_from_its_rows():
    means = {}
    for method, number in itertools.product(
        {n.method for n in published.rows("third_party_mvtec")}, ("image_AUROC", "pixel_AUROC")
    ):
        values = [n.value for n in published.rows("third_party_mvtec") if (n.method, n.metric) == (method, number)]
        if len(values) == 15:
            means[method.rpartition(", ")[0] + ")", number] = round(statistics.mean(values), 2)
    stated = {
        (n.method, n.metric): n.value for n in published.rows("third_party_mvtec") if n.category.startswith("mean")
    }
    assert means == pytest.approx(stated, abs=0.0051) and len(stated) == 6


# --- the troubles, shown ---------------------------------------------------------------------------------------------


def test_the_224_row_of_table_5_takes_its_two_halves_from_two_rows_of_table_3():
    row = {
        m: published.find(table=5, method=SINGLE, image_size=224, category="mean", metric=m)
        for m in ("image_auroc", "pixel_auroc")
    }
    first, second = "ReConPatch s=3 L2+3 f=512 coreset=1%", "ReConPatch s=5 L1+2+3 f=512 coreset=1%"
    assert row["image_auroc"].value == published.find(table=3, method=first, metric="image_auroc").value == 99.56
    assert row["pixel_auroc"].value == published.find(table=3, method=second, metric="pixel_auroc").value == 98.18
    assert published.find(table=3, method=first, metric="pixel_auroc").value == 98.07
    assert published.find(table=3, method=second, metric="image_auroc").value == 98.7
    assert all("mixes two models" in number.troubles[0] for number in row.values())


def test_the_pixel_values_of_the_224_column_agree_with_no_other_column_on_which_category_is_hard():
    others = [
        ("PNI (with refinement)", 480),
        (SINGLE, 480),
        ("CFLOW-AD", 256),
        ("PaDiM", 224),
        ("SPADE", 224),
        ("PatchCore (25% coreset)", 224),
    ]
    column = by_category(SINGLE, 224, "pixel_auroc")
    against = [by_category(*other, "pixel_auroc") for other in others]
    assert all(statistics.correlation(column, other) < 0.2 for other in against)
    assert all(statistics.correlation(a, b) > 0.4 for a, b in itertools.combinations(against, 2))
    touched = [n for n in published.table(5) if any("permuted" in text for text in n.troubles)]
    assert {n.category for n in touched} == {*OBJECTS, *TEXTURES, "mean_object", "mean_texture"}
    assert {(n.method, n.resolution, n.metric) for n in touched} == {(SINGLE, 224, "pixel_AUROC")}


@pytest.mark.parametrize("method", ["PatchCore", "ReConPatch"])
def test_table_4_weighs_its_averages_in_two_ways(method):
    values = {
        aug: [
            published.find(table=4, method=f"{method} {aug} aug", category=c).value
            for c in ("mean_object", "mean_texture", "mean")
        ]
        for aug in ("w/o", "w/")
    }
    weighted = {aug: round((10 * obj + 5 * texture) / 15, 2) for aug, (obj, texture, _) in values.items()}
    assert values["w/o"][2] == weighted["w/o"]
    assert values["w/"][2] == pytest.approx((values["w/"][0] + values["w/"][1]) / 2, abs=0.0051)
    assert values["w/"][2] != weighted["w/"]
    sentences = published.find(table=4, method=f"{method} w/ aug", category="mean").troubles
    assert any(f"it would be {weighted['w/']:.2f}" in sentence for sentence in sentences)


def test_table_4s_difference_of_9_94_is_4_31():
    before, after = (
        published.find(table=4, method=f"PatchCore {aug} aug", category="mean_object") for aug in ("w/o", "w/")
    )
    assert before.value - after.value == pytest.approx(4.31)
    assert any("9.94" in sentence and "4.31" in sentence for sentence in after.troubles)


def test_the_patchcore_rows_of_tables_2_and_4_are_table_5s_25_percent_column():
    for category in ("mean_object", "mean_texture", "mean"):
        column = published.find(
            table=5, method="PatchCore (25% coreset)", category=category, metric="image_auroc"
        ).value
        assert published.find(table=4, method="PatchCore w/o aug", category=category).value == column
    assert published.find(table=2, method="PatchCore f=1024").value == column


def test_cfas_mean_is_its_own_once_carpet_is_99_5():
    carpet = published.find(table=5, method="CFA", category="carpet", metric="image_auroc")
    values = by_category("CFA", 224, "image_auroc")
    own = published.find(file="headlines", method="CFA", metric="image_auroc").value
    assert carpet.value == 97.3 and "99.5" in carpet.troubles[0]
    assert round(statistics.mean(values), 1) == 99.2 and own == 99.3
    assert round(statistics.mean(values) + (99.5 - 97.3) / 15, 2) == 99.31
    textures = [99.5 if category == "carpet" else value for category, value in zip(OBJECTS + TEXTURES, values)][10:]
    assert round(statistics.mean(textures), 2) == 99.56


# --- the reader ------------------------------------------------------------------------------------------------------


def test_the_tables_of_the_paper_are_whole():
    sizes = {n: len(published.table(n)) for n in published.TABLES}
    assert sizes == {1: 6, 2: 10, 3: 6, 4: 12, 5: 237, 6: 8, 7: 84}
    assert all(number.table == n for n in published.TABLES for number in published.table(n))
    assert published.find(file="headlines", method="CFA", metric="pixel_AUROC").table is None


@pytest.mark.parametrize(
    "text, pixels",
    [
        ("224 (image col: s=3,L2+3,512; pixel col: s=5,L1+2+3)", 224),
        ("256 (paper caption; image column = CFLOW best mixed sizes)", 256),
        ("480", 480),
        ("mixed 128-512", None),
        ("not stated in table", None),
    ],
)
def test_the_image_size_is_the_number_with_which_its_text_begins(text, pixels):
    assert {number.resolution for number in published.select(image_size=text)} == {pixels}


def test_papers_and_our_metric_names_find_the_same_number():
    for theirs, ours in published.METRICS.items():
        assert published.select(metric=theirs) == published.select(metric=ours)
    assert (
        published.find(table=7, method="ReConPatch", category="mean", metric="pixel_auroc").our_metric == "pixel_auroc"
    )
    assert published.select(metric="d_prime")[0].our_metric is None


def test_an_image_size_may_be_text_or_pixels():
    conditions = {"table": 5, "method": SINGLE, "category": "mean", "metric": "image_auroc"}
    text = "224 (image col: s=3,L2+3,512; pixel col: s=5,L1+2+3)"
    assert published.find(image_size=224, **conditions) == published.find(image_size=text, **conditions)
    assert published.find(image_size=480, **conditions).value == 99.62


def test_none_found_names_the_question_and_the_nearest_choices():
    with pytest.raises(ValueError) as error:
        published.find(table=5, method="PatchCor", category="bottle", metric="image_auroc")
    assert "No published number has table 5, method 'PatchCor', category 'bottle', metric 'image_AUROC'." in str(
        error.value
    )
    assert "method: 'PatchCore (25% coreset)'" in str(error.value)
    with pytest.raises(ValueError, match=r"category: 'metal_nut', .* and \d+ more"):
        published.select(method="CFA", table=5, category="metalnut", metric="image_auroc")
    with pytest.raises(ValueError, match="No single condition is to blame"):
        published.find(method="x", category="y")


def test_several_found_names_in_what_they_differ():
    with pytest.raises(ValueError) as error:
        published.find(table=5, method=SINGLE, category="bottle", metric="image_auroc")
    assert "2 published numbers have table 5, method 'ReConPatch (Ours, single)'" in str(error.value)
    assert "they differ in backbone ('WRN-101', 'WRN-50'), image_size ('480', '224 (image" in str(error.value)
    with pytest.raises(ValueError, match="have no condition at all"):
        published.find()


def test_every_number_can_be_found():
    names = [name for name in published.COLUMNS if name not in ("value", "source")]
    for file in published.tables():
        asked = [tuple(getattr(number, name) for name in names) for number in published.rows(file)]
        assert len(set(asked)) == len(asked)
        assert published.find(file=file, **dict(zip(names, asked[-1]))) == published.rows(file)[-1]
    with pytest.raises(ValueError, match=r"they differ in file \('headlines', 'other_systems_per_category'\)\. Name"):
        published.find(method="SPADE", backbone="WRN-50", category="mean", metric="PRO")


def test_a_file_or_a_table_that_is_not_there_is_said():
    with pytest.raises(ValueError, match="no published table file 'table5'; there are headlines, .*third_party_mvtec"):
        published.rows("table5")
    with pytest.raises(ValueError, match="no published table file"):
        published.select(file="../README")
    with pytest.raises(ValueError, match=r"No published number has table 8. .*table: "):
        published.table(8)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "x.csv: the first line must be method,backbone,"),
        ("method,value\n", "x.csv: the first line must be"),
        (",".join(published.COLUMNS) + "\na,b,c\n", "x.csv, line 2: 3 cells, expected 8"),
        (
            ",".join(published.COLUMNS) + "\na,b,c,d,e,f,1,h\na,b,c,d,e,f,about 1,h\n",
            "x.csv, line 3: the value is no number: 'about 1'",
        ),
        (",".join(published.COLUMNS) + "\na,b,c,d,e,f,nan,h\n", "x.csv, line 2: the value is no number: 'nan'"),
    ],
)
def test_a_bad_line_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        published._parse(text, "x.csv")


def test_every_trouble_names_real_columns_and_each_of_its_words_touches_a_number():
    for sentence, touched in published._troubles():
        assert sentence.endswith(".") and "\n" not in sentence
        assert touched and set(touched) <= {"source", "method", "image_size", "dataset", "category", "metric"}, sentence
        for name, words in touched.items():
            for word in words:
                assert any(published._meets(n, {**touched, name: [word]}) for n in EVERY), (
                    f"{word!r} touches nothing: {sentence}"
                )


def test_troubles_touch_those_they_are_about_and_no_others():
    carpet = {(n.method, n.metric): n.troubles for n in published.select(table=5, category="carpet")}
    assert carpet["CFA", "image_AUROC"] == ["97.3 contradicts the 99.5 of CFA's own paper."]
    assert carpet["PaDiM", "pixel_AUROC"] == []
    assert len(carpet["CFLOW-AD", "image_AUROC"]) == 1
    assert published.find(table=5, method=SINGLE, image_size=480, category="mean", metric="image_auroc").troubles == []
    pro = published.find(file="headlines", method="RD4AD", metric="aupro")
    assert len(pro.troubles) == 1 and "need not be our AUPRO" in pro.troubles[0]


def test_a_tables_footnotes_hold_each_sentence_once():
    notes = published.troubles(published.table(5))
    assert len(notes) == len(set(notes)) == len({text for n in published.table(5) for text in n.troubles})
    assert published.troubles(published.table(6) + published.table(7)) == published.troubles([]) == []


def test_the_folders_readme_names_every_file():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in text for path in FOLDER.iterdir() if path.suffix in (".csv", ".toml"))


def test_reading_the_tables_needs_nothing_but_the_standard_library():
    code = (
        "import importlib.util, json, sys\n"
        f"folder = {str(FOLDER)!r}\n"
        "load = importlib.util.spec_from_file_location\n"
        "spec = load('alone', folder + '/__init__.py', submodule_search_locations=[folder])\n"
        "alone = importlib.util.module_from_spec(spec)\n"
        "sys.modules['alone'] = alone\n"
        "spec.loader.exec_module(alone)\n"
        "names = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(json.dumps([len(alone.table(5)), 'torch' in names, 'numpy' in names, 'rcp' in names]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [237, False, False, False]
