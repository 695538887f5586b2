"""Kills trainings at random moments and continues them: the end must have the bits of a training never disturbed.

    python benchmarks/kill_resume.py --folder=DIR [--kills=100] [--terms=20] [--minutes=60] [--seed=0]

A linear layer with dropout on made features of 96 images, so that a start is quick: 400 steps of AdamW with
averaged parameters, a checkpoint every 5 steps, a row of metrics.jsonl every step.
Three parts, in turn, until each has its number or the minutes are over:
  one process      SIGKILL: every third time in a save (as soon as Orbax's unfinished folder shows, after a few saves
                   that are let be), else within 3 s of the first step, or, every fourth of those, within its start;
  one of two       the same, of one of two processes; the other one has 20 s to end by itself before it is killed, too;
  SIGTERM          to one of two processes, within 3 s of the first step; both have to save one step and leave within
                   30 s.
A training that was killed is started again with the same command, until one start reaches the end. Then its last
checkpoint is compared bit by bit, and its metrics.jsonl row by row, with those of the undisturbed training of so many
processes; a difference ends the script with status 1. Processes are forked after the imports, so that a start is quick.
"""

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import sys
import time
import warnings
from pathlib import Path

import cv2
import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxmlic.cli import main as cli
from jaxmlic.data.prepare import writer
from jaxmlic.training import loop  # noqa: F401  (imported before the forks)
from jaxmlic.training.checkpoint import Checkpoints

STEPS = 400
CONFIG = {
    "data.name": "noise",
    "data.source": "file",
    "data.val_fraction": 0.25,
    "train.batch_size": 8,
    "train.duration": f"{STEPS} steps",
    "train.eval_every": "100 steps",
    "train.checkpoint_every": "5 steps",
    "train.log_every": "1 steps",
    "model.dropout": 0.2,
    "model.pool": "avg",
    "optim.ema": 0.9,
}
STRIKE_SECONDS, END_SECONDS, LEAVE_SECONDS, HUNG_SECONDS = 3, 20, 30, 300


@dataclasses.dataclass
class Counts:
    """What happened so far."""

    kills: int = 0
    in_saves: int = 0
    ends: int = 0
    others_left: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path, help="for the data, the runs and the compiled programs")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs, half of them to one of two processes (100)")
    parser.add_argument("--terms", type=int, default=20, help="SIGTERMs to one of two processes (20)")
    parser.add_argument("--minutes", type=float, default=60, help="no new start after so many (60)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # nothing of JAX has run here yet
    folder, draw = options.folder.absolute(), random.Random(options.seed)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    wait([fork(lambda: make_data(folder), folder / "data.log")], HUNG_SECONDS)
    # Two processes share this machine's cores; a program is compiled once.
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_num_cpu_devices", 1)
    end = time.monotonic() + 60 * options.minutes
    print(f"{datetime.date.today()}  {platform.processor() or platform.machine()}, {os.cpu_count()} cores", flush=True)

    undisturbed = {count: [Undisturbed(folder, count) for _ in range(2)][-1] for count in (1, 2)}  # the second is warm
    for count, one in undisturbed.items():
        print(f"undisturbed, {count} process(es): {one.seconds:.1f} s", flush=True)
    parts = [
        (1, options.kills - options.kills // 2, signal.SIGKILL),
        (2, options.kills // 2, signal.SIGKILL),
        (2, options.terms, signal.SIGTERM),
    ]
    counts = [Counts() for _ in parts]
    while time.monotonic() < end and any(c.kills < wanted for c, (_, wanted, _) in zip(counts, parts, strict=True)):
        for number, (count, wanted, what) in enumerate(parts):
            if counts[number].kills < wanted and time.monotonic() < end:
                one_training(folder, undisturbed[count], what, counts[number], draw)
                told = describe(counts[number], what)
                print(f"{what.name}, {count} process(es): {told} (of {wanted})", flush=True)
    return 0


def describe(c: Counts, what: signal.Signals) -> str:
    slowest = f"; left within {max(c.seconds):.1f} s, median {statistics.median(c.seconds):.1f} s" if c.seconds else ""
    saves = f", {c.in_saves} of them in a save" if what == signal.SIGKILL else ""
    return f"{c.kills} signals{saves}; {c.ends} trainings ended, all equal{slowest}"


class Undisturbed:
    """A training without a signal: its checkpoint, its rows, its length."""

    def __init__(self, folder: Path, count: int):
        self.count, self.workdir = count, folder / "runs" / f"undisturbed{count}"
        shutil.rmtree(self.workdir, ignore_errors=True)
        start = time.monotonic()
        processes = begin(folder, self.workdir, count)
        statuses = wait(processes, HUNG_SECONDS)
        check(statuses == [0] * count, self.workdir, f"statuses {statuses}")
        self.seconds = time.monotonic() - start
        self.digest, self.rows = digest(self.workdir), rows_of(self.workdir)


def one_training(folder: Path, wanted: Undisturbed, what: signal.Signals, c: Counts, draw: random.Random) -> None:
    """A training with signals, from its first start to its end, which is compared with the undisturbed one's."""
    workdir = folder / "runs" / f"{what.name}{wanted.count}"
    shutil.rmtree(workdir, ignore_errors=True)
    log_of(folder, workdir).unlink(missing_ok=True)
    for number in range(1000):
        processes = begin(folder, workdir, wanted.count)
        in_save = what == signal.SIGKILL and number % 3 == 2
        hit = strike(processes, folder, workdir, what, in_save, draw)
        if not hit:
            statuses = wait(processes, HUNG_SECONDS)
            check(statuses == [0] * wanted.count, workdir, f"statuses {statuses}")
            break
        c.kills, c.in_saves = c.kills + 1, c.in_saves + in_save
        start = time.monotonic()
        if what == signal.SIGTERM:
            statuses = wait(processes, LEAVE_SECONDS)
            check(statuses == [0] * wanted.count, workdir, f"statuses {statuses} {LEAVE_SECONDS} s after SIGTERM")
            c.seconds.append(time.monotonic() - start)
        else:
            statuses = wait(processes, END_SECONDS)
            if wanted.count > 1:
                if None not in statuses:
                    c.seconds.append(time.monotonic() - start)
                check(0 not in statuses, workdir, f"statuses {statuses} after SIGKILL")
        for process in processes:
            process.kill()
    check(rows_of(workdir) == wanted.rows, workdir, "metrics.jsonl differs")
    check(digest(workdir) == wanted.digest, workdir, "the last checkpoint differs")
    c.ends += 1


def strike(
    processes: list["Process"], folder: Path, workdir: Path, what: signal.Signals, in_save: bool, draw: random.Random
) -> bool:
    """Sends the signal to one process at its moment; False where the training ended before."""
    target, wait_seconds, log = draw.choice(processes), draw.uniform(0, STRIKE_SECONDS), log_of(folder, workdir)
    early = what == signal.SIGKILL and draw.random() < 0.25
    skip = draw.randrange(12)  # saves that are let be
    begun, moment = log.stat().st_size, time.monotonic() + 2 * wait_seconds if early else None
    seen: set[str] = set()
    while moment is None or time.monotonic() < moment or in_save:
        if any(process.status() is not None for process in processes):
            return False
        if in_save:
            seen |= unfinished(workdir)
            if len(seen) > skip:
                break
        elif moment is None and b"\nstep " in log.read_bytes()[begun:]:
            moment = time.monotonic() + wait_seconds
        time.sleep(0.001)
    return target.send(what)


def unfinished(workdir: Path) -> set[str]:
    """Checkpoints that are being written."""
    with contextlib.suppress(OSError):
        return {name.partition(".")[0] for name in os.listdir(workdir / "checkpoints") if "tmp" in name}
    return set()


@dataclasses.dataclass
class Process:
    """A forked process."""

    pid: int
    ended: int | None = None

    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        if self.ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.ended = os.waitstatus_to_exitcode(status) if pid else None
        return self.ended

    def send(self, what: signal.Signals) -> bool:
        """False where it has ended."""
        if self.status() is not None:
            return False
        os.kill(self.pid, what)
        return True

    def kill(self) -> None:
        """Ends it, and waits for that."""
        self.send(signal.SIGKILL)
        while self.status() is None:
            time.sleep(0.001)


def log_of(folder: Path, workdir: Path) -> Path:
    """What all processes of a training print."""
    return folder / "runs" / f"{workdir.name}.log"


def begin(folder: Path, workdir: Path, count: int) -> list[Process]:
    """Starts the training on so many processes."""
    fields = CONFIG | {"data.dir": str(folder / "data"), "data.features_file": str(folder / "features.npz")}
    argv = ["train", "--config=quickstart", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items())]
    several = ["--coordinator=localhost:" + str(free_port()), f"--num-processes={count}"] if count > 1 else []
    log = log_of(folder, workdir)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"--- {count} process(es)\n")
    return [
        fork(lambda i=i: run([*argv, *several, *([f"--process-id={i}"] if several else [])]), log) for i in range(count)
    ]


def fork(action, log: Path) -> Process:
    """A process of its own that ends with what `action` returns, as a program would."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Process(pid)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(action())


def run(argv: list[str]) -> None:
    """The command, as from a shell."""
    sys.argv = ["jaxmlic", *argv]
    cli.main()


def wait(processes: list[Process], seconds: float) -> list[int | None]:
    """The exit statuses after at most so many seconds; None for one that still runs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.status() is None for process in processes):
        time.sleep(0.01)
    return [process.status() for process in processes]


def digest(workdir: Path) -> str:
    """Of all arrays of the last checkpoint, which has to be the last step's. In a process that may use JAX."""
    out = workdir / "digest"

    def action() -> int:
        checkpoints = Checkpoints(workdir, read_only=True)
        check(checkpoints.latest() == STEPS, workdir, f"its last checkpoint is of step {checkpoints.latest()}")
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        with ocp.StandardCheckpointer() as reader:
            found = reader.metadata(checkpoints.folder / str(STEPS) / "state").item_metadata.tree
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), found)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        state = checkpoints.manager.restore(STEPS, args=items)["state"]
        content = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
            content.update(f"{path} {leaf.shape} {leaf.dtype}".encode() + np.asarray(leaf).tobytes())
        out.write_text(content.hexdigest())
        return 0

    statuses = wait([fork(action, workdir / "digest.log")], HUNG_SECONDS)
    check(statuses == [0], workdir, "its last checkpoint cannot be read")
    return out.read_text()


def rows_of(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl without those of the clock."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []  # the last may be half a row
    rows = map(json.loads, lines)
    return [{k: v for k, v in row.items() if k != "img_per_s" and not k.startswith("goodput/")} for row in rows]


def check(good: bool, workdir: Path, what: str) -> None:
    if not good:
        sys.exit(f"{workdir}: {what}; see {workdir}.log")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def make_data(folder: Path) -> int:
    """96 pictures, which nobody looks at, with three labels, and features of them that tell something of the labels."""
    if (folder / "features.npz").exists():
        return 0
    rng, ids, features = np.random.default_rng(0), [], []
    encoded = cv2.imencode(".png", np.zeros((16, 16, 3), np.uint8))[1].tobytes()

    def examples(split: str, count: int):
        for number in range(count):
            labels = (rng.random(3) < 0.4).astype(np.int8)
            ids.append(f"{split}{number}")
            features.append(np.concatenate([labels + rng.normal(size=3), rng.normal(size=29)]))
            yield {"id": ids[-1], "image": encoded, "labels": labels}

    splits = {"train": examples("train", 80), "test": examples("test", 16)}
    writer.write("noise", folder / "data", ["a", "b", "c"], splits, {})
    np.savez(folder / "features.npz", features=np.array(features, np.float32), ids=np.array(ids))
    return 0


if __name__ == "__main__":
    sys.exit(main())
