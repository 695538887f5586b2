"""What the tests of the benchmarks' builders share: small images, the command, how a refusal looks."""

import contextlib
import io
import tarfile

import numpy as np
from PIL import Image

from jaxmlic.cli import main as cli


def image_bytes(seed=0, height=20, width=30, form="JPEG", mode="RGB"):
    """An encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form)
    return buffer.getvalue()


def write_tar(path, members, mode="w"):
    """A tar file of {name: bytes}; mode "w:gz" compresses it."""
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def prepare(name, tmp_path, *argv):
    """`jaxmlic data prepare NAME`: (status, lines on stdout, lines on stderr). Paths are sources, text is options."""
    out, err = io.StringIO(), io.StringIO()
    options = [arg if isinstance(arg, str) else f"--source={arg}" for arg in argv]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run(["data", "prepare", name, f"--data-dir={tmp_path / 'data'}", *options])
    return status, out.getvalue().splitlines(), err.getvalue().splitlines()


def refused(result, *parts):
    """One line, status 2."""
    status, out, err = result
    assert (status, out, len(err)) == (2, [], 1), result
    for part in parts:
        assert part in err[0], err[0]
