"""`rcp reproduce`: the paper's tables, measured here and set beside what was published.

`setup` says what was asked for, `tables` makes a grid and rows of it, the grid is measured by `rcp.experiments`, `compare` puts
both columns side by side with every reason that is known, and `render` writes Markdown, CSV and LaTeX.
"""
