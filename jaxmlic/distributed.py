"""Several processes as one program: how they find each other, agree, and wait for each other.

One process is the rule, and everything here does nothing then. With several, all run the same code on the same global
arrays; process 0 alone writes files (`storage.replacing`) and prints to the terminal, the others print errors.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import NoReturn, TypeVar

from jaxmlic.errors import UserError

Result = TypeVar("Result")

START_SECONDS = 300  # until all processes have found each other
_TCP_SECONDS = 1.0
_GRACE_SECONDS, _LAST_WORDS_SECONDS = 2.0, 4.0  # the second is longer: process 0 keeps what the others read
_LAST_WORDS = "jaxmlic/last words"
_FOREVER_MS = 10**9  # twelve days: asked again then


@dataclasses.dataclass(frozen=True)
class _Place:
    index: int = 0
    count: int = 1


_place = _Place()
_asked = _failures = 0  # how often `Stop.now` and `all_fail` were called in this process
_complaint, _leaving = "a process ended", False


def index() -> int:
    """This process's number, from 0. Unlike `jax.process_index()` it does not initialise JAX's devices."""
    return _place.index


def count() -> int:
    """The number of processes."""
    return _place.count


def is_main() -> bool:
    """Whether this process writes and prints for all."""
    return _place.index == 0


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    seconds: float = START_SECONDS,
) -> None:
    """Joins the processes of a job before JAX's first use: those of the arguments, or of a cluster that shows itself.

    Known clusters are those of SLURM (`srun`), Open MPI, TPU VMs and GKE's TPUs. Elsewhere nothing happens.

    Args:
      coordinator: HOST:PORT of process 0, that all can reach.
      num_processes: of the job.
      process_id: of this one, 0 <= process_id < num_processes.
      seconds: until the job ends because somebody did not come.

    Raises:
      UserError: some of the three without the others, a port that is in use. A process that waits for nobody prints
        one line and ends with status 2, since JAX would abort it.
    """
    global _place
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        cluster, found = _cluster()
        if not cluster:
            return
        with _patience(seconds, f"the other processes of this {cluster} job did not come"):
            _initialize(f"this {cluster} job", initialization_timeout=int(seconds) + 60)
    elif missing:
        raise UserError(f"--coordinator, --num-processes and --process-id go together: {', '.join(missing)} is missing")
    else:
        host, port = _address(coordinator)
        if not 0 <= process_id < num_processes:
            raise UserError(f"--process-id={process_id} is not in 0 ... {num_processes - 1} (--num-processes)")
        if num_processes == 1:
            return
        end = time.monotonic() + seconds
        if process_id == 0:
            _check_port(port)
        else:
            _reach(host, port, end)
        with _patience(end - time.monotonic(), f"not all of {num_processes} processes came to {coordinator}"):
            _initialize(
                coordinator,
                coordinator_address=coordinator,
                num_processes=num_processes,
                process_id=process_id,
                initialization_timeout=int(seconds) + 60,
            )
        found = _Place(process_id, num_processes)
    if found is None:
        import jax

        found = _Place(jax.process_index(), jax.process_count())
    _place = found
    if count() > 1:
        threading.Thread(target=_listen, args=[_client()], daemon=True).start()
    if not is_main():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (for the rest of the process)


def _cluster() -> tuple[str, _Place | None]:
    """The name of the cluster that runs this process with others, "" on a lone machine; and the place in it, as far as
    the environment tells."""
    env = os.environ
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)
    if tasks > 1 and all(name in env for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID")):
        return "SLURM", _Place(int(env["SLURM_PROCID"]), tasks)
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI", _Place(int(env["OMPI_COMM_WORLD_RANK"]), int(env["OMPI_COMM_WORLD_SIZE"]))
    hosts = env.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if len(hosts) > 1 and "TPU_WORKER_ID" in env:
        return "TPU", None
    chips = any(os.path.exists(f"/dev/{name}") for name in ("accel0", "vfio/0"))
    return ("TPU VM" if chips and importlib.util.find_spec("libtpu") else ""), None


def _initialize(what: str, **options: object) -> None:
    import jax

    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of {what} could not be joined ({' '.join(str(error).split())[:200]})") from None


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={coordinator}: HOST:PORT of process 0")
    return host, int(port)


def _check_port(port: int) -> None:
    """UserError where the port is taken: JAX's message would not say which."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
        except OSError as error:
            raise UserError(
                f"--coordinator: port {port} cannot be used here ({error.strerror}); take another"
            ) from None


def _reach(host: str, port: int, end: float) -> None:
    """Returns when somebody listens there; UserError at the time `end`."""
    while True:
        try:
            socket.create_connection((host, port), timeout=_TCP_SECONDS).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > end:
            raise UserError(f"--coordinator={host}:{port}: process 0 did not come ({reason})")
        time.sleep(0.2)


@contextlib.contextmanager
def _patience(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with one line when the block takes too long. (JAX would abort it with a stack trace.)"""
    timer = threading.Timer(max(0.1, seconds), _leave, [f"jaxmlic: {message} within {seconds:.0f} s"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _leave(message: str) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    os._exit(2)


def wait_for_all(name: str) -> None:
    """Returns when all processes are here."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def texts(text: str) -> list[str]:
    """What each process gives, by process number, on all of them."""
    if count() == 1:
        return [text]
    import numpy as np
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: len(data)] = data
    found = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(found, sizes, strict=True)]


def all_or_none(action: Callable[[], Result]) -> Result:
    """The result of `action`, which needs no other process; where it fails on one, all raise that UserError."""
    if count() == 1:
        return action()
    result, mistake = None, ""
    try:
        result = action()
    except UserError as error:
        mistake = str(error)
    found = [(number, text) for number, text in enumerate(texts(mistake)) if text]
    if found:
        number, text = found[0]
        also = "" if len(found) == 1 else f" (and {len(found) - 1} more processes)"
        raise UserError(f"process {number}{also}: {text}" if len(found) < count() else text)
    return result


def check_same(values: Mapping[str, str]) -> None:
    """UserError on all processes where one has another value than process 0, with its name and both."""
    found = [json.loads(text) for text in texts(json.dumps(dict(values)))]
    for number, other in enumerate(found):
        for name in found[0] | other:
            mine, theirs = found[0].get(name), other.get(name)
            if mine != theirs:
                raise UserError(
                    f"{name} differs between the processes: {mine!r} on process 0, {theirs!r} on process {number}; "
                    "start all of them with the same"
                )


def describe_loss(error: Exception) -> tuple[str, int]:
    """A line for an error that came of another process that is gone, and the exit status; ("", 0) for other errors."""
    text = " ".join(str(error).split())
    signs = ("Gloo", "Connection closed", "Connection reset", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat")
    if count() == 1 or not any(sign in text for sign in signs):
        return "", 0
    with contextlib.suppress(Exception):  # it did not say why, or the first process is gone
        number, status, why = json.loads(_client().key_value_try_get(_LAST_WORDS))
        return f"{why} (process {number} of {count()})", status
    return (
        f"process {index()} of {count()} lost another one, whose own output tells why; the same commands continue from "
        f"the last checkpoint ({text[:200]})",
        1,
    )


def complain(text: str) -> None:
    """Prints a mistake; it is what the other processes print when this one leaves."""
    global _complaint
    _complaint = text
    with contextlib.suppress(OSError):  # the disk of a log may be full
        print(f"jaxmlic: {text}", file=sys.stderr, flush=True)


def leave(status: int) -> NoReturn:
    """Ends this process of several without waiting for the others, which may wait for it: they end within seconds, with
    the same status and complaint, unless they are about to leave themselves."""
    global _leaving
    _leaving = True
    with contextlib.suppress(Exception):  # another one was first, or the first process is gone
        _client().key_value_set(_LAST_WORDS, json.dumps([index(), status, _complaint]))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if is_main():  # the others end with it: let them print first
        time.sleep(_LAST_WORDS_SECONDS)
    os._exit(status)


def end_all(text: str) -> NoReturn:
    """Ends the job for a mistake that this process of several alone has met: the others may wait for it in any place."""
    complain(text)
    leave(2)


def all_fail(seconds: float = 60.0) -> bool:
    """Whether all processes have failed at the same place, so that they can go on together; True for one process."""
    global _failures
    if count() == 1:
        return True
    _failures += 1
    try:
        _client().wait_at_barrier(f"jaxmlic/failure {_failures}", int(1000 * seconds))
    except Exception:  # jaxlib has its own types: somebody did not come, or is gone
        return False
    return True


def _client() -> "jax.lib.xla_extension.DistributedRuntimeClient":
    from jax._src import distributed

    return distributed.global_state.client


def _listen(client: "jax.lib.xla_extension.DistributedRuntimeClient") -> None:
    """Ends this process when another one says that it leaves."""
    try:
        number, status, text = json.loads(client.blocking_key_value_get(_LAST_WORDS, _FOREVER_MS))
    except Exception:  # the job is at its end
        return
    time.sleep(_GRACE_SECONDS)  # the same may have happened here
    if not _leaving:
        complain(f"{text} (process {number} of {count()})")
        os._exit(status)


class Stop:
    """A notice to leave (SIGTERM, Ctrl-C, a maintenance event), on which all processes agree at one place.

    A context manager. A second signal acts as usual with one process.
    """

    def __init__(self):
        self.signal: int | None = None
        self._old: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        # With several processes JAX's own notifier has SIGTERM, and Ctrl-C becomes one.
        numbers = (signal.SIGTERM, signal.SIGINT) if count() == 1 else (signal.SIGINT,)
        with contextlib.suppress(ValueError):  # not the main thread: no handlers, as under a notebook's executor
            for number in numbers:
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        signal.signal(number, self._old[number])
        if count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signal = number

    def now(self) -> bool:
        """Whether all processes leave here. All have to ask at the same places, such as after each step."""
        global _asked
        if count() > 1 and self.signal is None:
            from jax.experimental import multihost_utils

            # Counted over all runs of the process: they agree on the number after the largest that any has reached.
            _asked += 1
            if multihost_utils.reached_preemption_sync_point(_asked):
                self.signal = signal.SIGTERM
        return self.signal is not None


def stopped_status(number: int | None) -> int:
    """The exit status of work that a signal ended after saving: 130 for Ctrl-C, else $JAXMLIC_STOPPED_STATUS or 0.

    Kubernetes takes 0 for a job that is complete, and needs another one to start it again.
    """
    text = os.environ.get("JAXMLIC_STOPPED_STATUS") or "0"
    if not text.isdecimal() or int(text) > 255:
        raise UserError(f"$JAXMLIC_STOPPED_STATUS = {text!r}: an exit status from 0 to 255")
    return 130 if number == signal.SIGINT else int(text)
