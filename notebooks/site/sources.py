"""Makes what Sphinx reads: the notebooks as their pages show them, the repository's own pages, and the index."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from decks import REMOTE_PICTURE, alternative_text
from titles import Front, front, names, read

if TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATE = Path(__file__).resolve().parent / "index.md"
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:)([^)#\s]+)(?:#[^)\s]*)?\)")  # relative, or a picture: words, path


def stage(root: Path, folder: Path) -> list[Path]:
    """Write the sources of a course into a folder; return the notebooks' paths below it.

    The folder has the repository's layout, so that relative links hold, and whatever a page links to.
    """
    import nbformat

    course = [Path("notebooks", f"{name}.ipynb") for name in names(root)]
    solved = sorted(path.relative_to(root) for path in (root / "notebooks" / "solutions").glob("[0-9]*.ipynb"))
    documents = {path: read(root / path) for path in course + solved}
    fronts = {path.stem: front(documents[path], path.stem) for path in course}
    texts = {Path(path.name): path.read_text(encoding="utf-8") for path in sorted(root.glob("*.md"))}
    shown = {name: figure for name in fronts if (figure := best_figure(root, name, texts.get(Path("README.md"), "")))}

    linked = {Path("figures", figure) for figure in shown.values()}
    for path, text in texts.items():
        linked |= set(_linked(text, path.parent))
        _write(folder / path, offline(text, root))
    for path, notebook in documents.items():
        linked |= {found for cell in notebook.cells for found in _linked(cell.source, path.parent) if cell.cell_type == "markdown"}
        solution = Path("solutions", path.name) if path.parent / "solutions" / path.name in solved else None
        _write(folder / path, nbformat.writes(page(notebook, path.stem, root / path.parent, solution)))
    for path in linked:
        if (root / path).is_file() and not (folder / path).exists():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, folder / path)

    beside = [{"README": "The repository: README <README>"}.get(path.stem, path.stem) for path in sorted(texts, key=lambda p: (p.stem != "README", p))]
    if solved:
        _write(folder / "notebooks/solutions/index.md", "# Solutions\n\nTry first.\n" + _toctree([path.stem for path in solved]))
        beside.insert(0, "notebooks/solutions/index")
    index = TEMPLATE.read_text(encoding="utf-8").replace("<!-- table -->", table(fronts)).replace("<!-- gallery -->", gallery(shown, fronts))
    index += _toctree([path.with_suffix("").as_posix() for path in course], "The course") + _toctree(beside, "Beside it")
    _write(folder / "index.md", index)
    return course + solved


def _linked(text: str, folder: Path) -> Iterator[Path]:
    for _, path in LINK.findall(text):
        yield Path(os.path.normpath(folder / unquote(path)))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _toctree(entries: list[str], caption: str = "") -> str:
    options = f":hidden:\n:caption: {caption}\n\n" if caption else "\n"
    return "\n```{toctree}\n" + options + "\n".join(entries) + "\n```\n" if entries else ""


def page(notebook: NotebookNode, name: str, folder: Path, solution: Path | None = None) -> NotebookNode:
    """Return the notebook as its page shows it: offline pictures, boxes, alternative texts, and a line on how to open it.

    Args:
        notebook: as it was executed; it is changed.
        name: without its ending.
        folder: where the notebook lies, for its links.
        solution: its solutions' notebook, as seen from there.
    """
    notebook.metadata.setdefault("language_info", {"name": "python"})["pygments_lexer"] = "ipython3"  # which knows %magic
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = offline(cell.source, folder)
            cell.source = boxed(text, "lecturer") if re.match(r"\*+For the lecturer", text) else text
        elif alternative := alternative_text(cell.source, name):
            cell.metadata["mystnb"] = {"image": {"alt": alternative}}
    first = notebook.cells[0]
    predict = re.search(r"(?ms)^\*\*Predict first\.?\*\*.*?(?=\n\s*\n|\Z)", first.source)
    if predict:
        first.source = first.source.replace(predict[0], boxed(predict[0], "predict"))
    links = [f'<a href="{name}.ipynb" download>Download this notebook</a>']
    if solution:
        links.append(f'<a href="{solution.with_suffix(".html").as_posix()}">its solutions, executed</a>')
    links.append("to play with it, open it in Jupyter")
    first.source += f'\n\n<p class="links">{" · ".join(links)}</p>'
    return notebook


def offline(text: str, folder: Path) -> str:
    """Return Markdown that needs no network, and that Sphinx reads as Jupyter does.

    Pictures on other machines (badges) become their words, links to folders plain text; `</details>` gets a line of its own.
    """
    text = REMOTE_PICTURE.sub(r"\1", text)
    text = LINK.sub(lambda found: found[1] if (folder / unquote(found[2])).is_dir() else found[0], text)
    return re.sub(r"\n*\n\s*</details>", "\n\n</details>", text)


def boxed(text: str, kind: str) -> str:
    """Return Markdown in a box of the style sheet; text with headings stays as it is, for a section cannot stand in a box."""
    return text if re.search(r"(?m)^#+ ", text) else f'<div class="{kind}">\n\n{text}\n\n</div>'


def table(fronts: dict[str, Front]) -> str:
    """Return the index's table in Markdown: notebook, what it is about, minutes."""
    lines = ["| notebook | what it is about | to teach | to run |", "|---|---|---:|---:|"]
    for name, said in fronts.items():
        cells = (f"[{said.title}](notebooks/{name}.ipynb)", said.about, said.teach, said.run)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return '<div class="course">\n\n' + "\n".join(lines) + "\n\n</div>"


def gallery(shown: dict[str, str], fronts: dict[str, Front]) -> str:
    """Return the index's figures in Markdown, each a link to its notebook."""
    lines = []
    for name, figure in shown.items():
        words = figure.removeprefix(f"{name}_").removesuffix(".png").replace("_", " ")
        lines.append(f"* [![{words}](figures/{figure})](notebooks/{name}.ipynb)\n\n  {fronts[name].title.split(':')[0]}: {words}\n")
    return '<div class="gallery">\n\n' + "\n".join(lines) + "\n</div>"


def best_figure(root: Path, name: str, readme: str) -> str:
    """Return the figure that stands for a notebook: one that the README shows, or the fullest (its file is the largest)."""
    made = {path.name: path.stat().st_size for path in sorted((root / "figures").glob(f"{name}_*.png"))}
    shown = [figure for figure in re.findall(r"figures/([\w.-]+\.png)", readme) if figure in made]
    return (shown or sorted(made, key=made.get, reverse=True) or [""])[0]
