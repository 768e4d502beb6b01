"""Publish the executed notebooks as they stand: a static site, and slides. Nothing is executed here.

    python notebooks/publish.py site                   the whole course → site/index.html
    python notebooks/publish.py slides                 every notebook with slides → slides/NN_name.html
    python notebooks/publish.py slides 05_scoring --out DIR

Both work without a server and without a network. What a notebook is about is read from its title cell. Slides are cut from
tagged cells: `slide` starts one, `sub` goes on below (a `solution` below appears at a key press), `notes` are for the lecturer's
view (key S), `hide-input` shows the output alone; other cells are left out, as are those tagged `remove-cell`.

The parts lie in notebooks/site/: titles, sources of the site, decks, links; Sphinx's settings, style sheets and templates.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "notebooks" / "site"
sys.path.insert(0, str(SITE))

from decks import deck
from pagelinks import broken_links, pages, remote_links
from sources import stage
from titles import Refused, front, names, package, read

MARK = ".made-by-publish"  # only a folder with this file in it is ever replaced
PACKAGES = ("nbformat", "nbconvert", "sphinx", "myst_nb", "sphinx_book_theme", "sphinx-mathjax-offline", "sphinx_revealjs")


def site(out: Path, root: Path = ROOT) -> list[Path]:
    """Write the static site of a course; return its pages.

    Args:
        out: the folder; an earlier site there is replaced.
        root: the repository: notebooks/, figures/, README.md and other pages in Markdown.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, html = Path(folder, "source"), Path(folder, "html")
        documents = stage(root, source)
        command = ["-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going", "-c", SITE, "-d", Path(folder, "trees"), source, html]
        told = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
        if told.returncode:
            raise Refused(f"Sphinx found something to mend:\n{told.stderr.replace(f'{source}{os.sep}', '').strip()}")
        for path in documents:  # for the links "download": the notebooks themselves, untouched
            shutil.copy(root / path, html / path)
        copy_mathjax(html / "_static" / "mathjax")
        copy_font(html / "_static")
        for debris in (*html.rglob("*.map"), *html.rglob("*webpack-macros.html")):  # of the theme's makers
            debris.unlink()
        _place(html, out)
    return pages(out)


def slides(out: Path, chosen: list[str] | None = None, root: Path = ROOT) -> list[Path]:
    """Write a deck for each notebook that has tagged cells; return the files.

    Args:
        out: the folder; earlier slides there are replaced.
        chosen: names of notebooks; None for all.
        root: the repository.
    """
    from nbconvert.exporters import SlidesExporter

    course = names(root)
    if unknown := sorted(set(chosen or []) - set(course)):
        raise Refused(f"there is no notebook {unknown[0]!r}; there are {', '.join(course)}")
    notebooks = {name: read(root / "notebooks" / f"{name}.ipynb") for name in chosen or course}
    titles = {name: front(notebook, name).title for name, notebook in notebooks.items()}
    cut = {name: deck(notebook, name) for name, notebook in notebooks.items()}
    bare = [name for name in cut if cut[name] is None]
    if bare and (chosen or len(bare) == len(cut)):
        raise Refused(f"notebooks/{bare[0]}.ipynb has no cell tagged 'slide', so there is nothing to show")
    for name in bare:
        print(f"{name}: no cell is tagged 'slide', so it has no slides")
    exporter = SlidesExporter(template_name="slides", extra_template_basedirs=[str(SITE)], embed_images=True, exclude_anchor_links=True)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "slides")
        made.mkdir()
        for name in sorted(set(cut) - set(bare)):
            resources = {"metadata": {"name": name, "path": str(root / "notebooks")}, "course": {"title": titles[name]}}
            text, _ = exporter.from_notebook_node(cut[name], resources)
            (made / f"{name}.html").write_text(text, encoding="utf-8")
        copy_reveal(made / "reveal")
        copy_mathjax(made / "mathjax")
        copy_font(made)
        for asset in ("slides.css", "slides.js"):
            shutil.copy(SITE / "slides" / asset, made)
        _place(made, out)
    return pages(out)


def copy_mathjax(folder: Path) -> None:
    """Copy what formulae need: MathJax with SVG output in one file, as web fonts do not load from file:// everywhere."""
    home = package("sphinx-mathjax-offline") / "static" / "mathjax"
    shutil.copytree(home / "input" / "tex" / "extensions", folder / "input" / "tex" / "extensions")
    shutil.copy(home / "tex-svg.js", folder)


def copy_reveal(folder: Path) -> None:
    """Copy what slides need of reveal.js."""
    home = package("sphinx_revealjs") / "_static" / "revealjs"
    for path in ("dist/reveal.js", "dist/reveal.css", "dist/reset.css", "plugin/notes/notes.js", "LICENSE"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(home / path, folder / path)


def copy_font(folder: Path) -> None:
    """Copy the figures' own typeface, which headings share; Matplotlib brings it."""
    for name in ("DejaVuSans-Bold.ttf", "LICENSE_DEJAVU"):
        shutil.copy(package("matplotlib") / "mpl-data" / "fonts" / "ttf" / name, folder)


def _place(made: Path, out: Path) -> None:
    """Move a finished folder to its place if its links hold; a folder that was not made here is never removed."""
    for what, found in (("broken link", broken_links(made)), ("loaded from the network", remote_links(made))):
        if found:
            raise Refused("\n".join(f"{what}: {page.relative_to(made)}: {link}" for page, link in found))
    if out.exists() and not (out.is_dir() and ((out / MARK).exists() or not any(out.iterdir()))):
        raise Refused(f"{out} exists and was not made by this command: choose another --out, or remove it")
    (made / MARK).touch()
    if out.exists():
        shutil.rmtree(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, out)


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, what in (("site", "the course as a static site"), ("slides", "slides of notebooks")):
        sub = commands.add_parser(command, help=what)
        sub.add_argument("--out", type=Path, default=ROOT / command, metavar="DIR", help=f"default: {command}/")
        if command == "slides":
            sub.add_argument("names", nargs="*", help="notebooks; default: all")
    options = parser.parse_args(arguments)
    try:
        for name in PACKAGES:
            package(name)
        if options.command == "site":
            print(f"{len(site(options.out))} pages: open {options.out / 'index.html'}")
        else:
            for path in slides(options.out, options.names):
                print(path)
    except Refused as refused:
        print(f"publish: {refused}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
