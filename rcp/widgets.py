"""Interactive figures: controls and touches in, a freshly drawn picture out. Each has a static twin in a notebook.

One mechanism serves the whole course: `explore` takes a function that draws a Matplotlib figure, sliders for its arguments,
and, if the picture is to be clicked or dragged on, a function that says what a touch changes. No plot is kept alive, so the
same works in JupyterLab, the classic notebook and VS Code, with mouse, finger and keyboard.
"""

from __future__ import annotations

import atexit
import gc
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rcp import plots
from rcp.data import Split
from rcp.evaluation import Result

atexit.register(gc.unfreeze)  # so that an ending process takes leave of all objects (see Explorer)
DPI = 72
Values = dict[str, Any]


class Picture(anywidget.AnyWidget):
    """A PNG in a notebook that tells where it was touched.

    Attributes:
        png: the bytes.
        alt: what the picture shows, in words.
        touchable: whether it listens to mouse, finger and keyboard.
        touch: the last one: phase "down", "move" or "up", x and y from 0 to 1, from the upper left, and a running count.
            The front end sends each as a message: changes of a state would be merged where the connection is slow.
    """

    _esm = Path(__file__).with_name("picture.js")
    png = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)
    touchable = traitlets.Bool(False).tag(sync=True)
    touch = traitlets.Dict()

    def __init__(self, **traits: Any):
        """Take the traits above."""
        super().__init__(**traits)
        self.on_msg(lambda _, content, buffers: self.set_trait("touch", content | {"count": self.touch.get("count", 0) + 1}))


@dataclass(frozen=True)
class Touch:
    """Where a drawn figure was touched.

    Attributes:
        phase: "down", "move" or "up".
        panel: position of the axes in `figure.axes`.
        x, y: in data coordinates of these axes.
    """

    phase: str
    panel: int
    x: float
    y: float


class Explorer(ipywidgets.VBox):
    """Controls above a picture; what `explore` returns.

    Attributes:
        controls: name → ipywidget with a `value`.
        state: what touches changed besides the controls.
        picture: the `Picture`.
    """

    def __init__(
        self,
        draw: Callable[..., Figure],
        controls: Mapping[str, ipywidgets.Widget],
        state: Values,
        on_touch: Callable[[Touch, Values], Values] | None,
        alt: str,
    ):
        self.controls, self.state = dict(controls), dict(state)
        self.picture = Picture(alt=alt, touchable=on_touch is not None)
        self._draw, self._on_touch, self._figure = draw, on_touch, None
        self._busy = False  # while a touch changes several controls: one picture for all
        for control in self.controls.values():
            control.observe(self._show, names="value")
        self.picture.observe(self._touched, names="touch")
        self._show()
        # What lives now is no garbage. Were it looked through again at every full collection, a slider would halt for half a second.
        gc.collect()
        gc.freeze()
        boxed = ipywidgets.Box(list(self.controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
        super().__init__([boxed, self.picture])

    def values(self) -> Values:
        """Return what the figure is drawn with."""
        return {name: _snapped(control) for name, control in self.controls.items()} | self.state

    def _show(self, change: Any = None) -> None:
        if not self._busy:
            self._figure = self._draw(**self.values())
            self.picture.png = png(self._figure)

    def _touched(self, change: dict) -> None:
        where = located(self._figure, change["new"])
        changed = self._on_touch(where, self.values()) if where and self._on_touch else {}
        if not changed:
            return
        self._busy = True
        try:
            for name, value in changed.items():
                if name in self.controls:
                    self.controls[name].value = value
                else:
                    self.state[name] = value
        finally:
            self._busy = False
        self._show()


def explore(
    draw: Callable[..., Figure],
    controls: Mapping[str, ipywidgets.Widget],
    *,
    state: Values | None = None,
    on_touch: Callable[[Touch, Values], Values] | None = None,
    alt: str,
) -> Explorer:
    """Return controls above a picture that is drawn anew whenever one of them moves, or the picture is touched.

    Args:
        draw: returns a figure for the values of all controls, and the state, by name; it must take less than 150 ms.
        controls: name → ipywidget with a `value`.
        state: further arguments of `draw`, which have no control; only touches change them.
        on_touch: gets a `Touch` and all values, returns those that change; {} for none. None: the picture cannot be touched.
        alt: what the picture shows, for screen readers.
    """
    return Explorer(draw, controls, state or {}, on_touch, alt)


def slider(low: float, high: float, value: float, name: str, step: float | None = None) -> ipywidgets.Widget:
    """Return a slider, whole numbers if all of its are, with its name beside it; arrow keys move it.

    Args:
        low, high, value: ends, and where it starts.
        name: shown to the left, e.g. "k (neighbours)".
        step: None: 1 for whole numbers, else a hundredth of the range.
    """
    whole = all(isinstance(number, int) for number in (low, high, value, step or 0))
    kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    return kind(
        value=value, min=low, max=high, step=step or (1 if whole else (high - low) / 100), description=name,
        continuous_update=True, style={"description_width": "initial"}, layout=ipywidgets.Layout(width="420px"),
    )  # fmt: skip


def player(last: int, name: str, interval: int = 400) -> tuple[ipywidgets.Widget, ipywidgets.Widget]:
    """Return (slider, play button) that step from 0 to `last`; only the slider is a control, show both.

    Args:
        last: the slider's end.
        name: shown to its left.
        interval: milliseconds a step.
    """
    position = slider(0, last, 0, name)
    button = ipywidgets.Play(min=0, max=last, interval=interval, show_repeat=False)
    ipywidgets.link((button, "value"), (position, "value"))
    return position, button


def _snapped(control: ipywidgets.Widget) -> Any:
    """The control's value; of a slider, the nearest step: a number typed beside it may lie between two."""
    if not isinstance(control, ipywidgets.FloatSlider):
        return control.value
    steps = round((control.value - control.min) / control.step)
    return min(control.max, round(control.min + steps * control.step, 10))


def located(figure: Figure | None, touch: Mapping[str, Any]) -> Touch | None:
    """Return where a figure that `png` has drawn was touched, or None outside all axes."""
    if figure is None or not touch:
        return None
    width, height = figure.canvas.get_width_height()
    x, y = touch["x"] * width, (1 - touch["y"]) * height
    for panel, axes in enumerate(figure.axes):
        if axes.bbox.contains(x, y):
            inside = axes.transData.inverted().transform((x, y))
            return Touch(touch["phase"], panel, float(inside[0]), float(inside[1]))
    return None


def browse(test: Split, results: dict[str, tuple[Result, plots.Limits]]) -> Explorer:
    """Return a slider over the test images, from the lowest to the highest score, with image and heat maps.

    The static twin is `plots.map_sheet`.

    Args:
        test: the split that was scored.
        results: title → (`Result`, colour limits); the first one's scores give the order.
    """
    first = next(iter(results.values()))[0]
    order = np.argsort(first.scores.image_scores.numpy(), kind="stable")
    rank = slider(0, len(order) - 1, len(order) - 1, "rank by score")
    return explore(
        lambda rank: plots.one_image(test, results, int(order[rank])), {"rank": rank},
        alt="a test image beside its heat maps",
    )  # fmt: skip


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """Return a Matplotlib figure as PNG bytes; its transforms then are those of the picture."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    buffer = io.BytesIO()
    canvas.print_png(buffer, pil_kwargs={"compress_level": 1})
    return buffer.getvalue()
