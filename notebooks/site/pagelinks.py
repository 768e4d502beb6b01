"""Checks a folder of HTML pages: do links arrive, and does a page load anything from the network?"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """Collects what a page links to, what it loads, and the anchors that it offers."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value for key, value in attrs if value}
        self.anchors |= {found[key] for key in ("id", "name") if key in found}
        urls = [found[key] for key in ("href", "src", "data", "poster") if key in found]
        urls += [part.split()[0] for part in found.get("srcset", "").split(", ") if part.strip()]
        self.links += urls
        if tag != "a":
            self.loads += urls


def pages(folder: Path) -> list[Path]:
    """Return all HTML pages in a folder, in order."""
    return sorted(folder.rglob("*.html"))


def broken_links(folder: Path) -> list[tuple[Path, str]]:
    """Return (page, link) for each link whose file or anchor does not exist; links to other machines are not followed."""
    read = cache(_Page)
    return [(page, link) for page in pages(folder) for link in read(page).links if _is_broken(page, link, read)]


def _is_broken(page: Path, link: str, read: Callable[[Path], _Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return parts.scheme == "file"  # names a path of the machine where it was made
    target = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
    target = target / "index.html" if target.is_dir() else target
    if not target.exists():
        return True
    anchor = unquote(parts.fragment)
    return anchor not in ("", "top") and target.suffix == ".html" and anchor not in read(target).anchors


def remote_links(folder: Path) -> list[tuple[Path, str]]:
    """Return (page, address) for whatever a page would load from the network: scripts, styles, pictures, frames."""
    return [(page, url) for page in pages(folder) for url in _Page(page).loads if urlsplit(url).netloc]
