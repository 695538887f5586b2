"""Where a run came from: command, versions, commit, devices and time."""

import datetime
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax

from jaxmlic.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def start(step: int) -> dict:
    """A start or continuation of training from `step`: time (UTC), host, devices, number of hosts, command, versions of
    packages, and the commit."""
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "host": platform.node(),
        "hosts": jax.process_count(),
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind, "number": len(devices)},
        "command": command(),
        "versions": versions(),
        "commit": commit(),
    }


def command() -> str:
    """The command line, as a shell reads it."""
    program = Path(sys.argv[0] or "python").name
    return shlex.join(["jaxmlic" if program in ("jaxmlic", "__main__.py") else program, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Of Python, this package and those that decide what it computes."""
    found = {"python": platform.python_version(), "jaxmlic": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # vendored or built in place
            found[package] = "unknown"
    return found


def commit() -> str | None:
    """Of the checkout that this package is in, with "-dirty" where tracked files were changed; None without one."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return None
    head, changed = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if head is None else head + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
