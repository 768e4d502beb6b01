"""The report's tables on ensembles, ports and full steps: on values that are small enough to check by eye."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rcp.experiments.collection import Row
from rcp.experiments.report import (
    ALONE,
    ENSEMBLES,
    added_table,
    ensemble_means,
    ensemble_table,
    ensembles,
    full_table,
    port_table,
    report,
)
from rcp.experiments.summary import over_both

RESULTS = Path(__file__).resolve().parent.parent / "figures" / "results"
GAIN = dict(zip(ENSEMBLES, (0.02, 0.01, 0.03, 0.05), strict=True))


def row(method: str, seed: int, value: float, *, category="pill", backbone="Lite0", epoch=None, last=True, **varied) -> Row:
    metrics = {"image_auroc": value, "pixel_auroc": value / 2, "aupro": value / 4, "d_prime": 10 * value}
    return Row("mvtec", category, backbone, method, varied, seed, epoch, metrics, {}, last)


@pytest.fixture
def grid() -> list[Row]:
    """PatchCores of 0.80, 0.84 and 0.88; ensembles above their mean, 0.84, by GAIN; the seed adds thousandths, category y tenths."""
    rows = []
    for category, more in (("x", 0.0), ("y", 0.1)):
        for seed in range(3):
            base = 0.84 + more + 0.001 * seed
            for backbone, off in (("Lite0", -0.04), ("Lite1", 0.0), ("Lite2", 0.04)):
                rows.append(row("PatchCore", seed, base + off, category=category, backbone=backbone))
            rows += [row(name, seed, base + GAIN[name], category=category, backbone="Lite0+Lite1+Lite2") for name in ENSEMBLES]
    return rows


def test_an_ensemble_is_compared_with_the_mean_of_its_members_of_the_same_seed(grid):
    values = ensembles(grid, "image_auroc")
    assert list(values) == [*ENSEMBLES, ALONE]
    for seed in range(3):
        key = ("mvtec", "y", "all backbones", seed)
        assert values[ALONE][key] == pytest.approx(0.94 + 0.001 * seed)
        assert values["ensemble of ReConPatch"][key] == pytest.approx(0.97 + 0.001 * seed)


def test_the_table_of_ensembles_has_each_difference_over_both_and_by_category(grid):
    lines = ensemble_table(grid, "image AUROC").splitlines()
    assert lines[0] == "| image AUROC | over both | mvtec x, over seeds | mvtec y, over seeds |"
    told = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in lines[2:]}
    wanted = {
        f"ensemble of PatchCore − {ALONE}": 2, "ensemble of ReConPatch − ensemble of untrained f": 2,
        "ensemble of ReConPatch, rate x 10 − ensemble of untrained f": 4,
        "ensemble of ReConPatch − ensemble of PatchCore": 1, "ensemble of ReConPatch, rate x 10 − ensemble of PatchCore": 3,
    }  # fmt: skip
    assert list(told) == list(wanted)
    for name, points in wanted.items():
        assert all(cell.startswith(f"**+{points}.00 [+{points}.00, ") for cell in told[name]), told[name]
    assert "+0.200 [" in ensemble_table(grid, "d′") and "+1.00" in ensemble_table(grid, "pixel AUROC")


def test_the_means_of_ensembles_stand_beside_each_patchcore_alone(grid):
    lines = ensemble_means(grid).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [
        "PatchCore, Lite0", "PatchCore, Lite1", "PatchCore, Lite2", *ENSEMBLES
    ]  # fmt: skip
    assert "| PatchCore, Lite0 | 85.10 ± 0.10 |" in lines[2] and "| 92.10 ± 0.10 |" in lines[-2] and lines[2].endswith("| 8.51 ± 0.01 |")


def test_an_ensemble_that_lacks_a_seed_is_refused_over_both(grid):
    some = [one for one in grid if not (one.method == "ensemble of PatchCore" and one.seed == 2 and one.category == "y")]
    with pytest.raises(ValueError, match="got 5 of 2 x 3"):
        ensemble_table(some, "image AUROC")
    assert over_both({key: 1.0 for key in ensembles(grid, "aupro")[ALONE]}).n == 6


def test_full_steps_are_compared_with_the_same_f_untrained():
    rows = [row("ReConPatch", s, 0.7 + s / 100, epoch=0, last=False) for s in range(3)]
    rows += [row("ReConPatch", s, 0.9, epoch=10, last=False) for s in range(3)]
    rows += [row("ReConPatch", s, 0.8 + s / 100, epoch=120) for s in range(3)]
    rows += [replace(one, category="vial") for one in rows]
    table = full_table(rows)
    assert "| mvtec vial | **+10.00 [+10.00, +10.00]** |" in table and "| all, over both | **+10.00 [+10.00, +10.00]** |" in table
    assert "| mvtec pill | **+10.00 [+10.00, +10.00]** | **+5.00 [" in table and "**+1.000 [+1.000, +1.000]** |" in table


def test_cells_that_were_added_after_a_look_are_shown_alone():
    rows = [row("ReConPatch", s, 0.7, category="brick", epoch=0, last=False) for s in range(5)]
    rows += [row("ReConPatch", s, 0.9 if s < 3 else 0.71, category="brick", epoch=120) for s in range(5)]
    rows += [row("ReConPatch", s, 0.7, category="weave", epoch=0, last=False) for s in range(2)]
    rows += [row("ReConPatch", s, 0.73, category="weave", epoch=120) for s in range(2)]
    table = added_table(rows)
    assert "| mvtec brick | **+1.00 [+1.00, +1.00]**" in table and "| mvtec weave | **+3.00 [+3.00, +3.00]**" in table


def test_all_bugs_have_a_line_where_they_were_measured():
    rows = [row("ReConPatch", s, 0.9, category=c) for s in range(2) for c in "xy"]
    rows += [row("ported", s, 0.8, category=c, **{"options.bug": "all"}) for s in range(2) for c in "xy"]
    assert "| all | **-10.00 [-10.00, -10.00]** |" in port_table(rows)


def test_a_grid_that_is_missing_or_not_done_is_said_to_be_so(tmp_path):
    shutil.copy(RESULTS / "study.json", tmp_path)
    ports = json.loads((RESULTS / "ports.json").read_text(encoding="utf-8")) | {"missing": 1}
    (tmp_path / "ports.json").write_text(json.dumps(ports), encoding="utf-8")
    text = report(tmp_path)
    assert text.count("Not measured yet") == 4 and "Not measured yet: `rcp experiments ports`." in text


def test_every_interval_in_the_prose_of_reproducibility_md_stands_in_its_tables():
    text = (RESULTS.parent.parent / "REPRODUCIBILITY.md").read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- report -->")
    tables, _, rest = rest.partition("<!-- end of report -->")
    between, _, rest = rest.partition("<!-- systems -->")
    of_systems, _, after = rest.partition("<!-- end of systems -->")
    tables += of_systems.replace("\N{MINUS SIGN}", "-")
    found = re.findall(r"[+-]\d+\.\d{2,3} \[[^\]]+\]", " ".join((before + between + after).split()).replace("\N{MINUS SIGN}", "-"))
    assert len(found) >= 10
    assert [one for one in found if one not in tables] == []


def test_without_a_study_there_is_no_report(tmp_path):
    with pytest.raises(ValueError, match="has no study.json in which every cell is measured"):
        report(tmp_path)
