"""The repository's own pages in the site: links that work on GitHub lead to the same places here.

Pages outside docs/ (README.md, RESULTS.md, ...) are copied into docs/repository, which git ignores. A link to a page
that the site has leads to it, one to another file of the repository to that file on GitHub.
"""

import os
import re
import shutil
from pathlib import Path

SOURCES = "https://github.com/jaxmlic/jaxmlic"
# Page outside docs/ -> its place under docs/; those that are not there are left out.
PAGES = {
    "README.md": "repository/readme.md",
    "RESULTS.md": "repository/results.md",
    "CHANGELOG.md": "repository/changelog.md",
    "CONTRIBUTING.md": "repository/contributing.md",
    "launch/README.md": "repository/launching.md",
}
NOTEBOOKS = "repository/notebooks"
SUFFIXES = (".md", ".ipynb")
# Code, in which nothing is a link, or a link's target.
_PIECES = re.compile(
    r"(?P<code>^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)`*$|(?P<tick>`+)[^`\n]+?(?P=tick))|(?P<link>\]\((?P<target>[^)\s]+)\))",
    re.M | re.S,
)


def places(root: Path) -> dict[str, str]:
    """Path in the repository -> path under docs/ of each page that stands elsewhere and is there."""
    found = {source: page for source, page in PAGES.items() if (root / source).exists()}
    return found | {f"notebooks/{path.name}": f"{NOTEBOOKS}/{path.name}" for path in root.glob("notebooks/*.ipynb")}


def rewrite(text: str, source: str, page: str, root: Path) -> str:
    """The text of a page with the targets of its links changed to what they are in the site.

    In tables "64.6 ± 0.2" stays on one line.

    Args:
      text: Markdown.
      source: the page's path in the repository, which its links are relative to.
      page: its path under docs/.
      root: the repository.
    """
    elsewhere = places(root)

    def replace(match: re.Match) -> str:
        if match["code"]:
            return match[0]
        return f"]({target(match['target'])})"

    def target(link: str) -> str:
        name, mark, anchor = link.partition("#")
        if not name or re.match(r"[a-z]+:", link):
            return link
        path = os.path.normpath(os.path.join(os.path.dirname(source), name))
        if not (root / path).exists():
            return link  # the build says so
        if path in elsewhere:
            there = elsewhere[path]
        elif path.startswith("docs/") and (root / path).is_file():
            there = path.removeprefix("docs/")
        else:
            return f"{SOURCES}/{'tree' if (root / path).is_dir() else 'blob'}/main/{path}{mark}{anchor}"
        return os.path.relpath(there, os.path.dirname(page) or ".") + mark + anchor

    return re.sub(r"^\|.*", lambda row: row[0].replace(" ± ", "\u00a0±\u00a0"), _PIECES.sub(replace, text), flags=re.M)


def stage(root: Path) -> None:
    """Copies the pages that stand outside docs/ into docs/repository; a page that did not change is not written."""
    wanted = places(root)
    for source, page in wanted.items():
        path = root / "docs" / page
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            if not path.exists() or path.read_bytes() != (root / source).read_bytes():
                shutil.copyfile(root / source, path)
            continue
        text = rewrite((root / source).read_text(encoding="utf-8"), source, page, root)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in (root / "docs" / "repository").rglob("*.*"):
        if path.suffix in SUFFIXES and path.relative_to(root / "docs").as_posix() not in wanted.values():
            path.unlink()


def on_source_read(app, docname: str, source: list[str]) -> None:
    """Sphinx hands over each page's text in a list of one; pages of docs/repository were rewritten by `stage`."""
    path = Path(app.env.doc2path(docname))
    page = path.relative_to(app.srcdir).as_posix()
    if path.suffix == ".md" and not page.startswith("repository/"):
        source[0] = rewrite(source[0], f"docs/{page}", page, Path(app.srcdir).parent)


def setup(app) -> dict:
    """Registers the extension with Sphinx."""
    stage(Path(app.srcdir).parent)
    app.connect("source-read", on_source_read)
    return {"parallel_read_safe": True}
