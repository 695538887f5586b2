"""The files of folders and archives under one set of names, read without extracting anything.

Archives come from the internet: a member whose name or link leads out of the archive is refused, and nothing is ever
written to a place that an archive names.
"""

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmlic import storage
from jaxmlic.data.prepare.sources.archives import ARCHIVE_SUFFIXES, DAMAGE, Tar, Zip, inside, verify
from jaxmlic.errors import UserError


@dataclass(frozen=True)
class LocalFile:
    """A file on disk."""

    path: str
    by_range = True  # whether `read_range` is to be had

    @property
    def size(self) -> int:
        """Bytes; OSError."""
        return os.stat(self.path).st_size

    def read(self) -> bytes:
        """Its bytes; OSError."""
        return Path(self.path).read_bytes()

    def read_range(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on (fewer at the end); OSError."""
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def state(self) -> list:
        """What changes when the file does: size and time; [] when it is gone."""
        try:
            found = os.stat(self.path)
        except OSError:
            return []
        return [found.st_size, found.st_mtime_ns]


@dataclass(frozen=True)
class BucketFile:
    """An object in a bucket; `version` is a text that changes when it does."""

    path: str
    size: int
    version: str

    def read(self) -> bytes:
        """Its bytes; OSError."""
        try:
            return storage.to_path(self.path).read_bytes()
        except Exception as error:
            raise OSError(0, storage.bucket_problem(error) or storage.reason(error)) from None

    def state(self) -> list:
        """What changes when the object does."""
        return [self.size, self.version]


@dataclass(frozen=True)
class Member:
    """A file inside an archive."""

    archive: "Tar | Zip"
    name: str
    size: int

    def read(self) -> bytes:
        """Its bytes, safe from several threads; OSError when the archive is damaged there."""
        try:
            return self.archive.read(self.name)
        except DAMAGE as error:
            why = str(error) or type(error).__name__
            raise OSError(0, f"damaged in {self.archive.path.name}: {why}") from None

    @property
    def by_range(self) -> bool:
        """Whether `read_range` is to be had: from tars only, a zip would be inflated from its start."""
        return isinstance(self.archive, Tar)

    def read_range(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on (fewer at the end)."""
        return self.archive.read_range(self.name, offset, size)

    def state(self) -> list:
        """What changes when the archive does."""
        return [self.name, self.size, *self.archive.state]


@dataclass(frozen=True)
class Pixels:
    """An image that its owner stores as plain pixels, uint8 [H, W, 3] RGB; it is read as PNG."""

    pixels: np.ndarray

    def read(self) -> bytes:
        """PNG bytes."""
        import cv2

        return cv2.imencode(".png", self.pixels[:, :, ::-1])[1].tobytes()

    def state(self) -> list:
        """A hash of the pixels."""
        return [hashlib.sha256(np.ascontiguousarray(self.pixels)).hexdigest()]


@dataclass(frozen=True)
class StoredPixels:
    """As `Pixels`, but still inside a large file: uint8 of `shape` from byte `offset` on, read when it is asked for.

    `axes` are the stored axes in the order H, W, C.
    """

    file: LocalFile | Member
    offset: int
    shape: tuple[int, int, int]
    axes: tuple[int, int, int]

    def read(self) -> bytes:
        """PNG bytes; OSError."""
        data = self.file.read_range(self.offset, math.prod(self.shape))
        if len(data) != math.prod(self.shape):
            raise OSError(0, "unexpected end of the file it is stored in")
        return Pixels(np.frombuffer(data, np.uint8).reshape(self.shape).transpose(self.axes)).read()

    def state(self) -> list:
        """What changes when the large file does, and the place in it."""
        return [self.offset, *self.file.state()]


File = LocalFile | BucketFile | Member | Pixels | StoredPixels


class Files:
    """Every file of some folders and archives: `files[name]` is a `File`, `files.names` the sorted names.

    A name is the path inside the folder or archive, with slashes. Archives that lie directly in a folder are opened
    too. The same name may occur twice (a folder beside the archive it came from) if the contents are equal.
    """

    def __init__(self, sources: Sequence[str | os.PathLike], scratch: Path | None = None, checksums: bool = True):
        """Open and list everything.

        Args:
          sources: folders and archives (.tar, .tar.gz, .tgz, .tar.xz, .tar.bz2, .zip).
          scratch: where compressed tars are decompressed to (temporary files without a name; the system's folder if
            None).
          checksums: compare archives that have a published checksum with it.

        Raises:
          UserError: nothing there, a truncated or foreign archive, one that differs from its published checksum, names
            or links that lead out, one name with two contents.
        """
        self._files: dict[str, File] = {}
        self._open = contextlib.ExitStack()
        self._origin: dict[str, Path] = {}
        self.sources = [Path(source).expanduser() for source in sources]
        try:
            for source in self.sources:
                if source.is_dir():
                    self._add_folder(source, scratch, checksums)
                elif source.is_file() and source.name.lower().endswith(ARCHIVE_SUFFIXES):
                    self._add_archive(source, scratch, checksums)
                elif source.is_file():
                    raise UserError(f"{source}: not an archive ({', '.join(ARCHIVE_SUFFIXES)})")
                else:
                    raise UserError(f"{source}: no such file or folder: --source names a folder or an archive")
        except BaseException:
            self._open.close()
            raise
        self.names = sorted(self._files)
        self._by_base: dict[str, list[str]] = {}
        for name in self.names:
            self._by_base.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_) -> None:
        self._open.close()

    def __getitem__(self, name: str) -> File:
        return self._files[name]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __str__(self) -> str:
        return " and ".join(map(str, self.sources))

    def read(self, name: str) -> bytes:
        """The bytes of a file that has to be there; UserError when it cannot be read."""
        try:
            return self._files[name].read()
        except OSError as error:
            raise UserError(f"{self._origin[name]}: {name} cannot be read ({error.strerror})") from None

    def text(self, name: str) -> str:
        """The text of a file: UTF-8 without byte order mark, line ends as they are; UserError with the line."""
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise UserError(f"{name}:{line}: not UTF-8 ({error.reason}): is it the owner's file?") from None

    def ending(self, tail: str) -> list[str]:
        """Names that are `tail` or end in `/tail`, sorted."""
        same_base = self._by_base.get(tail.rsplit("/", 1)[-1], [])
        return [name for name in same_base if name == tail or name.endswith("/" + tail)]

    def one(self, tail: str, what: str) -> str:
        """The one name that ends in `tail`; UserError when there is none or several. `what` is for messages."""
        found = self.ending(tail)
        if not found:
            raise UserError(f"{self}: no {tail} there ({what}): give the folder or the archives that hold it")
        if len(found) > 1:
            raise UserError(f"{self}: {tail} is there twice, as {found[0]} and {found[1]}: give --source only one")
        return found[0]

    def _add_folder(self, folder: Path, scratch: Path | None, checksums: bool) -> None:
        root = os.path.realpath(folder)

        def fail(error: OSError):
            raise UserError(f"{error.filename}: cannot be listed ({error.strerror})")

        for place, folders, names in os.walk(folder, onerror=fail):
            for name in sorted(folders) + sorted(names):
                path = os.path.join(place, name)
                if not os.path.islink(path):
                    continue
                target = os.path.realpath(path)
                if target != root and not target.startswith(root + os.sep):
                    raise UserError(
                        f"{path}: a link out of the folder, to {target}: give that place as another --source, or "
                        "remove the link"
                    )
            for name in sorted(names):
                path = os.path.join(place, name)
                if place == str(folder) and name.lower().endswith(ARCHIVE_SUFFIXES):
                    self._add_archive(Path(path), scratch, checksums)
                elif os.path.isfile(path) or not os.path.exists(path):  # a link to nothing is reported when it is read
                    relative = os.path.relpath(path, folder).replace(os.sep, "/")
                    self._add(relative, LocalFile(path), folder)

    def _add_archive(self, path: Path, scratch: Path | None, checksums: bool) -> None:
        try:
            if checksums:
                verify(path)
            archive = self._open.enter_context(Zip(path) if path.suffix.lower() == ".zip" else Tar(path, scratch))
        except (*DAMAGE, OSError) as error:
            raise UserError(
                f"{path}: truncated or not an archive of its kind ({str(error) or type(error).__name__}): download it "
                "again"
            ) from None
        for name, size in archive.members():
            self._add(inside(name, path), Member(archive, name, size), path)

    def _add(self, name: str, file: File, origin: Path) -> None:
        try:
            differs = name in self._files and not _same(self._files[name], file)
        except OSError as error:
            raise UserError(f"{origin}: {name} is there twice and cannot be compared ({error.strerror})") from None
        if differs:
            raise UserError(
                f"{origin}: {name} is in {self._origin[name]} too, with another content: give --source only one of them"
                if origin != self._origin[name]
                else f"{origin}: {name} is in it twice, with different contents: download it again"
            )
        if name not in self._files:
            self._files[name] = file
            self._origin[name] = origin


def _same(a: LocalFile | Member, b: LocalFile | Member, block: int = 1 << 22) -> bool:
    """Whether two files have the same bytes."""
    if a.size != b.size:
        return False
    if a.by_range and b.by_range:  # may be larger than memory
        return all(a.read_range(at, block) == b.read_range(at, block) for at in range(0, a.size, block))
    return a.read() == b.read()
