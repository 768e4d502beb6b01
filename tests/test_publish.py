"""The site and the slides: what is read from title cells, which cells become slides, pages that need neither server nor network."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "notebooks" / "site")]

import decks
import publish
import sources
import titles

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
TITLE = """# 02 · Labels: which are the same?

**Goal.** See how Eq. 5 turns distances, e.g. of patches, into a label, as in [scoring](05_scoring.ipynb). Then doubt it.

**Time.** 25 minutes to teach, 40 s to run.

**Predict first.** Must two points at the same distance
have the same $w$? (Section 2.)"""


def cell(text: str, *tags: str, code: bool = False, **more: object) -> nbformat.NotebookNode:
    make = new_code_cell if code else new_markdown_cell
    return make(text, metadata={"tags": list(tags)} if tags else {}, **more)


def notebook(*cells: nbformat.NotebookNode, title: str = TITLE) -> nbformat.NotebookNode:
    return new_notebook(cells=[cell(title), *cells], metadata={"language_info": {"name": "python"}})


class TestTitleCell:
    def test_is_read(self):
        said = titles.front(notebook(), "02_labels")
        assert said.title == "02 · Labels: which are the same?"
        assert said.goal.startswith("See how Eq. 5") and said.goal.endswith("Then doubt it.")
        assert said.predict == "Must two points at the same distance have the same $w$? (Section 2.)"
        assert (said.teach, said.run) == ("25 min", "40 s")

    @pytest.mark.parametrize(
        ("words", "teach", "run"),
        [
            ("**Time.** 20–25 minutes to teach, about a minute to run.", "20–25 min", "1 min"),
            ("**Time.** 15 min to teach; about 30 seconds to run", "15 min", "30 s"),
            ("**Time.** An hour to teach.", "–", "–"),
            ("**Time.** an hour to teach, 2 minutes to run.", "1 h", "2 min"),
            ("", "–", "–"),
        ],
    )
    def test_says_its_time_in_several_ways(self, words, teach, run):
        said = titles.front(notebook(title=f"# 01 · A\n\n**Goal.** B.\n\n{words}"), "01_a")
        assert (said.teach, said.run) == (teach, run)

    def test_may_say_its_time_within_the_goal_which_then_is_left_out_of_it(self):
        said = titles.front(notebook(title="# 00 · A\n\n**Goal.** B,\nand C. (15 minutes to teach; 50 s to run.)"), "00_a")
        assert said.goal == "B, and C." and (said.teach, said.run) == ("15 min", "50 s")

    def test_is_about_whole_sentences_without_links(self):
        said = titles.front(notebook(), "02_labels")
        assert said.about == "See how Eq. 5 turns distances, e.g. of patches, into a label, as in scoring. Then doubt it."
        long = titles.Front("", f"First. {'X' * 200}. Third.", "", "", "")
        assert long.about == "First."
        assert titles.Front("", "no end", "", "", "").about == "no end"

    @pytest.mark.parametrize("title", ["# Labels\n\n**Goal.** B.", "# 02 · Labels\n\nNo goal.", ""])
    def test_without_title_or_goal_is_refused_by_name(self, title):
        with pytest.raises(titles.Refused, match=r"02_labels\.ipynb"):
            titles.front(notebook(title=title), "02_labels")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestEveryNotebookOfTheCourse:
    def test_says_goal_question_and_time(self, path):
        said = titles.front(nbformat.read(path, 4), path.stem)
        assert said.title.startswith(path.stem[:2]) and said.predict and "–" not in (said.teach, said.run)

    def test_has_slides(self, path):
        cut = decks.deck(nbformat.read(path, 4), path.stem)
        assert cut is not None and len(starts(cut)) > 4

    def test_gives_no_formula_two_numbers(self, path):
        """MathJax prints an error instead of such a formula, in Jupyter as well."""
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
        formulae = [formula for text in cells for formula in re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL)]
        assert not [formula for formula in formulae if formula.count(r"\tag") > 1 and r"\begin{align" not in formula]


def starts(cut: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in cut.cells if cell.metadata.slideshow.slide_type == "slide"]


class TestSlides:
    @pytest.mark.parametrize(
        ("tags", "started", "kind"),
        [
            (["slide"], False, "slide"),
            (["slide", "hide-input", "nbval-check-output"], True, "slide"),
            (["sub"], True, "-"),
            (["sub"], False, "slide"),
            (["sub", "exercise"], True, "-"),
            (["sub", "solution"], True, "fragment"),
            (["notes"], True, "notes"),
            (["slide", "remove-cell"], True, "skip"),
            (["setup"], True, "skip"),
            ([], True, "skip"),
        ],
    )
    def test_come_from_tags(self, tags, started, kind):
        assert decks.slide_type(cell("text", *tags), started) == kind

    def test_begin_with_the_title_and_the_question(self):
        cut = decks.deck(notebook(cell("## 1 · One (5 min)", "slide")), "02_labels")
        title, predict, first = starts(cut)
        assert title.startswith("# 02 · Labels") and "25 min to teach · 40 s to run" in title
        assert predict.startswith("## Predict first\n\nMust two points") and first == "## 1 · One (5 min)"

    def test_without_a_heading_carry_the_section_even_if_that_is_no_slide(self):
        cut = decks.deck(notebook(cell("## 3 · Three (5 min)"), cell("plot()", "slide", "hide-input", code=True)), "02_labels")
        assert starts(cut)[-1] == '<p class="running">3 · Three</p>'
        assert cut.cells[-1].source == "plot()" and cut.cells[-1].metadata.slideshow.slide_type == "-"
        assert cut.cells[-1].metadata.transient == {"remove_source": True}

    def test_take_notes_to_their_first_cell_in_order(self):
        cells = [cell("## 1", "slide"), cell("<details>\n</details>", "sub", "solution"), cell("a", "notes"), cell("b", "notes")]
        cut = decks.deck(notebook(*cells, cell("## 2", "slide")), "02_labels")
        assert [c.source for c in cut.cells[2:]] == ["## 1", "a", "b", "<details open>\n</details>", "## 2"]

    def test_name_other_pages_without_linking_to_them(self):
        text = "[scores](05_scoring.ipynb#x), [web](https://a.b), ![figure](../figures/a.png), ![badge](https://a.b/c.svg)"
        cut = decks.deck(notebook(cell(text, "slide")), "02_labels")
        assert cut.cells[-1].source == "scores, [web](https://a.b), ![figure](../figures/a.png), badge"

    def test_are_none_without_a_tagged_cell(self):
        assert decks.deck(notebook(cell("text"), cell("note", "notes")), "02_labels") is None


class TestPages:
    def test_index_table_has_a_line_for_each_notebook(self):
        fronts = {"02_labels": titles.Front("02 · Labels", "What $|x|$ is.", "", "25 min", "40 s")}
        lines = sources.table(fronts).splitlines()
        assert r"| [02 · Labels](notebooks/02_labels.ipynb) | What $\|x\|$ is. | 25 min | 40 s |" in lines

    def test_gallery_links_figures_to_notebooks(self):
        text = sources.gallery({"02_labels": "02_labels_two_words.png"}, {"02_labels": titles.Front("02 · Labels: x", "", "", "", "")})
        assert "[![two words](figures/02_labels_two_words.png)](notebooks/02_labels.ipynb)" in text and "02 · Labels: two words" in text

    def test_best_figure_is_the_readmes_or_the_largest(self, tmp_path):
        write_course(tmp_path)
        for name, size in (("a", 1000), ("b", 3000), ("c", 2000)):
            (tmp_path / "figures" / f"00_start_{name}.png").write_bytes(b"x" * size)
        assert sources.best_figure(tmp_path, "00_start", "") == "00_start_b.png"
        assert sources.best_figure(tmp_path, "00_start", "![x](figures/00_start_c.png)") == "00_start_c.png"
        assert sources.best_figure(tmp_path, "07_none", "") == ""

    def test_markdown_is_made_to_need_no_network(self, tmp_path):
        (tmp_path / "figures").mkdir()
        text = "[![Binder](https://a.b/c.svg)](https://a.b) [all](figures) ![one](figures/a.png)\n<details>x\n</details>"
        assert sources.offline(text, tmp_path) == "[Binder](https://a.b) all ![one](figures/a.png)\n<details>x\n\n</details>"

    def test_boxes_hold_no_headings(self):
        assert sources.boxed("text", "predict") == '<div class="predict">\n\ntext\n\n</div>'
        assert sources.boxed("# Title\n\ntext", "predict") == "# Title\n\ntext"

    def test_a_kept_figure_has_words(self):
        assert decks.alternative_text('course.keep(f(), "02_labels_two_words")', "02_labels") == "Figure: two words"
        assert decks.alternative_text("print(1)", "02_labels") == ""


class TestLinks:
    def test_that_do_not_arrive_are_found(self, tmp_path):
        (tmp_path / "sub").mkdir()
        (tmp_path / "a b.txt").write_text("")
        (tmp_path / "index.html").write_text(
            '<h1 id="top-of">x</h1><a href="sub/page.html#there">1</a><a href="sub/">2</a><a href="#top-of">3</a><a href="#">4</a>'
            '<a href="a%20b.txt">5</a><a href="https://a.b/c">6</a><a href="mailto:a@b">7</a><img src="data:image/png;base64,AA">'
            '<a href="sub/page.html?q=1#missing">8</a><a href="gone.html">9</a><img src="gone.png"><a href="file:///etc">10</a>'
        )
        (tmp_path / "sub" / "page.html").write_text('<a name="there" href="../index.html">x</a><a href="../../index.html">y</a>')
        (tmp_path / "sub" / "index.html").write_text("x")
        found = [(path.relative_to(tmp_path).as_posix(), link) for path, link in publish.broken_links(tmp_path)]
        assert found == [
            ("index.html", "sub/page.html?q=1#missing"),
            ("index.html", "gone.html"),
            ("index.html", "gone.png"),
            ("index.html", "file:///etc"),
            ("sub/page.html", "../../index.html"),
        ]

    def test_that_would_load_from_the_network_are_found(self, tmp_path):
        (tmp_path / "page.html").write_text(
            '<a href="https://a.b">fine</a><script src="https://cdn.x/y.js"></script><link href="//fonts.x/y.css"><img src="a.png" srcset="a.png 1x, https://x/b.png 2x">'
        )
        assert [link for _, link in publish.remote_links(tmp_path)] == ["https://cdn.x/y.js", "//fonts.x/y.css", "https://x/b.png"]


def write_course(root: Path) -> None:
    """Write a course of two notebooks with all that pages may hold."""
    picture = new_output("display_data", data={"image/png": base64.b64encode(PIXEL).decode(), "text/plain": "<Figure>"})
    printed = new_output("stream", name="stdout", text="printed 1\n")
    prose = new_output("display_data", data={"text/markdown": "**In this run** $\\delta$ is 1.\n\n| a |\n|---|\n| 1 |", "text/plain": "x"})
    first = notebook(
        cell("raise SystemExit('never shown')", "install", "remove-cell", code=True),
        cell("%matplotlib inline\nprint(1)", "setup", code=True, outputs=[printed]),
        cell("## 1 · Formulae (5 min)\n\n$$a = \\begin{cases} 1 \\\\ 2 \\end{cases} \\tag{7}$$\n\nand $b$; [next](01_next.ipynb#2--end).", "slide"),
        cell('course.keep(f(), "00_start_two_words")', "sub", "hide-input", code=True, outputs=[picture]),
        cell("Markdown(text)", code=True, outputs=[prose]),
        cell("<details><summary><b>Solution</b></summary>\n\n```python\nx = 1\n```\n\n</details>", "solution", "sub"),
        cell("*For the lecturer.* Ask.", "notes"),
        title="# 00 · Start\n\n**Goal.** Begin.\n\n**Time.** 5 minutes to teach, 1 s to run.\n\n**Predict first.** What?\n\n![badge](https://a.b/c.svg)",
    )
    second = notebook(
        cell("## 2 · End\n\n[back](00_start.ipynb), [readme](../README.md#two-words), [source](00_start.py), [folder](../figures)."),
        title="# 01 · Next\n\n**Goal.** Go on.",
    )
    (root / "notebooks" / "solutions").mkdir(parents=True)
    (root / "figures").mkdir()
    (root / "figures" / "00_start_two_words.png").write_bytes(PIXEL)
    (root / "README.md").write_text("# Readme\n\n## Two words\n\n![figure](figures/00_start_two_words.png) [start](notebooks/00_start.ipynb)\n")
    solved = new_notebook(cells=[cell("# Solutions to [00_start](../00_start.ipynb)"), cell("### Exercise 1.1"), cell("1", code=True)])
    for name, made in (("00_start", first), ("01_next", second), ("solutions/00_start", solved)):
        for number, each in enumerate(made.cells):
            each.id = f"cell-{number}"
        nbformat.write(made, root / "notebooks" / f"{name}.ipynb")
        if made is not solved:
            (root / "notebooks" / f"{name}.py").write_text("")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a site; Sphinx's warnings, broken links and loads from the network would have been refused."""
    root = tmp_path_factory.mktemp("course")
    write_course(root)
    publish.site(root / "site", root)
    return root / "site"


class TestSite:
    def test_has_the_pages(self, built):
        names = [path.relative_to(built).as_posix() for path in publish.pages(built)]
        assert names == [
            "README.html", "index.html", "notebooks/00_start.html", "notebooks/01_next.html", "notebooks/solutions/00_start.html",
            "notebooks/solutions/index.html", "search.html",
        ]  # fmt: skip

    def test_leads_from_page_to_page(self, built):
        text = (built / "notebooks" / "00_start.html").read_text(encoding="utf-8")
        assert re.search(r'class="left-prev"\s+href="../index.html"', text)
        assert re.search(r'class="right-next"\s+href="01_next.html"', text)
        assert 'href="01_next.html#end"' in text and 'href="solutions/00_start.html"' in text
        text = (built / "notebooks" / "01_next.html").read_text(encoding="utf-8")
        assert 'href="../README.html#two-words"' in text and 'href="00_start.html"' in text

    def test_index_tells_what_the_title_cells_say(self, built):
        text = (built / "index.html").read_text(encoding="utf-8")
        assert "00 · Start" in text and "Begin." in text and "5 min" in text and "Go on." in text
        assert 'alt="two words"' in text

    def test_loads_nothing_from_elsewhere(self, built):
        for path in publish.pages(built):
            assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?:https?:)?//", path.read_text(encoding="utf-8")), path
        assert not re.findall(r"url\(['\"]?https?:", "".join(path.read_text(encoding="utf-8") for path in built.rglob("*.css")))

    def test_renders_formulae_by_its_own_mathjax_as_they_were_written(self, built):
        text = (built / "notebooks" / "00_start.html").read_text(encoding="utf-8")
        assert 'src="../_static/mathjax/tex-svg.js"' in text
        assert (built / "_static" / "mathjax" / "tex-svg.js").stat().st_size > 1_000_000
        assert r"\[a = \begin{cases} 1 \\ 2 \end{cases} \tag{7}\]" in text and r"\begin{split}" not in text  # which forbids \tag
        assert r"\(\delta\)" in text

    def test_search_needs_no_server(self, built):
        index = (built / "searchindex.js").read_text(encoding="utf-8")
        assert index.startswith("Search.setIndex(") and "notebooks/00_start" in index and "formula" in index
        assert re.search(r"SHOW_SEARCH_SUMMARY:\s*false", (built / "_static" / "documentation_options.js").read_text(encoding="utf-8"))

    def test_shows_cells_as_their_tags_say(self, built):
        text = (built / "notebooks" / "00_start.html").read_text(encoding="utf-8")
        assert "never shown" not in text and "printed 1" in text
        assert "Show code cell source" in text and 'alt="Figure: two words"' in text
        assert "<details><summary><b>Solution</b></summary>" in text and "highlight-python" in text
        assert '<div class="predict">' in text and '<div class="lecturer">' in text
        assert "<td><p>1</p></td>" in text  # a table within a cell's Markdown

    def test_brings_the_notebooks_themselves(self, built):
        assert (built / "notebooks" / "00_start.ipynb").read_text(encoding="utf-8") == (built.parent / "notebooks" / "00_start.ipynb").read_text(encoding="utf-8")
        assert '<a href="00_start.ipynb" download>' in (built / "notebooks" / "00_start.html").read_text(encoding="utf-8")

    def test_replaces_itself_but_nothing_else(self, built, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("x")
        made = tmp_path / "made"
        made.mkdir()
        with pytest.raises(titles.Refused, match="was not made by this command"):
            publish._place(made, tmp_path / "mine")
        assert (tmp_path / "mine" / "thesis.txt").exists()
        publish._place(made, tmp_path / "new" / "site")
        again = tmp_path / "again"
        again.mkdir()
        (again / "page.html").write_text("x")
        publish._place(again, tmp_path / "new" / "site")
        assert (tmp_path / "new" / "site" / "page.html").exists()

    def test_with_a_link_to_nowhere_is_refused(self, tmp_path):
        write_course(tmp_path)
        (tmp_path / "README.md").write_text("# Readme\n\n[gone](notebooks/09_gone.ipynb)\n")
        with pytest.raises(titles.Refused, match=r"README\.md:3.*09_gone"):
            publish.site(tmp_path / "site", tmp_path)
        assert not (tmp_path / "site").exists()


class TestDecks:
    def test_need_nothing_but_their_folder(self, tmp_path, capsys):
        write_course(tmp_path)
        [deck] = publish.slides(tmp_path / "slides", root=tmp_path)
        assert "01_next: no cell is tagged 'slide'" in capsys.readouterr().out
        text = deck.read_text(encoding="utf-8")
        assert publish.broken_links(deck.parent) == publish.remote_links(deck.parent) == []
        assert not re.findall(r"https?://(?!www\.w3\.org)", text)
        assert text.count("<section") == 2 * 3  # nbconvert nests them: title, question, one slide
        assert "course.keep" not in text and '<img alt="Figure: two words" src="data:image/png;base64,' in text
        assert "never shown" not in text and "printed 1" not in text
        assert r"\tag{7}" in text and '<aside class="notes">' in text and '<details open' in text
        loaded = re.findall(r'(?:src|href)="([^"#:]+)"', text)
        assert {"reveal/dist/reveal.js", "reveal/plugin/notes/notes.js", "slides.js", "slides.css", "mathjax/tex-svg.js"} <= set(loaded)

    def test_asked_for_by_name_must_be_there(self, tmp_path):
        write_course(tmp_path)
        with pytest.raises(titles.Refused, match="there is no notebook '05_scoring'; there are 00_start, 01_next"):
            publish.slides(tmp_path / "slides", ["05_scoring"], tmp_path)
        with pytest.raises(titles.Refused, match=r"01_next\.ipynb has no cell tagged 'slide'"):
            publish.slides(tmp_path / "slides", ["01_next"], tmp_path)


class TestCommand:
    def test_names_a_notebook_that_was_not_executed(self, tmp_path):
        write_course(tmp_path)
        (tmp_path / "notebooks" / "05_scoring.py").write_text("")
        with pytest.raises(titles.Refused, match=r"05_scoring\.ipynb is missing: make it with `python notebooks/build.py 05_scoring`"):
            titles.names(tmp_path)

    def test_says_so_where_there_is_no_notebook(self, tmp_path):
        with pytest.raises(titles.Refused, match="there is no notebook in"):
            titles.names(tmp_path)

    def test_says_which_package_is_missing_in_one_sentence(self, monkeypatch, capsys, tmp_path):
        find = titles.find_spec
        monkeypatch.setattr(titles, "find_spec", lambda name: None if name == "sphinx" else find(name))
        assert publish.main(["site", "--out", str(tmp_path / "site")]) == 2
        told = capsys.readouterr().err
        assert told == 'publish: the package sphinx is not installed: pip install -c constraints.txt -e ".[notebooks,site]"\n'

    def test_refuses_a_wrong_name_in_one_sentence(self, monkeypatch, capsys, tmp_path):
        write_course(tmp_path)
        monkeypatch.setattr(publish.slides, "__defaults__", (None, tmp_path))
        assert publish.main(["slides", "99_gone", "--out", str(tmp_path / "slides")]) == 2
        assert capsys.readouterr().err == "publish: there is no notebook '99_gone'; there are 00_start, 01_next\n"
