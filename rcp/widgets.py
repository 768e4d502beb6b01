"""Interactive figures for notebooks; each has a static twin in `rcp.plots`.

A slider draws one PNG and shows it: no plot is kept alive, so the same works in JupyterLab, the classic notebook and
VS Code.
"""

from __future__ import annotations

import io
from functools import lru_cache

import ipywidgets
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rcp import plots
from rcp.data import Split
from rcp.evaluation import Result


def browse(test: Split, results: dict[str, tuple[Result, plots.Limits]]) -> ipywidgets.Widget:
    """Return a slider over the test images, from the lowest to the highest score, with image and heat maps.

    The static twin is `plots.map_sheet`.

    Args:
        test: the split that was scored.
        results: title → (`Result`, colour limits); the first one's scores give the order.

    Returns:
        A widget to display; arrow keys move the slider.
    """
    first = next(iter(results.values()))[0]
    order = np.argsort(first.scores.image_scores.numpy(), kind="stable")
    picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
    slider = ipywidgets.IntSlider(
        value=len(order) - 1, max=len(order) - 1, description="rank by score", continuous_update=True,
        style={"description_width": "initial"}, layout=ipywidgets.Layout(width="60%"),
    )  # fmt: skip

    @lru_cache(maxsize=512)
    def draw(rank: int) -> bytes:
        return png(plots.one_image(test, results, int(order[rank])))

    def show(change: dict) -> None:
        picture.value = draw(change["new"])

    slider.observe(show, names="value")
    show({"new": slider.value})
    return ipywidgets.VBox([slider, picture])


def png(figure, dpi: int = 72) -> bytes:
    """Return a Matplotlib figure as PNG bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
