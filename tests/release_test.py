"""What a release says of itself: one version, workflows of commands that exist, lower bounds that were tested."""

import configparser
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

import jaxmlic

ROOT = Path(jaxmlic.__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
REQUIREMENT = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?(>=|==)([\w.*]+)$")


def setup():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def requirements(text):
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_version_has_its_citation_and_its_changes():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "title", "message", "authors", "license"} <= set(cited)
    assert str(cited["version"]) == jaxmlic.__version__ and cited["license"] == setup()["metadata"]["license"]
    entry = f"\n## {jaxmlic.__version__} ({cited['date-released']})\n"
    assert entry in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert cited["repository-code"] == setup()["metadata"]["url"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_the_makefile_has(path):
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert all("timeout-minutes" in job for job in jobs.values())
    for line in lines:
        for target in re.findall(r"\bmake ([\w-]+)", line):
            assert target in known or f"grep -q '^{target}:' Makefile" in line, f"{path.name}: make {target}"
    assert any("make " in line for line in lines)


def test_pythons_of_the_workflows_are_those_of_the_classifiers():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    named = re.findall(r":: (3\.\d+)$", setup()["metadata"]["classifiers"], re.M)
    assert jobs["test"]["strategy"]["matrix"]["python"] == named == jobs["wheel"]["strategy"]["matrix"]["python"]
    assert setup()["options"]["python_requires"] == f">={named[0]}"


def test_every_dependency_has_a_lower_bound():
    config = setup()
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    assert [line for text in lists for line in requirements(text) if not REQUIREMENT.match(line)] == []


def test_lowest_versions_are_the_lower_bounds():
    """constraints/lowest.txt, which `make test-lowest` installs, pins what setup.cfg allows at least."""
    config = setup()
    pins = requirements((ROOT / "constraints" / "lowest.txt").read_text(encoding="utf-8"))
    found = {plain(name): version for name, _, version in (REQUIREMENT.match(line).groups() for line in pins)}

    def release(version):
        numbers = [int(part) for part in re.findall(r"\d+", version)]
        return numbers + [0] * (6 - len(numbers))

    for line in requirements(config["options"]["install_requires"] + config["options.extras_require"]["test"]):
        name, sign, bound = REQUIREMENT.match(line).groups()
        version, bound = release(found[plain(name)]), release(bound.removesuffix(".*"))
        # A bound may leave out the last numbers of the release that it means: 4.12 is 4.12.0.88.
        assert version[:3] == bound[:3] and version >= bound, f"{name}{sign}{bound}: {found[plain(name)]} is pinned"


def test_every_file_of_the_package_is_installed():
    data = {name: requirements(text.replace(",", "\n")) for name, text in setup()["options.package_data"].items()}
    left_out = []
    for path in (ROOT / "jaxmlic").rglob("*"):
        if path.is_dir() or path.suffix == ".py" or "__pycache__" in path.parts:
            continue
        name = path.relative_to(ROOT).as_posix()
        folders = {f"{package.replace('.', '/')}/": patterns for package, patterns in data.items()}
        inside = [
            (name.removeprefix(folder), patterns) for folder, patterns in folders.items() if name.startswith(folder)
        ]
        if not any(fnmatch(rest, p.strip()) and rest.count("/") == p.count("/") for rest, ps in inside for p in ps):
            left_out.append(name)
    assert left_out == []
