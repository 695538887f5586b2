"""Copies between this machine and a bucket, for what can only be read or written as local files.

An object appears under its name whole or not at all; a folder does not, so a folder that must be whole has one object
that is written last and names the others.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxmlic import distributed
from jaxmlic.errors import UserError
from jaxmlic.storage.files import read_json, reason, replacing, replacing_here, write_json
from jaxmlic.storage.paths import bucket_problem, filesystem, is_bucket, to_path

LISTING = ".files.json"  # what ends the name of the object that makes a folder of a Mirror whole
_BLOCK = 4 << 20


def cache_folder() -> Path:
    """Where copies of what lies in buckets are kept: $JAXMLIC_BUCKETS, else ~/.cache/jaxmlic/buckets."""
    return Path(os.environ.get("JAXMLIC_BUCKETS") or Path.home() / ".cache" / "jaxmlic" / "buckets")


def local_copy(path: str | os.PathLike) -> Path:
    """A local file with the content of `path`: the file itself, or a copy that is made once for each version of an
    object. UserError where there is none or it cannot be copied."""
    path = to_path(path)
    if not is_bucket(path):
        return path
    version = _versions(path).get("")
    if version is None:
        raise UserError(f"{os.fspath(path)}: no such object in the bucket")
    return _fetch(path, copy_place(path), version)


def fetch_folder(
    folder: str | os.PathLike,
    wanted: Callable[[str], bool] = lambda name: True,
    report: Callable[[int, int], None] = lambda done, total: None,
    *,
    prune: bool = True,
) -> Path:
    """A local folder with the wanted files of one in a bucket; each is copied once for each of its versions.

    Args:
      folder: gs://... or s3://...
      wanted: of a name inside the folder, with slashes.
      report: called with the bytes copied and the bytes to copy.
      prune: remove local files, of those wanted, that the bucket does not have.

    Raises:
      UserError: a file cannot be copied, or has another size than the bucket says.
    """
    folder = to_path(folder)
    local = copy_place(folder)
    there = {name: version for name, version in _versions(folder).items() if name and wanted(name)}
    missing = {name: version for name, version in there.items() if not _is_current(local / name, version)}
    done, total = 0, sum(version["size"] for version in missing.values())
    report(0, total)
    for name, version in missing.items():
        _fetch(folder / name, local / name, version)
        done += version["size"]
        report(done, total)
    for path in _files(local) if prune else ():
        name = path.relative_to(local).as_posix()
        if name not in there and wanted(name):
            path.unlink()
            _version_file(path).unlink(missing_ok=True)
    return local


def copy_place(path: str | os.PathLike) -> Path:
    """Where the copy of an object or folder of a bucket is kept."""
    return cache_folder() / os.fspath(path).replace("://", "/")


def send_folder(local: Path, folder: str | os.PathLike, last: str = "") -> None:
    """Copies a local folder's files into one of a bucket, `last` after all others. UserError where that fails.

    Files that lie at the bucket's `copy_place` count as copies from there on.
    """
    for path in sorted(_files(local), key=lambda path: path.relative_to(local).as_posix() == last):
        send_file(path, to_path(folder) / path.relative_to(local).as_posix())
    if local == copy_place(to_path(folder)):
        for name, version in _versions(to_path(folder)).items():
            if (local / name).is_file() and (local / name).stat().st_size == version["size"]:
                _note_version(local / name, version)


class Outbox:
    """A local folder that is filled here and copied into `folder` by `send`; a local folder is itself the one filled.

    `path` is where to write.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = to_path(folder)
        self._sent: dict[str, tuple[int, int]] = {}
        self.path = _scratch(self) if is_bucket(folder) else self._folder

    def send(self) -> None:
        """Copies the files that have changed; UserError where that fails."""
        if not is_bucket(self._folder):
            return
        for path in _files(self.path):
            name, stat = path.relative_to(self.path).as_posix(), path.stat()
            state = (stat.st_size, stat.st_mtime_ns)
            if self._sent.get(name) != state:
                send_file(path, self._folder / name)
                self._sent[name] = state


class Appender:
    """A text file that grows. In a bucket nothing can be appended to, so there the whole object is written again, by
    `flush`, and by `write` when the last time was `seconds` ago."""

    def __init__(self, path: str | os.PathLike, seconds: float = 10.0):
        self._path, self._seconds = to_path(path), seconds
        self._file = self._parts = None
        self._changed, self._flushed = False, time.monotonic()
        if is_bucket(path):
            self._parts = [self._path.read_text()] if self._path.exists() else []
        else:
            self._file = self._path.open("ab", buffering=0)  # nothing is left to write when it is closed

    def write(self, text: str) -> None:
        """Adds text; OSError or UserError where it cannot be written."""
        if self._file is not None:
            rest = text.encode()
            while rest:  # a disk that is nearly full takes a part
                rest = rest[self._file.write(rest) :]
            return
        self._parts.append(text)
        self._changed = True
        if time.monotonic() - self._flushed >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Everything written so far is in the file."""
        if self._changed:
            with replacing(self._path, "w") as file:
                file.write("".join(self._parts))
            self._changed, self._flushed = False, time.monotonic()

    def close(self) -> None:
        """Flushes and lets go."""
        self.flush()
        if self._file is not None:
            self._file.close()


class Mirror:
    """A local scratch folder for numbered subfolders of `folder` in a bucket, for a writer that knows local files.

    `push` copies the local subfolders that the bucket lacks, each before the object that lists its files, so that one
    is there whole or not at all; then it removes those that are not local any more. `pull` copies the whole ones here.
    The scratch folder, `path`, is removed with the object.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = to_path(folder)
        self.path = _scratch(self)

    def pull(self) -> None:
        """Copies what is whole in the bucket, without files that have another size than they were sent with."""
        for name, listed in self._whole().items():
            there = listing(self._folder / name)
            for file, size in read_json(listed).items():
                if there.get(file, {}).get("size") == size:
                    _fetch(self._folder / name / file, self.path / name / file, {"size": size}, keep_version=False)

    def push(self) -> None:
        """Makes the bucket's subfolders those that are here; UserError where that fails."""
        whole = self._whole()
        here = {path.name for path in self.path.iterdir() if path.name.isdigit()}
        for name in sorted(here - whole.keys(), key=int):
            send_folder(self.path / name, self._folder / name)
            files = {path.relative_to(self.path / name).as_posix(): path for path in _files(self.path / name)}
            sizes = {file: path.stat().st_size for file, path in files.items()}
            write_json(self._folder / f"{name}{LISTING}", sizes)
        self.forget(whole.keys() - here)
        for path in list(self._folder.iterdir()):
            if path.name.isdigit() and path.name not in here:
                path.rmtree(missing_ok=True)

    def forget(self, names: Iterable[str]) -> None:
        """Removes subfolders from the bucket: what is here under their names is copied by the next `push`."""
        for name in names:
            (self._folder / f"{name}{LISTING}").unlink(missing_ok=True)
            (self._folder / str(name)).rmtree(missing_ok=True)

    def _whole(self) -> dict[str, Path]:
        """{subfolder: the object that lists its files}."""
        found = self._folder.glob(f"*{LISTING}")
        return {path.name.removesuffix(LISTING): path for path in found if path.name.removesuffix(LISTING).isdigit()}


def _scratch(owner: object) -> Path:
    """A temporary folder that goes with its owner."""
    path = tempfile.mkdtemp(prefix="jaxmlic-")
    weakref.finalize(owner, shutil.rmtree, path, ignore_errors=True)
    return Path(path)


def _files(folder: Path) -> Iterator[Path]:
    """The files under a local folder, without those that note versions of copies."""
    found = sorted(folder.rglob("*")) if folder.is_dir() else []
    return (path for path in found if path.is_file() and not path.name.startswith(_VERSION))


def send_file(local: Path, path: Path) -> None:
    """Copies a local file into a bucket, of several processes the first one; UserError where that fails."""
    if not distributed.is_main():
        return
    try:
        filesystem(path).put_file(os.fspath(local), os.fspath(path))
    except Exception as error:
        raise UserError(f"{os.fspath(path)}: cannot be written ({bucket_problem(error) or reason(error)})") from None


def _fetch(path: Path, local: Path, version: dict[str, Any], keep_version: bool = True) -> Path:
    """A copy of an object at `local`, made unless the one there is of this version."""
    if keep_version and _is_current(local, version):
        return local
    try:
        source = filesystem(path).open(os.fspath(path), "rb", block_size=_BLOCK, cache_type="readahead")
        with source, replacing_here(local) as target:
            shutil.copyfileobj(source, target, _BLOCK)
            if target.tell() != version["size"]:
                raise UserError(f"{os.fspath(path)}: {target.tell()} of {version['size']} bytes came: try again")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{os.fspath(path)}: cannot be copied ({bucket_problem(error) or reason(error)})") from None
    if keep_version:
        _note_version(local, version)
    return local


_VERSION = ".version-"


def _version_file(local: Path) -> Path:
    return local.with_name(f"{_VERSION}{local.name}")


def _note_version(local: Path, version: dict[str, Any]) -> None:
    with replacing_here(_version_file(local), "w") as file:
        json.dump(version, file)


def _is_current(local: Path, version: dict[str, Any]) -> bool:
    try:
        same = json.loads(_version_file(local).read_text()) == version
        return same and local.stat().st_size == version["size"]
    except (OSError, ValueError):
        return False


def listing(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """{name inside the folder, with slashes: {"size": bytes, "digest": of its version}} of a bucket's objects."""
    return {name: version for name, version in _versions(to_path(folder)).items() if name}


def _versions(path: Path) -> dict[str, dict[str, Any]]:
    """As `listing`, with "" for the object at the path itself."""
    try:
        found = filesystem(path).find(os.fspath(path), detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise UserError(f"{os.fspath(path)}: cannot be listed ({bucket_problem(error) or reason(error)})") from None
    start = os.fspath(path).partition("://")[2].rstrip("/")
    marks = ("ETag", "etag", "generation", "md5Hash", "LastModified", "updated")
    versions = {}
    for name, info in found.items():
        text = json.dumps([str(info.get(mark)) for mark in marks])
        version = {"size": int(info["size"]), "digest": hashlib.sha256(text.encode()).hexdigest()[:16]}
        versions[name.removeprefix(start).lstrip("/")] = version
    return versions
