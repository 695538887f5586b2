"""A data set's folder appears under its name only when it is complete, and an old one stays until then."""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxmlic.data.datasets import VERSION
from jaxmlic.errors import UserError
from jaxmlic.storage import reason, write_json

_REPLACED = ".replaced"


def refuse_existing(name: str, data_dir: Path, overwrite: bool) -> None:
    """UserError when something stands in the place of a new data set that must not be replaced."""
    if not (name.isascii() and name.isidentifier() and name[0] != "_"):
        raise UserError(f"{name!r} cannot name a data set: use letters, digits and underscores, a letter first")
    target = data_dir / name
    if not target.exists():
        return
    foreign = sorted({path.name for path in target.iterdir()} - {VERSION}) if target.is_dir() else [name]
    if foreign:
        raise UserError(
            f"{target} is there already and is not a prepared data set (it holds {foreign[0]!r}): "
            "choose another name or --data-dir"
        )
    if not overwrite and any(target.iterdir()):
        raise UserError(
            f"{name!r} is already prepared, from another source or with other options, in {target}: "
            "add --overwrite to replace it, or choose another name"
        )


def clear(folder: Path) -> None:
    """Removes a data set's folder in a bucket; it is no data set from the first moment on."""
    (folder / "jaxmlic.json").unlink(missing_ok=True)
    if folder.exists():
        folder.rmtree(missing_ok=True)


@dataclass(frozen=True)
class ShardEntry:
    """A complete shard: records, bytes, and the (file, line, why) of what was left out before its last record."""

    count: int
    num_bytes: int
    left_out: list[list]


class Journal:
    """Which shards of a data set in the making are complete; kept on disk after each."""

    def __init__(self, path: Path | None, key: str):
        self.path = path
        self._key = key
        self._splits: dict[str, list[ShardEntry]] = {}

    @classmethod
    def read(cls, path: Path, key: str) -> "Journal | None":
        """The journal at `path` if it has the same key, else None."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] != key:
                return None
            journal = cls(path, key)
            journal._splits = {
                split: [ShardEntry(**entry) for entry in entries] for split, entries in stored["splits"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return journal

    def shards(self, split: str) -> list[ShardEntry]:
        """The complete shards of a split."""
        return list(self._splits.get(split, []))

    def count(self) -> int:
        """Records in complete shards."""
        return sum(shard.count for shards in self._splits.values() for shard in shards)

    def enter(self, split: str, shards: list[ShardEntry]) -> None:
        """Store that these shards of a split are complete."""
        self._splits[split] = list(shards)
        entries = {split: [asdict(shard) for shard in shards] for split, shards in self._splits.items()}
        write_json(self.path, {"key": self._key, "splits": entries})


@contextlib.contextmanager
def staged(name: str, data_dir: Path, overwrite: bool, resume: str | None = None) -> Iterator[tuple[Path, Journal]]:
    """A temporary sibling folder that takes the data set's place when the block ends well, and its journal.

    When the block does not end well the folder goes, except that with `resume` it stays when a full disk or Ctrl-C
    stopped it; the next call with the same key continues it, as it does what a killed process left.
    """
    stem = f".{name}.partial-{socket.gethostname()}-"
    staging, target = data_dir / f"{stem}{os.getpid()}", data_dir / name
    replaced = staging.with_name(staging.name + _REPLACED)
    folder = staging / name / VERSION
    journal = Journal(None, "") if resume is None else Journal(folder / "journal.json", resume)
    kept = False
    try:
        journal = _recover(target, stem, journal, staging)
        refuse_existing(name, data_dir, overwrite)
        data_dir.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder, journal
        refuse_existing(name, data_dir, overwrite)
        if target.exists():
            target.rename(replaced)
        (staging / name).rename(target)
    except (OSError, RuntimeError, ValueError, UserError) as error:
        # RuntimeError and ValueError are what the ArrayRecord writer raises when the disk is full, UserError storage.
        if not isinstance(error, OSError) and "No space left" not in str(error):
            raise
        kept = journal.path is not None and journal.count() > 0
        again = f"; the same command goes on after the first {journal.count():,} images" if kept else ""
        raise UserError(f"{data_dir}: cannot write the data set {name!r} ({_reason(error)}){again}") from None
    except KeyboardInterrupt:
        kept = journal.path is not None and journal.count() > 0
        raise
    finally:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        for leftover in (replaced,) if kept else (staging, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def _recover(target: Path, stem: str, journal: Journal, staging: Path) -> Journal:
    """Remove what stopped runs of this machine left, or continue it when it was made with the same key.

    A run killed between two renames left the old data set under another name; it gets its own back.
    """
    for leftover in sorted(target.parent.glob(f"{stem}*")):
        pid = leftover.name.removeprefix(stem).removesuffix(_REPLACED)
        if _is_running(pid) and pid != str(os.getpid()):
            continue
        if leftover.name.endswith(_REPLACED):
            if target.exists():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.rename(target)
            continue
        relative = None if journal.path is None else journal.path.relative_to(staging)
        found = None if relative is None else Journal.read(leftover / relative, journal._key)
        if found is None or journal.count():
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        if leftover != staging:
            shutil.rmtree(staging, ignore_errors=True)
            leftover.rename(staging)
        found.path = journal.path
        journal = found
    return journal


def _reason(error: Exception) -> str:
    if "No space left" in str(error):
        return "no space left on device: free some, or give another --data-dir"
    return reason(error)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
