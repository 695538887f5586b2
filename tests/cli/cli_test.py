"""The command line: help, exit statuses, both ways to start a command."""

import os
import subprocess
import sys

import pytest

from jaxmlic import __version__
from jaxmlic.cli import main as cli
from jaxmlic.errors import UserError


def test_every_command_has_help(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            cli.run([name, "--help"])
        assert stopped.value.code == 0
        assert f"jaxmlic {name}" in capsys.readouterr().out


def test_overview_and_version(capsys):
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert cli.run([]) == 2
    capsys.readouterr()
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian' (did you mean 'train'?)"),
        (["train"], "train: the following arguments are required: --config, --workdir; see jaxmlic train --help"),
        (["train", "--config=quickstart", "--workdir=x", "stray"], "cannot read 'stray'"),
        (
            ["train", "--config=quickstart", "--workdir=x", "--profile=5:2"],
            "--profile=5:2: it is a number of steps, or",
        ),
        (["evaluate", "--workdir=nowhere"], "nowhere/config.json does not exist"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(argv, message, capsys):
    assert cli.run(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("jaxmlic: ") and message in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


def test_mistakes_are_folded_into_one_line():
    assert str(UserError("two\nlines  here")) == "two lines here"


@pytest.mark.parametrize("command", ["train", "data"])
def test_commands_start_as_a_module(command):
    done = subprocess.run([sys.executable, "-m", "jaxmlic", command, "--nonsense"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("jaxmlic: "), done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_reports_to_a_closed_event_loop_are_not_shown():
    """After a failed save the storage library's threads report to a closed loop; other errors stay visible."""
    script = """
import sys
from jaxmlic.cli import main as cli
cli.quiet_libraries()
class Report:
    def __init__(self, error): self.error = error
    def __del__(self): raise self.error
Report(RuntimeError("Event loop is closed"))
Report(RuntimeError("something else"))
sys.excepthook(RuntimeError, RuntimeError("Event loop is closed"), None)
sys.excepthook(RuntimeError, RuntimeError("another thing"), None)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Event loop is closed" not in done.stderr
    assert "something else" in done.stderr and "another thing" in done.stderr


def test_compiled_programs_are_kept_in_the_home_folder(monkeypatch, tmp_path):
    """Only by the environment that JAX reads later: nothing is made before there is a program."""
    variables = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "JAXMLIC_COMPILATION_CACHE")

    def environment(**given):
        for name in variables:
            monkeypatch.setenv(name, "")  # so that what is set below is undone
            monkeypatch.delenv(name)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        cli.keep_compiled_programs()
        return {name: os.environ[name] for name in variables if name in os.environ}

    monkeypatch.setenv("HOME", str(tmp_path))
    folder = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / ".cache/jaxmlic/xla")}
    assert environment() == folder
    assert environment(JAX_COMPILATION_CACHE_DIR="mine") == {"JAX_COMPILATION_CACHE_DIR": "mine"}
    off = environment(JAXMLIC_COMPILATION_CACHE="off")
    assert off == {"JAXMLIC_COMPILATION_CACHE": "off", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "access", lambda *_: False)  # a home that cannot be written
    assert environment() == {}
