"""Sphinx's settings for the course's site; notebooks/publish.py calls it. No page may need a network or a server."""

from docutils.nodes import Text, math_block

project = "rcp"
author = ""
extensions = ["myst_nb", "sphinx.ext.mathjax"]
exclude_patterns = []

# Notebooks: as they were executed. Text that a cell makes is read like the text between cells.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_output_stderr = "warn"  # there is none in a committed notebook; -W makes this an error
myst_enable_extensions = ["amsmath", "dollarmath", "html_image"]
myst_dmath_double_inline = True  # $$…$$ within a paragraph, as Jupyter reads it
myst_heading_anchors = 4  # [text](README.md#two-commands), as GitHub names them
suppress_warnings = ["myst.header"]  # solutions are cut from their notebook: "###" stands below "#" there

html_theme = "sphinx_book_theme"
html_title = "Patch-based anomaly detection, opened up"
html_static_path = ["static"]
html_css_files = ["course.css"]
html_copy_source = False  # the notebooks themselves lie beside their pages
html_show_search_summary = False  # summaries are fetched, which a browser forbids on file://; titles and links are not
html_show_copyright = False
html_show_sphinx = False
html_domain_indices = False
html_use_index = False
html_context = {"default_mode": "light"}  # the figures are white: in a dark page they would glare, so there is one mode
html_theme_options = {
    "navbar_persistent": [],
    "article_header_end": ["search-button", "toggle-secondary-sidebar"],
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navigation_with_keys": False,  # arrow keys scroll wide tables and code
    "back_to_top_button": False,
    "footer_content_items": [],
    "toc_title": "On this page",
}

# MathJax lies in _static (publish.py puts it there). No menu: it would load parts that are not there.
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "local"}}


def setup(app):
    """Let MathJax have displayed formulae as they are: Sphinx's own wrapping in `split` forbids the paper's numbers (\\tag)."""
    app.connect("doctree-read", lambda app, doctree: [_as_written(node) for node in doctree.findall(math_block)])


def _as_written(node: math_block) -> None:
    text = node.astext().strip()
    text = text if text.startswith(r"\begin{align") else rf"\[{text}\]"
    node.children = [Text(text)]
    node["no-wrap"] = True
    node["classes"] = []  # "amsmath" would be numbered 1, 2, …, which are not the paper's numbers
