"""Docstrings as reStructuredText: a star, a bar or an underscore in a sentence is that character, not markup."""

import re

# `code`, ``code``, a role or a reference, which stay as they are, or a character that would begin markup.
_PIECES = re.compile(r"(:\w+:`[^`]*`|``[^`]+``|`[^`]+`_*)|(\\?[*|])|(?<=\w)(_)(?=\W|$)")


def escape(line: str) -> str:
    """A line of a docstring without accidental markup."""
    return _PIECES.sub(lambda match: match[0] if match[1] or match[0].startswith("\\") else "\\" + match[0], line)


def on_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Changes the lines in place; indented literal blocks, equations and examples stay as they are."""
    literal = None  # indentation of the line that opened a block
    for number, line in enumerate(lines):
        indentation = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indentation <= literal:
            literal = None
        if literal is None and not line.lstrip().startswith((">>>", "...")):
            if line.rstrip().endswith("::") or line.lstrip().startswith(".. math::"):
                literal = indentation
            else:
                lines[number] = escape(line)


def setup(app) -> dict:
    """Registers the extension with Sphinx; before napoleon, whose own markup stays."""
    app.connect("autodoc-process-docstring", on_docstring, priority=100)
    return {"parallel_read_safe": True}
