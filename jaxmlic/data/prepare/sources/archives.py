"""Archives: tar files, compressed or not, and zip files, read at the members' places without extracting anything.

Archives come from the internet: a member whose name or link leads out of the archive is refused, and nothing is ever
written to a place that an archive names.
"""

import bz2
import gzip
import hashlib
import lzma
import os
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from jaxmlic import progress
from jaxmlic.errors import UserError

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
_OPENERS = {".gz": gzip.open, ".tgz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
# What the standard library raises on damaged archives; RuntimeError is also encryption, MemoryError a header that lies.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
DAMAGE += (ValueError, LookupError, OverflowError, RuntimeError, MemoryError, struct.error)

# Size and SHA-256 of the archives as their owners publish them (the list of TensorFlow Datasets 4.9.10).
PUBLISHED = {
    "VOCtrainval_06-Nov-2007.tar": (
        460_032_000,
        "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
    ),
    "VOCtest_06-Nov-2007.tar": (
        451_020_800,
        "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
    ),
    "VOCtrainval_11-May-2012.tar": (
        1_999_639_040,
        "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    ),
    "annotations_trainval2014.zip": (
        252_872_794,
        "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    ),
    "annotations_trainval2017.zip": (
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    "train2014.zip": (13_510_573_713, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
    "val2014.zip": (6_645_013_297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
    "train2017.zip": (19_336_861_798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
    "val2017.zip": (815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    "cifar-10-binary.tar.gz": (170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    "stl10_binary.tar.gz": (2_640_397_119, "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"),
}


def inside(name: str, path: Path) -> str:
    """A member's name, tidied; UserError if it leads out of the archive."""
    plain = name.replace("\\", "/")
    parts = PurePosixPath(plain).parts
    if plain.startswith("/") or ".." in parts or (len(plain) > 1 and plain[1] == ":"):
        raise UserError(f"{path}: holds {name!r}, a name that leads out of the archive: refused, nothing was written")
    return "/".join(parts)


def verify(path: Path) -> None:
    """UserError when an archive that bears a published name has another size or SHA-256."""
    if path.name not in PUBLISHED:
        return
    size, digest = PUBLISHED[path.name]
    advice = "download it again, or add --no-checksums if it was made by somebody else"
    found = path.stat().st_size
    if found != size:
        raise UserError(f"{path}: {found:,} bytes, its owner's file has {size:,}: {advice}")
    hashed = hashlib.sha256()
    with (
        path.open("rb") as file,
        progress.Progress(f"checking {path.name}", size / 1e6, "MB") as bar,
    ):
        while block := file.read(1 << 22):
            hashed.update(block)
            bar.advance(len(block) / 1e6)
    if hashed.hexdigest() != digest:
        raise UserError(f"{path}: its SHA-256 is not that of its owner's file: {advice}")


def _state(path: Path) -> list[int]:
    """What changes when the archive does: size and time."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


class Tar:
    """A tar file, read at the members' offsets; a compressed one is decompressed to a nameless file first."""

    def __init__(self, path: Path, scratch: Path | None):
        self.path = path
        self.state = _state(path)
        opener = _OPENERS.get(path.suffix.lower())
        if opener is None:
            self._file = path.open("rb")
        else:
            if scratch is not None:
                scratch.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed by __exit__
            try:
                with (
                    path.open("rb") as stored,
                    opener(stored, "rb") as packed,
                    progress.Progress(f"decompressing {path.name}", path.stat().st_size / 1e6, "MB") as bar,
                ):
                    while block := packed.read(1 << 20):
                        self._file.write(block)
                        bar.advance(stored.tell() / 1e6 - bar.done)
                self._file.flush()
            except OSError as error:
                self._file.close()
                if error.errno is not None:  # no space left and the like, not a damaged archive
                    raise UserError(f"{path}: cannot be decompressed ({error.strerror})") from None
                raise
            except BaseException:
                self._file.close()
                raise
        try:
            self._list()
        except BaseException:
            self._file.close()
            raise

    def _list(self) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        self._dangling: dict[str, str] = {}
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, size - 1024))
        if self._file.read().strip(b"\0"):
            raise tarfile.ReadError("no end mark")
        self._file.seek(0)
        links: dict[str, str] = {}
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            for member in tar:
                if member.issparse():
                    raise UserError(f"{self.path}: {member.name} is stored with holes (sparse): extract it yourself")
                if member.size < 0 or (member.isfile() and member.offset_data + member.size > size):
                    raise tarfile.ReadError(f"{member.name} goes beyond its end")
                if member.issym() or member.islnk():
                    base = PurePosixPath(member.name).parent if member.issym() else PurePosixPath()
                    target = os.path.normpath(base / member.linkname)
                    links[member.name] = inside(target, self.path)
                elif member.isfile():
                    if member.name in self._places and self._data(member.name) != self._at(member):
                        raise UserError(f"{self.path}: {member.name} is in it twice, with different contents")
                    self._places[member.name] = (member.offset_data, member.size)
            end = tar.offset
        # At a damaged header tarfile stops as if the archive ended there, and so it does at a lost block of zeros.
        self._file.seek(end)
        while block := self._file.read(1 << 20):
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {end:,}, and more behind it")
        tidy = {inside(name, self.path): name for name in (*self._places, *links)}
        for name in links:
            last, passed = name, set()
            while last in links and last not in passed:
                passed.add(last)
                last = tidy.get(links[last])
            if last in self._places:
                self._places[name] = self._places[last]
            else:
                self._dangling[name] = links[name]

    def _at(self, member: tarfile.TarInfo) -> bytes:
        return os.pread(self._file.fileno(), member.size, member.offset_data)

    def _data(self, name: str) -> bytes:
        offset, size = self._places[name]
        return os.pread(self._file.fileno(), size, offset)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def members(self) -> Iterable[tuple[str, int]]:
        return [(name, size) for name, (_, size) in self._places.items()] + [(name, 0) for name in self._dangling]

    def read(self, name: str) -> bytes:
        self._refuse_dangling(name)
        data = self._data(name)
        if len(data) != self._places[name][1]:
            raise tarfile.ReadError("unexpected end")
        return data

    def _refuse_dangling(self, name: str) -> None:
        if name in self._dangling:
            raise OSError(0, f"a link to {self._dangling[name]}, which is not a file in {self.path.name}")

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        self._refuse_dangling(name)
        start, whole = self._places[name]
        return os.pread(self._file.fileno(), max(0, min(size, whole - offset)), start + offset)


class Zip:
    """A zip file; every read checks the member's CRC."""

    def __init__(self, path: Path):
        self.path = path
        self.state = _state(path)
        self._zip = zipfile.ZipFile(path)
        try:
            self._check_count()
        except BaseException:
            self._zip.close()
            raise

    def _check_count(self) -> None:
        """BadZipFile when the directory has another number of entries than its end record states.

        zipfile does not look: of a directory that seems to start late it would read the rest.
        """
        found = len(self._zip.infolist())
        with self.path.open("rb") as file:
            file.seek(-min(self.path.stat().st_size, (1 << 16) + 22), os.SEEK_END)  # it and the longest comment
            tail = file.read()
        at = tail.rfind(b"PK\5\6")
        stated = struct.unpack_from("<H", tail, at + 10)[0] if at >= 0 else found
        if stated not in (found & 0xFFFF, 0xFFFF):  # 0xFFFF: the number is in the record of zip64
            raise zipfile.BadZipFile(f"{found:,} entries where the end record says {stated:,}")
        odd = next((i for i in self._zip.infolist() if not i.filename or (i.is_dir() and i.file_size)), None)
        if odd:
            raise zipfile.BadZipFile(f"an entry named {odd.filename!r} with {odd.file_size:,} bytes")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._zip.close()

    def members(self) -> Iterable[tuple[str, int]]:
        infos = [info for info in self._zip.infolist() if not info.is_dir()]
        seen = {}
        for info in infos:
            if (info.external_attr >> 16) & 0o170000 == 0o120000:
                raise UserError(f"{self.path}: {info.filename} is a symbolic link: refused; extract it yourself")
            if seen.setdefault(info.filename, info.CRC) != info.CRC:
                raise UserError(f"{self.path}: {info.filename} is in it twice, with different contents")
        return [(info.filename, info.file_size) for info in infos]

    def read(self, name: str) -> bytes:
        return self._zip.read(name)
