"""Workers that share a sweep: the part that is a worker's own, and claims in a folder that all of them see.

A claim is a file that one process alone can create; its owner touches it every few seconds. It is void when the owner's
process is gone from this machine, or when it was not touched for minutes. The next worker then creates the file's next
generation, which again only one can, so that no two take over the same run.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from jaxmlic import storage
from jaxmlic.errors import UserError

FOLDER = ".workers"
BEAT_SECONDS, STALE_SECONDS = 20.0, 300.0  # between two touches; age at which a claim is void


@dataclasses.dataclass(frozen=True)
class Part:
    """Part `number` of `count`, from 1."""

    number: int
    count: int

    def has(self, index: int) -> bool:
        """Whether it is the one that does item `index`, from 0."""
        return index % self.count == self.number - 1


def parse_part(text: str) -> Part:
    """ "2/4" -> Part(2, 4). UserError for anything that is not 1/N to N/N."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--part={text}: it is I/N, from 1/N to N/N, such as --part=2/4")
    return Part(int(number), int(count))


def part_of_environment(environment: Mapping[str, str]) -> tuple[Part | None, str]:
    """The part of a SLURM array's task or a Kubernetes job's pod, and a line about it; (None, "") for neither.

    An array with gaps (`--array=1,4,7`) and an index without a number of completions give no part: such workers share
    the entries by their claims alone.
    """
    if "SLURM_ARRAY_TASK_ID" in environment:
        names = ("ID", "MIN", "COUNT", "STEP")
        task, first, count, step = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", 1)) for name in names)
        place, rest = divmod(task - first, max(step, 1))
        if not rest and 0 <= place < count:
            return Part(place + 1, count), f"part {place + 1} of {count}, by SLURM_ARRAY_TASK_ID={task}"
        return None, f"SLURM_ARRAY_TASK_ID={task} is of an array with gaps: entries are shared as workers come"
    if "JOB_COMPLETION_INDEX" in environment:
        index, count = int(environment["JOB_COMPLETION_INDEX"]), int(environment.get("JOB_COMPLETIONS", 0))
        if index < count:
            return Part(index + 1, count), f"part {index + 1} of {count}, by JOB_COMPLETION_INDEX={index}"
        return None, f"JOB_COMPLETION_INDEX={index} without JOB_COMPLETIONS: entries are shared as workers come"
    return None, ""


class Claims:
    """This process's claims in WORKDIR/.workers; a context manager that gives all of them back.

    Args:
      workdir: of the sweep.
      sweep: changes with the configs of the sweep's entries.
      spec: the experiment, for messages.
      shared: False where nothing is claimed: all processes of a job make every run together, or the folder is in a
        bucket.

    Raises UserError where workers of another sweep are at work in the folder, and where it cannot be written.
    """

    def __init__(self, workdir: Path, sweep: str, spec: str, shared: bool = True):
        self._folder = storage.to_path(workdir) / FOLDER
        self._record = {"host": socket.gethostname(), "pid": os.getpid(), **_identity(os.getpid())}
        self._record |= {"sweep": sweep, "spec": spec, "time": time.time()}
        self._own: dict[str, list[Path]] = {}  # files by name, the valid one last
        self._presence = f"worker {self._record['host']} {os.getpid()}"
        self._stop, self._shared = threading.Event(), shared
        self._thread = threading.Thread(target=self._beat, daemon=True)
        if not shared:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{workdir}: cannot be written ({storage.reason(error)}): use another --workdir") from None
        self.take(self._presence)
        try:
            self._refuse_others(workdir, sweep)
        except UserError:
            self.release(self._presence)
            raise
        self._thread.start()

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._shared:
            self._thread.join()
        for name in list(self._own):
            self.release(name)

    def take(self, name: str) -> bool:
        """Claims a run; False while another worker holds it."""
        if name in self._own or not self._shared:
            return True
        files = self._files(name)
        if files and not self._is_void(files[-1]):
            return False
        stem, generation = urllib.parse.quote(name, safe=" "), _generation(files[-1]) + 1 if files else 0
        path = self._folder / f"{stem}.{generation}"
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(self._record, file)
        except FileExistsError:
            return False
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot be written ({storage.reason(error)})") from None
        self._own[name] = [*files, path]
        return True

    def is_held(self, name: str) -> bool:
        """Whether another worker holds the run."""
        files = self._files(name) if self._shared else []
        return name not in self._own and bool(files) and not self._is_void(files[-1])

    def release(self, name: str) -> None:
        """Gives a claim of this process back."""
        for path in reversed(self._own.pop(name, [])):
            with contextlib.suppress(OSError):
                path.unlink()

    def _files(self, name: str) -> list[Path]:
        stem = urllib.parse.quote(name, safe=" ")
        found = [path for path in self._folder.iterdir() if path.name.rpartition(".")[0] == stem]
        return sorted(found, key=_generation)

    def _is_void(self, path: Path) -> bool:
        try:
            text, age = path.read_text(encoding="utf-8"), self._now() - path.stat().st_mtime
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            record = json.loads(text)
        except ValueError:  # being written, or its writer was killed meanwhile
            record = {}
        here = record.get("host") == self._record["host"] and record.get("boot") == self._record["boot"]
        if here and self._record["boot"]:
            return _identity(record["pid"]).get("started") != record["started"]
        return age > STALE_SECONDS

    def _now(self) -> float:
        """The time by the clock of the folder's file system, since other hosts' clocks may differ from ours."""
        if self._presence not in self._own:
            return time.time()
        path = self._own[self._presence][-1]
        os.utime(path)
        return path.stat().st_mtime

    def _refuse_others(self, workdir: Path, sweep: str) -> None:
        for path in sorted(self._folder.iterdir()):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if record["sweep"] != sweep and not self._is_void(path):
                raise UserError(
                    f"{workdir} is in use by a sweep of another config ({record['spec']}, process {record['pid']} on "
                    f"{record['host']}): wait for it, or use another --workdir"
                )

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            for files in list(self._own.values()):
                with contextlib.suppress(OSError):
                    os.utime(files[-1])


def _generation(path: Path) -> int:
    digits = path.name.rpartition(".")[2]
    return int(digits) if digits.isdecimal() else -1


def _identity(pid: int) -> dict[str, str | None]:
    """What tells a process from an earlier one of the same number: start of the machine and of the process.

    None where the system does not say; claims are then judged by their age.
    """
    try:
        # Containers of one machine may have one name, and each has its own process 1.
        boot = f"{_text_of('/proc/sys/kernel/random/boot_id').strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return {"boot": None, "started": None}
    try:  # after the name in brackets, which may hold spaces, the start is field 22
        started = _text_of(f"/proc/{pid}/stat").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = None
    return {"boot": boot, "started": started}


def _text_of(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
