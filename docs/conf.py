"""How the documentation is built: `sphinx-build -W -b html docs OUT`, warnings being errors."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]

project = "ppo_jax"
author = "the authors of ppo_jax"
copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "api_pages",
    "notebook_pages",
    "tables",
    "outside_links",
]
exclude_patterns = ["_build", "html", "_extensions"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
# A table of contents may skip a level; indented blocks are commands, not Python.
highlight_language = "text"
# Names in single backticks become links where there is something to link to.
default_role = "py:obj"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them, and the text says what they mean
autodoc_default_options = {"members": True}
# Suites of environments that need not be installed to read about their adapters.
autodoc_mock_imports = [
    "ale_py",
    "brax",
    "craftax",
    "envpool",
    "jaxmarl",
    "jumanji",
    "mujoco_playground",
    "navix",
    "pgx",
    "xminigrid",
]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "ppo_jax"
html_static_path = ["_static"]
html_css_files = ["ppo_jax.css"]
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
