"""How the processes of a job find each other."""

import contextlib
import importlib.util
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from jaxmlic.distributed import ending
from jaxmlic.distributed.place import Place, count, is_main, take
from jaxmlic.errors import UserError

START_SECONDS = 300  # until all processes have found each other
_TCP_SECONDS = 1.0


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
        found = Place(process_id, num_processes)
    if found is None:
        import jax

        found = Place(jax.process_index(), jax.process_count())
    take(found)
    if count() > 1:
        ending.listen()
    if not is_main():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (for the rest of the process)


def _cluster() -> tuple[str, Place | None]:
    """The name of the cluster that runs this process with others, "" on a lone machine; and the place in it, as far as
    the environment tells."""
    env = os.environ
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)
    if tasks > 1 and all(name in env for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID")):
        return "SLURM", Place(int(env["SLURM_PROCID"]), tasks)
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI", Place(int(env["OMPI_COMM_WORLD_RANK"]), int(env["OMPI_COMM_WORLD_SIZE"]))
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
    timer = threading.Timer(max(0.1, seconds), _leave, [f"{message} within {seconds:.0f} s"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _leave(message: str) -> NoReturn:
    ending.complain(message)
    os._exit(2)
