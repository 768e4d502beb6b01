"""The notebooks' promises: in step with their sources, executed, readable, with exercises that can be solved."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))
NAMES = [path.stem for path in SOURCES]
EXECUTED = [*FOLDER.glob("*.ipynb"), *FOLDER.glob("solutions/*.ipynb")]
sys.path.insert(0, str(FOLDER))

import build  # noqa: E402


def read(path: Path):
    return nbformat.read(path, as_version=4)


def cells_tagged(name: str, tag: str):
    return [cell for cell in jupytext.read(FOLDER / f"{name}.py").cells if tag in build.tags(cell)]


def text_of(notebook) -> str:
    """All that a notebook's cells printed or returned, as text."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_every_notebook_has_its_source_and_every_source_its_notebooks():
    assert NAMES
    assert NAMES == sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    assert NAMES == sorted(path.stem for path in FOLDER.glob("solutions/*.ipynb"))


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
class TestExecuted:
    def test_is_in_step_with_its_source(self, path):
        made = build.convert(path.stem) if path.parent == FOLDER else build.solutions(path.stem)
        kept = read(path)
        assert [(c.cell_type, c.source, c.id) for c in made.cells] == [(c.cell_type, c.source, c.id) for c in kept.cells]
        assert [c.metadata for c in made.cells] == [c.metadata for c in kept.cells]

    def test_is_valid_and_was_executed_in_order_without_errors(self, path):
        notebook = read(path)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]

    def test_carries_no_debris(self, path):
        text = path.read_text(encoding="utf-8")
        notebook = json.loads(text)
        outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
        assert not [o for o in outputs if o.get("name") == "stderr"]
        assert "widgets" not in notebook["metadata"] and "widget-view" not in text
        assert not re.search(r"/(home|Users|root|tmp|work)/\w", text)
        assert len(text) < 2_000_000

    def test_has_short_cells(self, path):
        lengths = [len(cell.source.splitlines()) for cell in read(path).cells if cell.cell_type == "code"]
        assert max(lengths) <= 30 and sorted(lengths)[len(lengths) // 2] <= 15


@pytest.mark.parametrize("name", NAMES)
class TestNotebook:
    def test_speaks_between_its_cells(self, name):
        kinds = [cell.cell_type for cell in build.convert(name).cells]
        assert kinds.count("markdown") >= 0.6 * kinds.count("code")

    def test_opens_with_goal_time_and_a_question(self, name):
        first = build.convert(name).cells[0].source
        assert first.startswith(f"# {name[:2]} · ")
        assert all(word in first for word in ("**Goal.**", "**Time.**", "**Predict first.**"))

    def test_tells_minutes_a_section_that_add_up(self, name):
        cells = [cell.source for cell in build.convert(name).cells if cell.cell_type == "markdown"]
        sections = [line for cell in cells for line in cell.splitlines() if re.match(r"## \d+ · ", line)]
        assert sections and all(re.search(r"\((\d+) min\)$", line) for line in sections)
        told = int(re.search(r"\*\*Time\.\*\* (\d+) minutes to teach", cells[0])[1])
        assert sum(int(re.search(r"\((\d+) min\)$", line)[1]) for line in sections) == told and 15 <= told <= 40

    def test_begins_with_the_cell_that_installs_rcp_where_it_is_missing(self, name):
        expected = cells_tagged("00_quickstart", "install")[0].source
        assert build.convert(name).cells[1].source == expected

    def test_ends_with_a_note_for_the_lecturer(self, name):
        last = build.convert(name).cells[-1]
        assert "For the lecturer" in last.source and "notes" in build.tags(last)

    def test_has_two_to_four_exercises_each_with_a_check_and_a_solution(self, name):
        stubs = [cell for cell in cells_tagged(name, "exercise") if cell.cell_type == "code"]
        assert 2 <= len(stubs) <= 4
        assert len(cells_tagged(name, "solution")) == len(cells_tagged(name, "check")) == len(stubs)
        assert all("..." in stub.source for stub in stubs)
        texts = "\n".join(cell.source for cell in cells_tagged(name, "exercise"))
        numbers = re.findall(r"^### Exercise ([\d.]+) · ", texts, re.MULTILINE)
        assert numbers == [f"{int(name[:2])}.{i + 1}" for i in range(len(stubs))]

    def test_leaves_its_exercises_open_and_its_solutions_right(self, name):
        exercises = len(cells_tagged(name, "check"))
        assert text_of(read(FOLDER / f"{name}.ipynb")).count("Your turn") == exercises
        solved = text_of(read(FOLDER / "solutions" / f"{name}.ipynb"))
        assert solved.count("✓") == exercises and "✗" not in solved and "Your turn" not in solved

    def test_sets_some_outputs_that_nbval_compares(self, name):
        assert len(cells_tagged(name, "nbval-check-output")) >= 3

    def test_tags_enough_cells_for_its_slides(self, name):
        slides = len(cells_tagged(name, "slide"))
        assert slides >= 4 and slides + len(cells_tagged(name, "sub")) >= 8

    def test_keeps_figures_that_are_named_after_it(self, name):
        source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        kept = set(re.findall(r'"(\d\d_\w+)"\)', source))
        assert kept and all(figure.startswith(f"{name}_") for figure in kept)
        assert {path.stem for path in (ROOT / "figures").glob(f"{name}_*.png")} == kept

    def test_is_in_the_readme_with_its_minutes(self, name):
        row = next(line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith(f"| [{name}]"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        told = re.search(r"\*\*Time\.\*\* (\d+) minutes", build.convert(name).cells[0].source)[1]
        assert cells[0] == f"[{name}](notebooks/{name}.ipynb)" and cells[2] == told and cells[3].isdigit()


def test_the_first_cell_installs_only_where_rcp_is_missing(monkeypatch, tmp_path):
    calls = []

    class Shell:
        def run_line_magic(self, *call):
            calls.append(call)

    file = tmp_path / "first.py"
    file.write_text(cells_tagged("00_quickstart", "install")[0].source, encoding="utf-8")
    runpy.run_path(str(file), {"get_ipython": Shell})
    assert not calls  # rcp is here
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    runpy.run_path(str(file), {"get_ipython": Shell})
    assert len(calls) == 1 and calls[0][0] == "pip" and "rcp[notebooks] @ git+https://github.com/" in calls[0][1]


SMALL = """# %% [markdown]
# # 99 · Tiny
# %% tags=["setup"]
one = 1
# %%
two = 2
# %% [markdown] tags=["exercise"]
# What is one and one?
# %% tags=["exercise"]
answer = ...
# %% tags=["solution"]
answer = one + 1
# %% tags=["check"]
assert answer in (..., 2)
"""


@pytest.fixture
def tiny_course(tmp_path, monkeypatch):
    (tmp_path / "99_tiny.py").write_text(SMALL, encoding="utf-8")
    monkeypatch.setattr(build, "HERE", tmp_path)
    return tmp_path


def test_a_solution_is_folded_below_its_check(tiny_course):
    cells = build.convert("99_tiny").cells
    assert [cell.cell_type for cell in cells] == ["markdown", "code", "code", "markdown", "code", "code", "markdown"]
    assert cells[4].source == "answer = ..." and "check" in build.tags(cells[5])
    assert "<details>" in cells[6].source and "answer = one + 1" in cells[6].source


def test_the_solutions_have_setup_and_solution_and_no_stub(tiny_course):
    notebook = build.solutions("99_tiny")
    assert [cell.source for cell in notebook.cells if cell.cell_type == "code"] == [
        "one = 1", "answer = one + 1", "assert answer in (..., 2)",
    ]  # fmt: skip
    executed = build.execute(notebook, tiny_course, tiny_course)
    assert [cell.execution_count for cell in executed.cells if cell.cell_type == "code"] == [1, 2, 3]


def test_the_public_address_stands_in_one_form_everywhere_and_can_be_set(tmp_path):
    for name in ("pyproject.toml", "README.md", "notebooks/00_quickstart.py", "notebooks/00_quickstart.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    changed = build.set_address("someone/course-2", tmp_path)
    assert len(changed) == 4
    old = re.search(r'Repository = "https://github.com/([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    for path in changed:
        text = path.read_text(encoding="utf-8")
        assert "someone/course-2" in text and old not in text
    assert build.set_address(old, tmp_path) == changed
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="owner/name"):
        build.set_address("no address", tmp_path)
