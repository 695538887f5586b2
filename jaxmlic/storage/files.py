"""Files: written whole or not at all, and read without running anything in them. Mistakes raise UserError."""

import contextlib
import hashlib
import io
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxmlic import distributed
from jaxmlic.errors import UserError
from jaxmlic.storage.paths import bucket_problem, is_bucket, to_path

# What reading a damaged file can raise: numpy, zipfile and zlib each have their own.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


class _Nowhere(io.RawIOBase):
    """A binary file that keeps nothing but its position and its length, which writers of archives ask for."""

    def __init__(self):
        super().__init__()
        self._place = self._length = 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        size = memoryview(data).nbytes
        self._place += size
        self._length = max(self._length, self._place)
        return size

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        return self._place


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb", *, remedy: str = "", **options: Any) -> Iterator[IO]:
    """A file that takes the place of `path` when the block ends well; otherwise what was there stays.

    Missing folders are made. The content is on disk before the name is. In a bucket the content is gathered in memory
    and written as one object, which appears whole. Of several processes the first one writes.

    Args:
      path: where the file shall lie.
      mode: "wb" or "w".
      remedy: what the user can do where it cannot be written.
      options: of `open`, such as newline="".

    Raises:
      UserError: it cannot be written.
    """
    if not distributed.is_main():
        with _Nowhere() if "b" in mode else open(os.devnull, mode) as file:
            yield file
        return
    path = to_path(path)
    with (_object if is_bucket(path) else replacing_here)(path, mode, remedy=remedy, **options) as file:
        yield file


@contextlib.contextmanager
def replacing_here(path: str | os.PathLike, mode: str = "wb", *, remedy: str = "", **options: Any) -> Iterator[IO]:
    """As `replacing`, for a path on this machine and by every process."""
    path = Path(path)
    # Processes of several containers that share a folder may have one number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open(mode, **({} if "b" in mode else {"encoding": "utf-8"}) | options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(_message(path, f"cannot be written ({reason(error)})", remedy)) from None


@contextlib.contextmanager
def _object(path: Path, mode: str, *, remedy: str, errors: str = "strict", newline: str | None = None) -> Iterator[IO]:
    """As `replacing`, for a path in a bucket."""
    file = io.BytesIO() if "b" in mode else io.StringIO(newline=newline)
    yield file
    content = file.getvalue()
    try:
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", errors))
    except Exception as error:
        why = bucket_problem(error) or reason(error)
        raise UserError(_message(path, f"cannot be written ({why})", remedy)) from None


def write_text(path: str | os.PathLike, text: str, *, remedy: str = "") -> None:
    """Writes a UTF-8 file; see `replacing`."""
    with replacing(path, "w", remedy=remedy) as file:
        file.write(text)


def write_json(path: str | os.PathLike, value: object, *, remedy: str = "") -> None:
    """Writes a value as indented JSON; see `replacing`. TypeError, and no file, for what JSON cannot hold."""
    write_text(path, json.dumps(value, indent=1) + "\n", remedy=remedy)


def save_npz(path: str | os.PathLike, arrays: Mapping[str, object], *, compress: bool = True, remedy: str = "") -> None:
    """Writes named arrays as an .npz, under just this name (numpy would append .npz); see `replacing`."""
    with replacing(path, remedy=remedy) as file:
        (np.savez_compressed if compress else np.savez)(file, **{k: np.asarray(v) for k, v in arrays.items()})


def load_npz(
    path: str | os.PathLike,
    needed: Sequence[str] = (),
    optional: Sequence[str] | None = None,
    *,
    what: str = "file of arrays",
    remedy: str = "",
) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name. Nothing in it is ever unpickled.

    Args:
      path: the file.
      needed: names that must be there.
      optional: further names to read where they are there; None for all.
      what: what the file is, for messages.
      remedy: what the user can do, for messages.

    Raises:
      UserError: it is missing, damaged, no .npz, holds objects, or lacks a needed array.
    """
    try:
        # Opened here, because np.load leaves the file open when the archive is damaged.
        with _opened(path) as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(_message(path, f"no {what}, which is an .npz of several arrays", remedy))
            lacking = [name for name in needed if name not in archive.files]
            if lacking:
                raise UserError(_message(path, f"no {what}: it lacks {', '.join(lacking)}", remedy))
            rest = archive.files if optional is None else [name for name in optional if name in archive.files]
            return {name: archive[name] for name in dict.fromkeys((*needed, *rest))}
    except FileNotFoundError:
        raise UserError(_message(path, f"no such {what}", remedy)) from None
    except DAMAGE as error:
        raise UserError(_message(path, f"cannot be read as a {what} ({reason(error)})", remedy)) from None


def read_json(path: str | os.PathLike, *, what: str = "JSON file", remedy: str = "") -> Any:
    """The value of a JSON file. UserError where it is missing or damaged."""
    try:
        return json.loads(to_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(_message(path, f"no such {what}", remedy)) from None
    except (OSError, ValueError) as error:
        raise UserError(_message(path, f"cannot be read as a {what} ({reason(error)})", remedy)) from None


def _opened(path: str | os.PathLike) -> IO[bytes]:
    """A local file opened, or an object read whole: an .npz is read at many places."""
    path = to_path(path)
    return io.BytesIO(path.read_bytes()) if is_bucket(path) else path.open("rb")


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. UserError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{os.fspath(path)}: cannot be read ({reason(error)})") from None
    return digest.hexdigest()


def reason(error: BaseException) -> str:
    """What went wrong, on one line: the system's words where it has some."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if "Object arrays" in text:  # numpy's words for what only a pickle could hold
        text = "an array of objects: rows of different lengths, or text among numbers"
    elif "pickled (object) data" in text or "pickled data" in text:  # the second is an older numpy's
        text = "not an .npz"
    return " ".join(text.split())


def _message(path: str | os.PathLike, what: str, remedy: str) -> str:
    return f"{os.fspath(path)}: {what}" + (f"; {remedy}" if remedy else "")
