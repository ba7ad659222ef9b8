"""Configuration of the documentation: `sphinx-build -q -W -b html docs OUT` fails on a warning."""

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
myst_heading_anchors = 4
# A table of contents may skip a heading level. Indented blocks are commands, not Python.
highlight_language = "text"
# A name in single backticks becomes a link if the documentation contains an object of that name.
default_role = "py:obj"

# Formulas are rendered in the reader's browser by a copy of MathJax that is part of the site, so
# that the pages work without a network connection. Its context menu is switched off because some of
# its entries load further files from the network.
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}

autodoc_member_order = "bysource"
# Types are shown in the signature, one parameter per line where the signature is long.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
python_trailing_comma_in_multi_line_signatures = False
# A default value is shown as it is written in the source ("jnp.float32", not its repr).
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
# Environment suites that need not be installed to build the pages of their adapters.
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
napoleon_attr_annotations = False  # the signature has the types
napoleon_use_rtype = False

html_theme = "furo"
html_title = "ppo_jax"
html_static_path = ["_static"]
html_css_files = ["ppo_jax.css"]
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
