"""The documentation's settings; `make docs` builds it."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))
# Pages that are executed run `jaxmlic` of this environment.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

from jaxmlic.version import __version__  # noqa: E402

project = "jaxmlic"
author = "The jaxmlic authors"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "repository",
    "docstrings",
    "links",
]
exclude_patterns = ["_build", "_extensions", "results/tables", "**/.ipynb_checkpoints"]
root_doc = "index"
highlight_language = "text"
suppress_warnings = ["myst-nb.lexer"]  # of cells that were not executed

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_fence_as_directive = ["math"]  # as GitHub has it
# Pages are executed once for each change of their text. Stored notebooks stay as they are: theirs took runs of hours.
nb_execution_mode = os.environ.get("JAXMLIC_DOCS_EXECUTION", "cache")
nb_execution_cache_path = str(HERE / "_build" / "executed")
nb_execution_excludepatterns = ["repository/notebooks/*"]
nb_execution_timeout = 1200
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "literal"
smartquotes = False  # shapes have dots, options have dashes
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"jaxmlic {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# No buttons to a page's source: some pages are copies of files that stand elsewhere.
html_theme_options = {"top_of_page_buttons": []}
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
