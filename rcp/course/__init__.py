"""What the notebooks draw and check: a few files a notebook, each figure beside its interactive twin.

Nothing of the method stands here. A notebook derives on toys, calls the library, and asks this package for its pictures and
for the checks of its exercises.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from rcp import plots, synthetic
from rcp.data import Category, find, mvtec
from rcp.files import write_atomically

SMALL = 120_000  # bytes up to which a figure is kept as SVG, too


def category(default: str = "terminal") -> Category:
    """Return the category that the notebooks work on.

    `RCP_DATA=…/mvtec RCP_CATEGORY=bottle` in the environment chooses real data, `RCP_CATEGORY=brick` another embedded one.

    Args:
        default: which embedded category it is if the environment says nothing.
    """
    name = os.environ.get("RCP_CATEGORY")
    if root := os.environ.get("RCP_DATA"):
        return find(root, name)
    return mvtec(synthetic.cached(), name or default)


def source(category: Category) -> str:
    """Return the words that every figure's caption needs: whether the data are real, and which."""
    if os.environ.get("RCP_DATA"):
        return f"{category.dataset} {category.name}"
    return f"embedded synthetic data, {category.name}"


def results_folder(start: Path | None = None) -> Path:
    """Return figures/results of the repository that holds the working folder, or the installed code.

    Args:
        start: where to begin; None: the working folder.

    Raises:
        FileNotFoundError: if there is none: the package alone does not bring the results along. The message says how to get them.
    """
    here = (start or Path.cwd()).resolve()
    places = [here, *here.parents] + ([Path(__file__).resolve().parents[2]] if start is None else [])
    for place in places:
        if (place / "figures" / "results").is_dir():
            return place / "figures" / "results"
    urls = dict(line.split(", ", 1) for line in importlib.metadata.metadata("rcp").get_all("Project-URL") or ())
    raise FileNotFoundError(
        "no folder figures/results here: the measured results are part of the repository, not of the installed package. Get "
        f"it with `!git clone {urls.get('Repository', 'ADDRESS')} repository` and `%cd repository/notebooks`, then run this cell again"
    )


def out() -> Path:
    """Return the folder of figures and tables: `RCP_OUT`, or demo/ beside the notebooks' folder."""
    return Path(os.environ.get("RCP_OUT", "../demo"))


def keep(figure: Figure, name: str, dpi: int = 72) -> Figure:
    """Write a figure as PNG, and as SVG where that stays small; return it, for the notebook to show.

    Args:
        figure: to keep.
        name: of the file, without its ending: the notebook's, then the figure's, e.g. "02_pseudo_labels_context".
        dpi: of the PNG; a figure is 12 inches wide at most.
    """
    plots.write(figure, out() / f"{name}.png", dpi=dpi)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "rcp"}):  # or every build would write other ids
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    if buffer.tell() <= SMALL:
        write_atomically(out() / f"{name}.svg", lambda path: path.write_bytes(buffer.getvalue()))
    return figure
