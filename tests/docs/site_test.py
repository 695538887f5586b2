"""Links that work on GitHub are rewritten to the same places in the site; dead ones are found."""

import importlib.util
from pathlib import Path

import pytest

import jaxmlic

ROOT = Path(jaxmlic.__file__).parents[1]


def extension(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "_extensions" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path):
    for name in (
        "README.md",
        "docs/pods.md",
        "docs/results/a.md",
        "docs/label.png",
        "configs/x.py",
        "notebooks/n.ipynb",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "page", "target", "expected"),
    [
        ("docs/pods.md", "pods.md", "results/a.md#kills", "results/a.md#kills"),
        ("docs/pods.md", "pods.md", "../README.md#set-up", "repository/readme.md#set-up"),
        ("docs/results/a.md", "results/a.md", "../../README.md", "../repository/readme.md"),
        ("docs/results/a.md", "results/a.md", "../label.png", "../label.png"),
        ("docs/pods.md", "pods.md", "../notebooks/n.ipynb", "repository/notebooks/n.ipynb"),
        ("docs/pods.md", "pods.md", "../configs/x.py", "SOURCES/blob/main/configs/x.py"),
        ("docs/pods.md", "pods.md", "../configs", "SOURCES/tree/main/configs"),
        ("docs/pods.md", "pods.md", "https://example.org/a.md", "https://example.org/a.md"),
        ("docs/pods.md", "pods.md", "#here", "#here"),
        ("docs/pods.md", "pods.md", "absent.md", "absent.md"),
        ("README.md", "repository/readme.md", "docs/pods.md#a", "../pods.md#a"),
        ("README.md", "repository/readme.md", "docs/label.png", "../label.png"),
        ("README.md", "repository/readme.md", "docs/results", "SOURCES/tree/main/docs/results"),
    ],
)
def test_links_lead_to_the_same_place(root, source, page, target, expected):
    repository = extension("repository")
    text = f"A [link]({target}), `[code]({target})`\n\n```\n[block]({target})\n```\n\n![again]({target})\n"
    wanted = expected.replace("SOURCES", repository.SOURCES)
    found = repository.rewrite(text, source, page, root)
    assert found == text.replace(f"[link]({target})", f"[link]({wanted})").replace(
        f"again]({target})", f"again]({wanted})"
    )


def test_pages_outside_docs_are_copied_and_those_that_went_are_removed(root):
    repository = extension("repository")
    (root / "README.md").write_text("[pods](docs/pods.md)", encoding="utf-8")
    repository.stage(root)
    readme = root / "docs" / "repository" / "readme.md"
    assert readme.read_text(encoding="utf-8") == "[pods](../pods.md)"
    before = readme.stat().st_mtime_ns
    repository.stage(root)
    assert readme.stat().st_mtime_ns == before  # Sphinx reads again what is newer
    (root / "notebooks" / "n.ipynb").unlink()
    repository.stage(root)
    assert [path.name for path in (root / "docs" / "repository").rglob("*.*")] == ["readme.md"]


def test_a_mean_stays_beside_its_deviation(root):
    repository = extension("repository")
    found = repository.rewrite("1 ± 2\n\n| a ± b | 64.6 ± 0.2 |", "docs/pods.md", "pods.md", root)
    assert found == "1 ± 2\n\n| a\u00a0±\u00a0b | 64.6\u00a0±\u00a00.2 |"


def test_docstrings_keep_code_and_equations():
    docstrings = extension("docstrings")
    lines = [
        "a * b | c_ and `x * y`",
        "",
        ".. math:: a * b",
        "   c | d",
        "",
        ">>> a * b",
        "Example::",
        "",
        "    a * b",
        "x*",
    ]
    docstrings.on_docstring(None, "", "", None, None, lines)
    assert lines == [r"a \* b \| c\_ and `x * y`", *lines[1:-1], r"x\*"]
    assert lines[2:4] == [".. math:: a * b", "   c | d"] and lines[8] == "    a * b"


def test_dead_links_of_a_built_site(tmp_path):
    pytest.importorskip("sphinx")
    links = extension("links")
    (tmp_path / "a").mkdir()
    (tmp_path / "index.html").write_text('<a href="a/b.html#x">1</a><a href="a/b.html#z">2</a><img src="no.png">')
    (tmp_path / "a" / "b.html").write_text('<h1 id="x"></h1><a href="../index.html">1</a><a href="https://x.y">2</a>')
    assert links.dead(tmp_path) == [
        "index.html: a/b.html#z leads nowhere",
        "index.html: no.png leads nowhere",
    ]
