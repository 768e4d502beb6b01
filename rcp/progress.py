"""One progress bar for all long stages: on a terminal and in a live notebook, silent in logs and headless runs."""

from __future__ import annotations

import os
import sys

from tqdm import tqdm


def bar(what: str, total: int | None, unit: str) -> tqdm:
    """Return a tqdm bar that appears only if the work takes longer than a second.

    Args:
        what: what is being done, as shown in front of the bar.
        total: number of steps, None if that is not known yet.
        unit: what one step is, in the singular.

    Returns:
        A context manager with `update(n)`. It is shown in a notebook and on a terminal; the environment variable
        RCP_PROGRESS=0 silences it (headless notebook runs do), RCP_PROGRESS=1 shows it everywhere.
    """
    notebook = "ipykernel" in sys.modules
    wish = os.environ.get("RCP_PROGRESS", "auto")
    shown = wish == "1" or (wish != "0" and (notebook or sys.stderr.isatty()))
    kind = tqdm
    if notebook and shown:
        from tqdm.notebook import tqdm as kind  # here: it needs ipywidgets, which only notebooks have
    return kind(desc=what, total=total, unit=f" {unit}", disable=not shown, delay=1.0, leave=False, dynamic_ncols=True)
