"""A data set's folder appears under its name only when it is complete, and an old one stays until then."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from jaxmlic.errors import UserError

VERSION = "1.0.0"
_REPLACED = ".replaced"


def refuse_existing(name: str, data_dir: Path, overwrite: bool) -> None:
    """UserError when something stands in the place of a new data set that must not be replaced."""
    if not (name.isascii() and name.isidentifier() and name[0] != "_"):
        raise UserError(f"{name!r} cannot name a data set: use letters, digits and underscores, a letter first")
    target = data_dir / name
    if not target.exists():
        return
    strangers = sorted(set(os.listdir(target)) - {VERSION}) if target.is_dir() else [name]
    if strangers:
        raise UserError(
            f"{target} is there already and is not a prepared data set (it holds {strangers[0]!r}): "
            "choose another name or --data-dir"
        )
    if not overwrite and any(target.iterdir()):
        raise UserError(
            f"{name!r} is already prepared, from another source or with other options, in {target}: "
            "add --overwrite to replace it, or choose another name"
        )


@contextlib.contextmanager
def staged(name: str, data_dir: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling folder that takes the data set's place when the block ends well, and goes otherwise."""
    stem = f".{name}.partial-{socket.gethostname()}-"
    staging, target = data_dir / f"{stem}{os.getpid()}", data_dir / name
    replaced = staging.with_name(staging.name + _REPLACED)
    _clear_leftovers(target, stem)
    refuse_existing(name, data_dir, overwrite)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        folder = staging / name / VERSION
        folder.mkdir(parents=True)
        yield folder
        refuse_existing(name, data_dir, overwrite)
        if target.exists():
            target.rename(replaced)
        (staging / name).rename(target)
    except OSError as error:
        raise UserError(f"{data_dir}: cannot write the data set {name!r} ({_reason(error)})") from None
    except (RuntimeError, ValueError) as error:  # what the ArrayRecord writer raises when the disk is full
        if "No space left" not in str(error):
            raise
        raise UserError(f"{data_dir}: cannot write the data set {name!r} ({_reason(error)})") from None
    finally:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        for folder in (staging, replaced):
            shutil.rmtree(folder, ignore_errors=True)


def _clear_leftovers(target: Path, stem: str) -> None:
    """Undo what runs of this machine left that were killed; one killed between two renames left the old data set."""
    for leftover in target.parent.glob(f"{stem}*"):
        if _is_running(leftover.name.removeprefix(stem).removesuffix(_REPLACED)):
            continue
        if leftover.name.endswith(_REPLACED) and not target.exists():
            leftover.rename(target)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _reason(error: Exception) -> str:
    if "No space left" in str(error):
        return "no space left on device: free some, or give another --data-dir"
    return getattr(error, "strerror", None) or str(error)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
