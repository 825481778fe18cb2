"""Configuration of the documentation: `make docs` builds it into docs/_build/html, and any warning is an error."""

project = "hrnet_fast"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_copy_source = False
add_module_names = False  # the pages say where a name is from
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
myst_heading_anchors = 3
html_show_copyright = False
