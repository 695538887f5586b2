"""The head of CONTRIBUTING.md, taken from the page, works in a copy of the package as the page says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmlic

ROOT = Path(jaxmlic.__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([^`\n]+\.py)`\n\n```python\n(.*?)^```$", PAGE, re.M | re.S))
COMMANDS = [line.split() for line in re.findall(r"^jaxmlic .*$", PAGE, re.M)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the package and its configs with the page's files in their places."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("jaxmlic", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        path = folder / name
        assert not path.exists(), name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def python(checkout, *arguments):
    """Output of `python ...` in the checkout; its package is found before the installed one."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_a_head_a_config_a_test_and_commands():
    assert set(FILES) == {
        "jaxmlic/models/heads/gated_mlp.py",
        "configs/gated_mlp.py",
        "tests/models/heads/gated_mlp_test.py",
    }
    assert [command[1] for command in COMMANDS] == ["data", "train", "evaluate", "plan"]


def test_the_head_trains_and_evaluates(checkout, data_dir):
    """The page's commands but for the data set, in one process, which spares three starts."""
    _, train, evaluate, plan = (command[1:] for command in COMMANDS)
    data = ["--config.data.name=tiny", f"--config.data.dir={data_dir}", "--config.data.image_size=16"]
    script = (
        "import ast, sys\n"
        "from jaxmlic.cli import main\n"
        "from jaxmlic.models.heads import gated_mlp\n"
        "print(gated_mlp.__file__)\n"
        "sys.exit(max(main.run(command) for command in ast.literal_eval(sys.argv[1])))"
    )
    shown = python(checkout, "-c", script, str([train + data, evaluate, plan + data]))
    assert Path(shown.splitlines()[0]).is_relative_to(checkout)
    assert "mAP" in shown and "parameters" in shown
    logged = (checkout / "runs" / "gated_mlp" / "metrics.jsonl").read_text(encoding="utf-8")
    assert "gate" in logged
    assert list((checkout / "runs" / "gated_mlp" / "scores").glob("test*.npz"))


def test_its_test_passes(checkout):
    path = "tests/models/heads/gated_mlp_test.py"
    assert "1 passed" in python(checkout, "-m", "pytest", "-c", str(ROOT / "setup.cfg"), "--rootdir=.", "-n0", path)


def test_its_files_have_the_style_of_the_house(checkout):
    for command in (["check"], ["format", "--check"]):
        python(checkout, "-m", "ruff", *command, "--no-cache", f"--config={ROOT / 'ruff.toml'}", *FILES)


def test_links_lead_to_files():
    prose = re.sub(r"^```.*?^```$", "", PAGE, flags=re.M | re.S)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", prose) if not link.startswith("http")]
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []
