"""Jobs of several processes on this machine, each with some CPU devices: what the tests of many hosts start."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Python that makes a process compute in double precision, whatever the library calls float32. XLA computes convolutions
# of doubles in loops, which the tests' flags would leave slow, so they go, and ResNets are narrow.
DOUBLE = """
import os, types
os.environ["XLA_FLAGS"] = ""
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
jnp.float32 = jnp.float64
from jaxmlic.models import trunks
from jaxmlic.models.trunks import resnet
trunks.jnp = types.SimpleNamespace(**vars(jnp) | {"dtype": lambda name: jnp.dtype(name.replace("32", "64"))})
resnet._WIDTHS = (8, 16, 32, 64)
from jaxmlic.models.heads import mscnn_lce_mic
def in_double(*args, plain=mscnn_lce_mic.constants):
    values, notes = plain(*args)
    return {name: value.astype("float64") for name, value in values.items()}, notes
mscnn_lce_mic.constants = in_double
"""
SECONDS = 400  # of a job; a machine with busy cores takes a minute for what a free one does in ten seconds


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a process left: its exit status, and what it printed."""

    status: int
    out: str
    err: str


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


class Job:
    """The processes of one `jaxmlic` command; a context manager that ends what still runs."""

    def __init__(
        self,
        *arguments: str,
        processes: int = 1,
        devices: int = 1,
        own: dict[int, list[str]] | None = None,
        before: dict[int, str] | None = None,
    ):
        """own: {process: further arguments of it}; before: {process: Python that it runs before the command}."""
        port = free_port()
        self._folder = tempfile.TemporaryDirectory()
        self.processes = []
        for number in range(processes):
            several = [f"--coordinator=localhost:{port}", f"--num-processes={processes}", f"--process-id={number}"]
            command = [*arguments, *(own or {}).get(number, []), *(several if processes > 1 else [])]
            script = f"{(before or {}).get(number, '')}\nfrom jaxmlic.cli.main import main\nmain()"
            with self._file(number, "out").open("w") as out, self._file(number, "err").open("w") as err:
                process = subprocess.Popen(
                    [sys.executable, "-c", script, *command],
                    stdout=out,
                    stderr=err,
                    env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
                )
            self.processes.append(process)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self._folder.cleanup()

    def signal(self, number: int, what: signal.Signals = signal.SIGTERM) -> None:
        """Sends a signal to one process."""
        self.processes[number].send_signal(what)

    def printed(self, number: int) -> str:
        """What a process has printed on stderr so far."""
        return self._file(number, "err").read_text(encoding="utf-8")

    def wait(self, seconds: float = SECONDS) -> list[Ended]:
        """How each process ended. AssertionError, with what they printed, where one still runs after `seconds`."""
        end = time.monotonic() + seconds
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        found = [
            Ended(process.poll(), self._file(number, "out").read_text(encoding="utf-8"), self.printed(number))
            for number, process in enumerate(self.processes)
        ]
        assert all(one.status is not None for one in found), found
        return found

    def wait_until(self, condition: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Returns once the condition holds; AssertionError after `seconds`, or where a process has ended."""
        end = time.monotonic() + seconds
        while not condition():
            ended = any(process.poll() is not None for process in self.processes)
            assert not ended and time.monotonic() < end, [self.printed(i) for i in range(len(self.processes))]
            time.sleep(0.05)

    def _file(self, number: int, kind: str) -> Path:
        return Path(self._folder.name) / f"{number}.{kind}"


def run(*arguments: str, seconds: float = SECONDS, **options: object) -> list[Ended]:
    """A job from its start to its end; AssertionError unless every process ends with status 0."""
    with Job(*arguments, **options) as job:
        found = job.wait(seconds)
    assert all(one.status == 0 for one in found), found
    return found
