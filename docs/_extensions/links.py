"""Dead links within the built site are warnings, and with `make docs` errors: each page and anchor has to be there."""

import html.parser
import urllib.parse
from pathlib import Path

from sphinx.util import logging

# Pages that Sphinx makes: their links come from pages that are checked.
MADE = ("genindex.html", "py-modindex.html", "search.html")


class _Page(html.parser.HTMLParser):
    """The targets of a page's links and pictures, and the anchors that it has."""

    def __init__(self):
        super().__init__()
        self.targets, self.anchors = set(), set()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        self.targets |= {attributes[name] for name in ("href", "src") if attributes.get(name)}


def dead(folder: Path) -> list[str]:
    """A line for each link between the pages of a built site that leads nowhere."""
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        pages[path] = page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
    found = []
    for path, page in pages.items():
        for target in sorted(page.targets) if path.name not in MADE else ():
            parts = urllib.parse.urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            anchor = urllib.parse.unquote(parts.fragment)
            if not there.exists() or (anchor and there in pages and anchor not in pages[there].anchors):
                found.append(f"{path.relative_to(folder)}: {target} leads nowhere")
    return found


def on_build_finished(app, error: Exception | None) -> None:
    """Warns of dead links in built HTML."""
    if error is None and app.builder.name == "html":
        for line in dead(Path(app.outdir).resolve()):
            logging.getLogger(__name__).warning(line)


def setup(app) -> dict:
    """Registers the extension with Sphinx."""
    app.connect("build-finished", on_build_finished)
    return {"parallel_read_safe": True}
