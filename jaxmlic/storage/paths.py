"""What a path is: a place on this machine, or an object in a bucket (gs://BUCKET/..., s3://BUCKET/...)."""

import functools
import importlib.util
import logging
import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmlic.errors import UserError, unknown

if TYPE_CHECKING:
    import fsspec

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # of fsspec, for each scheme
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_CHECKED: set[tuple[str, str]] = set()
# The packages whose errors mean that a bucket does not answer as it should.
_CLIENTS = ("aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs")


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path leads into a bucket, or tries to."""
    return _SCHEME.match(os.fspath(path)) is not None


def to_path(path: str | os.PathLike) -> Path:
    """The path as an object: pathlib's for local ones (~ is the home folder), etils' epath, of the same methods, for
    gs:// and s3://.

    The bucket is asked once in a process, so that a mistake in its name shows before anything is done.

    Raises:
      UserError: an unknown scheme, a package that is not installed, no such bucket, no permission, no connection.
    """
    text = os.fspath(path)
    found = _SCHEME.match(text)
    if found is None:
        return Path(text).expanduser()
    scheme = found.group(1)
    if scheme not in PACKAGES:
        raise unknown(f"{text}: scheme", scheme, PACKAGES)
    _, _, rest = text.partition(f"{scheme}://")
    bucket, _, key = rest.rstrip("/").partition("/")
    if not bucket:
        raise UserError(f"{text}: no bucket named; write {scheme}://BUCKET/FOLDER")
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
        raise UserError(f"{text}: {scheme}:// needs the package {PACKAGES[scheme]}: pip install {PACKAGES[scheme]}")
    _check_bucket(scheme, bucket, key)
    from etils import epath

    return epath.Path(f"{scheme}://{bucket}/{key}" if key else f"{scheme}://{bucket}")


def resolve(path: str | os.PathLike) -> Path:
    """As `to_path`, absolute and without links; two names of one local file or object become equal."""
    found = to_path(path)
    return found if is_bucket(found) else found.resolve()  # epath would look for s3:// in the current folder


def filesystem(path: str | os.PathLike) -> "fsspec.AbstractFileSystem":
    """fsspec's file system of a path in a bucket, the one that epath uses too; listings are never remembered."""
    return _filesystem(os.fspath(path).partition("://")[0])


@functools.cache
def _filesystem(scheme: str) -> "fsspec.AbstractFileSystem":
    import fsspec

    # Another process may write: what was listed a moment ago may be wrong.
    for name in ("gs", "gcs") if scheme == "gs" else (scheme,):
        fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    logging.getLogger(PACKAGES[scheme]).setLevel(logging.CRITICAL)  # its errors are raised too
    return fsspec.filesystem("gcs", finalize_on_close=True) if scheme == "gs" else fsspec.filesystem(scheme)


def _check_bucket(scheme: str, bucket: str, key: str) -> None:
    """UserError unless the bucket is there and what begins with `key` may be listed; asked once for each bucket."""
    if (scheme, bucket) in _CHECKED:
        return
    try:
        files = _filesystem(scheme)
        if scheme == "s3":
            files.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
        else:
            files.call("GET", "b/{}/o", bucket, prefix=key, maxResults=1, json_out=True)
    except Exception as error:
        raise UserError(f"{scheme}://{bucket}/{key}: {_why(error, scheme, bucket)}") from None
    _CHECKED.add((scheme, bucket))


def check_writable(folder: str | os.PathLike) -> None:
    """UserError unless objects can be written into a folder of a bucket; local folders show it when they are made."""
    if not is_bucket(folder):
        return
    probe = to_path(folder) / f".jaxmlic-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"may be removed")
        probe.unlink()
    except Exception as error:
        scheme, _, rest = os.fspath(folder).partition("://")
        why = _why(error, scheme, rest.partition("/")[0])
        raise UserError(f"{os.fspath(folder)}: cannot be written ({why})") from None


def bucket_problem(error: BaseException) -> str | None:
    """One line for an error that a bucket's client raised; None for other errors."""
    if type(error).__module__.partition(".")[0] not in _CLIENTS:
        return None
    text = " ".join(str(error).split()) or type(error).__name__
    return f"the bucket does not answer as it should ({type(error).__name__}: {text[:300]})"


def _why(error: BaseException, scheme: str, bucket: str) -> str:
    code = getattr(error, "code", None)
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) or code == 404:
        return f"no bucket {bucket!r} is there; make it first"
    if isinstance(error, PermissionError) or code in (401, 403):
        return f"no permission in bucket {bucket!r} ({text[:200]})"
    if "credentials" in text.lower():
        login = "`aws configure` or AWS_ACCESS_KEY_ID" if scheme == "s3" else "`gcloud auth application-default login`"
        return f"no credentials found: {login}"
    return f"bucket {bucket!r} cannot be reached ({type(error).__name__}: {text[:200]})"
