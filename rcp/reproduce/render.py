"""A finished table as Markdown, CSV and LaTeX: three forms of the same numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rcp.files import write_atomically
from rcp.reproduce.compare import Entry, Table, Value
from rcp.reproduce.sheet import name_of

COLUMNS = (
    "table", "category", "method", "metric", "published", "source", "measured", "std", "seeds", "difference", "notes",
)  # fmt: skip
NONE = "–"
TEX = {  # everything that is not plain text in LaTeX, and the signs that we use
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "–": "--", "—": "---", "−": "$-$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$", "σ": r"$\sigma$",
    "γ": r"$\gamma$", "α": r"$\alpha$", "→": r"$\rightarrow$", "…": r"\ldots{}", "′": "$'$", "“": "``", "”": "''", '"': "''",
    "’": "'", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}",
}  # fmt: skip


def markdown(table: Table) -> str:
    """Return the table in Markdown: caption, reasons, rows, footnotes.

    Args:
        table: from `rcp.reproduce.compare.compare`.
    """
    lines = [f"# {table.title}", "", table.caption, ""]
    if table.reasons:
        lines += ["Why the columns may differ, as far as it is known:", "", *(f"* {one}" for one in table.reasons), ""]
    lines.append("| " + " | ".join(_head(table)) + " |")
    lines.append("|---|---|" + "---:|" * (3 * len(table.metrics)) + "---|---|")
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(entry)) + " |" for entry in table.entries]
    if table.footnotes:
        lines += ["", *(f"* [{number}] {one}" for number, one in enumerate(table.footnotes, start=1))]
    return "\n".join(lines) + "\n"


def as_csv(table: Table) -> str:
    """Return a line a number: percent, published as printed, the notes written out; empty where there is nothing.

    Args:
        table: from `rcp.reproduce.compare.compare`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in table.entries:
        for metric, value in entry.values.items():
            marks = sorted({*value.published_notes, *value.measured_notes, *entry.notes})
            notes = " | ".join(table.footnotes[mark - 1] for mark in marks)
            published = "" if value.published is None else f"{value.published:.6g}"
            numbers = ("" if one is None else f"{one:.4f}" for one in (value.measured, value.std))
            difference = "" if value.difference is None else f"{value.difference:.4f}"
            source = entry.source if published else ""
            writer.writerow(
                [table.number or name_of(table.number), entry.category, entry.label, metric, published, source, *numbers, value.seeds, difference, notes]
            )
    return text.getvalue()


def latex(table: Table) -> str:
    """Return the table as a `longtable` with booktabs' rules, to be included; its first line says what it needs.

    Args:
        table: from `rcp.reproduce.compare.compare`.
    """
    columns = "ll" + "rrr" * len(table.metrics) + "ll"
    head = " & ".join(tex(one) for one in _head(table)) + r" \\"
    lines = [
        r"% needs \usepackage{booktabs,longtable}; it is wide: put it on a landscape page", r"{\footnotesize", rf"\begin{{longtable}}{{{columns}}}",
        rf"\caption{{{tex(table.title + '. ' + table.caption)}}}\\", r"\toprule", head, r"\midrule", r"\endhead",
    ]  # fmt: skip
    last = None
    for entry in table.entries:
        if last not in (None, entry.category):
            lines.append(r"\midrule")
        last = entry.category
        lines.append(" & ".join(tex(cell) for cell in _cells(entry)) + r" \\")
    lines += [r"\bottomrule", r"\end{longtable}"]
    if table.reasons:
        reasons = (rf"\item {tex(one)}" for one in table.reasons)
        lines += [r"\noindent Why the columns may differ, as far as it is known:", r"\begin{itemize}", *reasons, r"\end{itemize}"]
    if table.footnotes:
        notes = (rf"\item[{{[{number}]}}] {tex(one)}" for number, one in enumerate(table.footnotes, start=1))
        lines += [r"\begin{itemize}", *notes, r"\end{itemize}"]
    return "\n".join([*lines, "}"]) + "\n"


def tex(text: str) -> str:
    """Return plain text as LaTeX; a sign that has no form here is an error, not a surprise in a paper.

    Raises:
        ValueError: for a sign beyond ASCII that is not in `TEX`.
    """
    # Two hyphens, as in an option's name, would become a dash.
    found = "-{}-".join("".join(TEX.get(sign, sign) for sign in part) for part in text.split("--"))
    if not found.isascii():
        sign = next(one for one in found if not one.isascii())
        raise ValueError(f"no LaTeX is known here for {sign!r}: add it to rcp.reproduce.render.TEX")
    return found


def write(table: Table, folder: str | Path) -> list[Path]:
    """Write table<n>.md, .csv and .tex (systems.md, …) into a folder; return their paths.

    Args:
        table: from `rcp.reproduce.compare.compare`.
        folder: made if need be.
    """
    written = []
    for suffix, text in ((".md", markdown(table)), (".csv", as_csv(table)), (".tex", latex(table))):
        path = Path(folder) / f"{name_of(table.number)}{suffix}"
        written.append(write_atomically(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8")))
    return written


def _head(table: Table) -> list[str]:
    return ["category", "method", *(f"{name}: {column}" if column == "published" else column
            for name in table.metrics.values() for column in ("published", "measured", "difference")), "published in", "notes"]  # fmt: skip


def _cells(entry: Entry) -> list[str]:
    numbers = [cell for value in entry.values.values() for cell in _value(value)]
    return [entry.category, entry.label, *numbers, entry.source or NONE, _marks(entry.notes)]


def _value(value: Value) -> tuple[str, str, str]:
    published = NONE if value.published is None else f"{value.published:.2f}"
    measured = NONE if value.measured is None else f"{value.measured:.2f}"
    if value.std is not None:
        measured += f" ± {value.std:.2f}"
    difference = NONE if value.difference is None else f"{value.difference:+.2f}".replace("-", "−")
    return _with(published, value.published_notes), _with(measured, value.measured_notes), difference


def _with(text: str, marks: Sequence[int]) -> str:
    return f"{text} {_marks(marks)}" if marks else text


def _marks(marks: Sequence[int]) -> str:
    return f"[{', '.join(map(str, marks))}]" if marks else ""
