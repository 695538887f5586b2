"""The rules of the house that import-linter does not hold: who parses, who prints, how large, and who calls."""

import ast
import configparser
import functools
import json
import re
from pathlib import Path

import pytest

import jaxmlic

PACKAGE = Path(jaxmlic.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_FILES, MOST_LINES = 12, 350

# Public names that other tools rely on, and what the packages' doors offer beside them.
STAY = {
    *("load", "evaluate", "PROTOCOLS", "beam_search", "greedy", "rescore", "average_precision"),
    *("binary_cross_entropy", "weighted_cross_entropy", "asymmetric", "focal", "softmax_cross_entropy", "warp", "lsep"),
    *(
        "ramp",
        "rmlc",
        "cooccurrence",
        "adjacency",
        "improved_label_propagation",
        "diffusion",
        "Run",
        "label_embeddings",
    ),
}


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def notebook_tree(path):
    """Of a notebook's code, without its %magic lines."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines()]
    return ast.parse("\n".join(line for line in lines if not line.startswith("%")))


def room(path):
    """ "training/loop.py" -> "training"; "run.py" -> "run"."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_only_commands_parse_arguments():
    assert {room(path) for path in FILES if "argparse" in imported(path)} <= {"cli"}


def test_only_commands_progress_and_the_loop_print():
    def prints(path):
        calls = (node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))
        return any(isinstance(function, ast.Name) and function.id == "print" for function in calls)

    allowed = {PACKAGE / "progress.py", PACKAGE / "distributed" / "ending.py", PACKAGE / "training" / "loop.py"}
    assert [path for path in FILES if room(path) != "cli" and path not in allowed and prints(path)] == []


def test_only_inputs_read_the_source_of_the_data():
    def reads(path):
        return any(
            isinstance(node, ast.Attribute)
            and node.attr in ("source", "features_file")
            and (
                (isinstance(node.value, ast.Attribute) and node.value.attr == "data")
                or (isinstance(node.value, ast.Name) and node.value.id == "data")
            )
            for node in ast.walk(tree_of(path))
        )

    assert {room(path) for path in FILES if reads(path)} == {"inputs"}


def test_paths_of_users_go_through_storage():
    """`Path("gs://bucket/run")` would be a folder here; `storage.to_path` decides what a path is."""

    def makes(path):
        return any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "Path"
            and not (isinstance(node.args[0], ast.Name) and node.args[0].id == "__file__")
            for node in ast.walk(tree_of(path))
        )

    own = (
        "storage",
        "config.py",
        "cli/main.py",
        "provenance.py",
        "data/datasets.py",
        "data/division.py",
        "data/prepare",
        "cli/data/prepare.py",
    )
    own += ("cli/main.py", "provenance.py")  # the folder of compiled programs, and that of this package
    others = [path.relative_to(PACKAGE).as_posix() for path in FILES if makes(path)]
    # Their own folders and programs; sources of a preparation and lists of a split, which are on this machine.
    assert [name for name in others if not name.startswith((*own, "models/heads/contract.py"))] == []


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_folder_has_few_files(folder):
    assert len(list(folder.glob("*.py"))) <= MOST_FILES


def test_files_are_short():
    long = {path.name: n for path in [*FILES, *ROOT.glob("configs/*.py")] if (n := lines(path)) > MOST_LINES}
    assert long == {}


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_two_test_files_have_one_name():
    """pytest puts a file's folder on the path and imports the file by its bare name."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_public_name_has_a_caller():
    """A function, class or method that only tests reach is an option nobody has."""
    used = set()
    trees = [tree_of(path) for path in [*FILES, *ROOT.glob("configs/*.py"), *ROOT.glob("benchmarks/*.py")]]
    for tree in [*trees, *map(notebook_tree, ROOT.glob("notebooks/*.ipynb"))]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                used.add(node.value)  # getattr, setattr, method="step"
    idle = {
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in FILES
        for node in tree_of(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and node.name not in used | STAY
    }
    assert idle == set()


def test_shared_rooms_know_no_head_by_name():
    heads = [
        path for path in (PACKAGE / "models" / "heads").rglob("*.py") if not path.name.startswith(("_", "contract"))
    ]
    names = {path.stem for path in heads} - {"linear", "path", "plain", "positions"}
    for path in FILES:
        if room(path) in ("training", "inputs", "evaluation", "reports", "run"):
            text = path.read_text(encoding="utf-8")
            assert not [name for name in names if re.search(rf"\b{name}\b", text)], path


def test_every_package_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(config["options"]["packages"].split())
    assert listed == {".".join(path.parent.relative_to(ROOT).parts) for path in FILES} | {"jaxmlic.configs"}
