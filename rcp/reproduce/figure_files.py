"""Which file a figure is drawn from: one that was measured on the very images at hand, or else one measured now.

python -m rcp.reproduce.figure_files      writes the files that the repository keeps, in figures/results
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rcp import plots, plots_paper, synthetic
from rcp.data import Category, mvtec
from rcp.experiments.measure import Material
from rcp.plots_paper import read
from rcp.reproduce import figures
from rcp.reproduce.figures import FIGURES, QUICK, STUDY, Settings

WRAP = 12  # letters of a caption an inch


def at_hand(figure: str, category: Category, folders: Sequence[str | Path]) -> Path | None:
    """Return the first file of a figure that was measured on these very images, or None.

    Args:
        figure: of `FIGURES`.
        category: whose images, by fingerprint.
        folders: where files may lie.

    Raises:
        ValueError: if there is a file that cannot be read.
    """
    asked = figures.identity(category)
    for path in (Path(folder) / f"{figure}.json" for folder in folders):
        if path.is_file() and read(path, figure)["dataset"] == asked:
            return path
    return None


def found_or_measured(
    figure: str, material: Material, folders: Sequence[str | Path], settings: Settings = QUICK
) -> Path:
    """Return the file of a figure for a category: the one that is there, else one measured now.

    Args:
        figure: of `FIGURES`.
        material: from `prepare`.
        folders: where files may lie; below the last one a new file is put, into a folder for the category.
        settings: of the measurement, if one is needed.
    """
    category = material.category
    own = Path(folders[-1]) / f"{figures.dataset_of(category)}-{category.name}"
    there = at_hand(figure, category, [*folders, own])
    return there if there is not None else FIGURES[figure](material, own, settings)


def picture(path: str | Path) -> Path:
    """Return the PNG of a figure, drawn beside its result file and named after it, with its caption: it has no text around it.

    Args:
        path: from one of `FIGURES`, so that its name is the figure's.
    """
    path = Path(path)
    draw = {"figure3": plots_paper.figure3, "figure4": plots_paper.figure4, "figure5": plots_paper.figure5}
    if path.stem not in draw:
        raise ValueError(f"{path} is not named after a figure: {', '.join(draw)}")
    figure = draw[path.stem](path)
    words = textwrap.fill(plots_paper.caption(read(path, path.stem)), int(WRAP * figure.get_figwidth()))
    figure.suptitle(words, x=0.01, ha="left", fontsize=plots.TYPE - 4)  # on top: legends stand below
    return plots.write(figure, path.with_suffix(".png"))


def main() -> None:
    """Measure the figures that the repository keeps, on an embedded category: some minutes on two cores."""
    material, out = figures.prepare(mvtec(synthetic.cached(), "terminal")), Path("figures") / "results"
    settings = Settings(STUDY)  # the study's training, so that Figure 4 shares its cells
    for path in (
        figures.figure3(material, out, settings),
        figures.figure4(material, out, settings, cells="runs/experiments"),
        figures.figure5(material, out, settings),
    ):
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB  {read(path, path.stem)['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
