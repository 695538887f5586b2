"""Commands shown in the documentation parse, their configs load, and what is named in them is there."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

import jaxmlic
from jaxmlic import config as config_lib
from jaxmlic import papers
from jaxmlic.cli import main as cli
from jaxmlic.cli import parser as parsers
from jaxmlic.experiments import sweep

ROOT = Path(jaxmlic.__file__).parents[1]
# Copies, and pages whose commands come from the code that runs them (tests/experiments/reproduce_test.py).
GENERATED = ("_build", "repository", "papers")
PAGES = [ROOT / "README.md", ROOT / "launch" / "README.md"]
PAGES += [path for path in sorted(ROOT.glob("docs/**/*.md")) if path.relative_to(ROOT).parts[1] not in GENERATED]
# Fenced, or indented after an empty line.
BLOCKS = re.compile(r"^(?:```|~~~)[^\n]*\n(.*?)^(?:```|~~~)$|(?<=\n\n)((?: {4}[^\n]*\n)+)", re.M | re.S)
COMMAND = re.compile(r"^\s*(?:\$ )?(?:\S*/|%)?jaxmlic (.*)$")
SHELL = {"2>&1", "||", "&&", "|", ">", ";", "&"}
# What a reader fills in, or a page leaves out; heads.py is a file that docs/pods.md shows.
OPEN = re.compile(r"\.\.\.|^(FILE|D|heads\.py)\b|\[|DIR")
# A number of a seed, part or process, a row and a loss's option, for which values are put in.
VALUES = {r"(?<==)[IPS](?=$|,)": "0", "ROW": "rml_cnn", "LEAK": "0.1"}


class Parsed(Exception):
    """What a command would have run with."""


def commands(page):
    """The arguments of each command in a page's blocks, continued lines joined, comments and pipes left out."""
    for fenced, indented in BLOCKS.findall(page.read_text(encoding="utf-8")):
        for line in re.sub(r"\\\n\s*", " ", fenced or indented).splitlines():
            if found := COMMAND.match(line):
                words = shlex.split(found[1], comments=True)
                for name, value in VALUES.items():
                    words = [re.sub(name, value, word) for word in words]
                yield words[: next((i for i, word in enumerate(words) if word in SHELL), len(words))]


@pytest.fixture
def only_parsed(monkeypatch):
    """Commands stop once their line is read: Parsed(options, config fields)."""

    def read(self, args=None, namespace=None):
        options, rest = argparse.ArgumentParser.parse_known_args(self, args, namespace)
        if len(self.prog.split()) > 2:  # of `jaxmlic data NAME`, whose parser is told of the rest
            return options, rest
        raise Parsed(options, rest)

    def read_all(self, args=None, namespace=None):
        try:
            read(self, args, namespace)
        except Parsed as parsed:
            _, rest = parsed.args
            assert rest == [], f"{self.prog} has no options {rest}"
            raise

    monkeypatch.setattr(parsers.Parser, "parse_known_args", read)
    monkeypatch.setattr(parsers.Parser, "parse_args", read_all)


def check(words):
    """AssertionError or UserError for a command that could not start."""
    assert words[0] in cli.COMMANDS
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(cli.COMMANDS[words[0]][0]).main(words[1:])
    options, fields = parsed.value.args
    assert [text for text in fields if not text.startswith("--config.")] == []
    spec = getattr(options, "config", None)
    if spec and not OPEN.search(spec):
        config_lib.load(spec, [text for text in fields if not OPEN.search(text)])
        if getattr(options, "only", None) and "..." not in options.only:
            sweep.entries(spec, options.only.split(","))
    if words[0] == "reproduce" and options.target and not OPEN.search(options.target) and options.target.islower():
        papers.load(options.target.partition("/")[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_of_a_page_parse(page, only_parsed, monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = []
    for words in commands(page):
        if words[0] in ("<command>", "...") or words in (["--help"], []):
            continue
        try:
            check(words)
        except (Exception, pytest.fail.Exception) as error:
            wrong.append(f"jaxmlic {' '.join(words)}: {error}")
    assert wrong == []


def test_a_wrong_command_is_found(only_parsed):
    for line in (
        "train --config=quickstart --workdir=x --config.optim.rate=1",
        "train --config=quikstart --workdir=x",
        "evaluate --workdir=x --protokol=all_point",
        "sweep --config=quickstart --workdir=x --only=nothing",
        "data prepare scenes --sources=x",
    ):
        with pytest.raises((Exception, pytest.fail.Exception)):
            check(line.split())


def test_fields_named_in_the_guides_exist():
    """`--config.optim.lr=0.1` and `optim.lr` in running text, of any shipped experiment."""
    known = set()
    specs = ("quickstart", "linear", "cnn_rnn", "multi_order_rnn", "mscnn_lce_mic", "baseline_ensemble", "kernel_ridge")
    specs += ("cnn_lstm_rmlc:head=positions", "cnn_lstm_rmlc:head=path", "multi_order_rnn:method=mo_rare_first")
    for spec in specs:
        known |= set(config_lib.flatten(config_lib.load(spec)))
    sections = {name.partition(".")[0] for name in known if "." in name}
    pattern = re.compile(rf"(?:--config\.|`)((?:{'|'.join(sections)})\.[a-z_]+)(?=[=`\s])")
    for folder in ("start", "choosing", "methods"):
        for page in sorted((ROOT / "docs" / folder).glob("*.md")):
            named = set(pattern.findall(page.read_text(encoding="utf-8")))
            assert named <= known, (page.name, named - known)
