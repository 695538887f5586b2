"""What became of runs, from the small files of their folders alone: nothing is restored, and JAX is not imported.

running        a training holds the folder's lock
finished       the training is complete
stopped        it was begun and nobody is at it: a signal, a kill; the same command continues it
unfinished     begun and not complete, in a place without locks (a bucket): stopped or running
failed         the last start ended on an error, whose reason is kept
never started  claimed for a training that ended before its first step
damaged        what says what it is cannot be read
"""

import dataclasses
import datetime
import fcntl
import os
import statistics
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxmlic import storage
from jaxmlic.errors import UserError
from jaxmlic.progress import Progress
from jaxmlic.training import durations
from jaxmlic.training.logs import metrics_log

CONFIG_FILE, RESULT_FILE, FAILURE_FILE, GOODPUT_FILE = "config.json", "result.json", "failed.json", "goodput.json"
SCORES, CHECKPOINTS, LOCK = "scores", "checkpoints", ".lock"
RUNNING, FINISHED, STOPPED, UNFINISHED, FAILED, NEVER_STARTED, DAMAGED = (
    "running",
    "finished",
    "stopped",
    "unfinished",
    "failed",
    "never started",
    "damaged",
)
STATES = (RUNNING, FINISHED, STOPPED, UNFINISHED, FAILED, NEVER_STARTED, DAMAGED)
# What ends the names of the objects that make a checkpoint whole in s3:// and gs://.
_WHOLE = (".files.json", "/commit_success.txt")
_AT_ONCE = 16  # folders read at a time: those in buckets wait for the network


@dataclasses.dataclass(frozen=True)
class RunState:
    """A run folder.

    Attributes:
      name: its path inside the folder that was searched.
      state: one of STATES.
      reason: why it failed or is damaged, else "".
      head, dataset: of its config.
      step, steps: the steps done and those of the whole training. While it runs those logged; else those that a
        continuation would not do again.
      metric, value, protocol, split: the best validation score, a fraction, and what it is; of a run without a
        validation part that of its test split, where `jaxmlic evaluate` wrote it.
      date: of the last start, UTC; in older folders, of config.json.
      seconds: of all its starts together.
      img_per_s: training images a second, the median of the log.
    """

    name: str
    state: str
    reason: str = ""
    head: str = ""
    dataset: str = ""
    step: int | None = None
    steps: int | None = None
    metric: str = ""
    value: float | None = None
    protocol: str = ""
    split: str = ""
    date: str = ""
    seconds: float | None = None
    img_per_s: float | None = None


def find(folder: str | Path) -> list[RunState]:
    """The runs in a folder, here or in a bucket, and in the folders below it, by name ("seed10" after "seed2").

    UserError where there is no such folder.
    """
    top = storage.to_path(folder)
    if storage.is_bucket(top):
        found = dict(_in_bucket(top))
        if not found:
            raise UserError(f"{folder}: nothing is there")
    elif not top.is_dir():
        raise UserError(f"{folder}: {'a file, not a folder' if top.exists() else 'no such folder'}")
    else:
        found = dict(_here(top))
    names = {name: files for name, files in found.items() if _is_run(files)}
    with ThreadPoolExecutor(_AT_ONCE) as pool, Progress("reading", len(names), "runs", transient=True) as bar:
        states = []
        for state in pool.map(lambda name: state_of(top, name, names[name]), names):
            bar.advance()
            states += [state] if state else []
    return sorted(states, key=lambda one: natural(one.name))


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in a text by their value."""
    parts = [""]
    for letter in text:
        if letter.isdecimal() == parts[-1][-1:].isdecimal():
            parts[-1] += letter
        else:
            parts.append(letter)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _here(top: Path) -> Iterator[tuple[str, set[str]]]:
    """(folder's name, names of its files, those of scores/ and checkpoints/ too) below a local folder."""
    for place, folders, files in os.walk(top):
        names = set(files)
        if CHECKPOINTS in folders:
            names |= {f"{CHECKPOINTS}/{entry.name}" for entry in os.scandir(os.path.join(place, CHECKPOINTS))}
        for deep, _, inner in os.walk(os.path.join(place, SCORES)):  # a split's name may have a slash
            names |= {os.path.relpath(os.path.join(deep, one), place) for one in inner}
        folders[:] = [one for one in folders if one not in (SCORES, CHECKPOINTS) and not one.startswith(".")]
        yield os.path.relpath(place, top), names


def _in_bucket(top: Path) -> Iterator[tuple[str, set[str]]]:
    """As `_here`, of a bucket's objects."""
    found: dict[str, set[str]] = {}
    for name in storage.listing(top):
        parts = name.split("/")
        depth = next((i for i, part in enumerate(parts[:-1]) if part in (SCORES, CHECKPOINTS)), len(parts) - 1)
        found.setdefault("/".join(parts[:depth]) or ".", set()).add("/".join(parts[depth:]))
    yield from found.items()


def _is_run(files: Collection[str]) -> bool:
    return CONFIG_FILE in files or FAILURE_FILE in files or bool(_checkpoints(files))


def _checkpoints(files: Collection[str]) -> list[int]:
    """The steps of whole checkpoints: local folders have their names last, in buckets an object is written last."""
    names = [name.removeprefix(f"{CHECKPOINTS}/") for name in files if name.startswith(f"{CHECKPOINTS}/")]
    for end in _WHOLE:
        names += [name.removesuffix(end) for name in names if name.endswith(end)]
    return sorted({int(name) for name in names if name.isdecimal()})


def state_of(top: Path, name: str, files: Collection[str]) -> RunState | None:
    """The state of the run in a folder that holds these files; None where config.json is another program's.

    Args:
      top: the folder that was searched.
      name: of the run's folder in it, "." for itself.
      files: their names, as `scores/test.npz` and `checkpoints/100` too.
    """
    folder = top if name == "." else top / name
    steps, failure = _checkpoints(files), {}
    try:
        if FAILURE_FILE in files:
            failure = _object(folder / FAILURE_FILE)
        if CONFIG_FILE not in files:
            if failure:
                return RunState(name, FAILED, failure["reason"])
            return RunState(name, DAMAGED, f"checkpoints without {CONFIG_FILE}", step=steps[-1])
        stored = _object(folder / CONFIG_FILE)
        if "config" not in stored and "fingerprint" not in stored:
            return None
        result = _object(folder / RESULT_FILE) if RESULT_FILE in files else None
        rows = metrics_log.read(folder) if metrics_log.METRICS_FILE in files else []
        config = stored["config"]
        known = RunState(name, DAMAGED, head=config["head"], dataset=config["data"]["name"])
        known = dataclasses.replace(known, **_times(folder, stored, files, rows))
        known = dataclasses.replace(known, **_best(folder, config, files, rows))
        total = durations.steps(
            config["train"]["duration"],
            examples=stored["num_train"],
            batch_size=config["train"]["batch_size"],
            field="train.duration",
        )
    except UserError as error:
        return RunState(name, DAMAGED, str(error).removeprefix(f"{folder}{os.sep}"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return RunState(name, DAMAGED, f"{CONFIG_FILE} lacks what a run needs ({type(error).__name__}: {error})")
    tested = f"{SCORES}/{config['data'].get('test_split')}.{config['eval'].get('protocol')}.json"
    lock = None if storage.is_bucket(folder) else is_locked(folder)
    done = max(steps, default=0) if result is None else total  # "step" in result.json is the best one's
    if result is not None and not (failure and tested not in files):
        state = FINISHED
    elif lock:
        state, done = RUNNING, max([done, *(row["step"] for row in rows[-1:])])
    elif failure:
        state = FAILED
    elif not (stored.get("starts") or rows or steps):
        state = NEVER_STARTED
    else:
        state = UNFINISHED if lock is None else STOPPED
    reason = failure["reason"] if state == FAILED else ""
    return dataclasses.replace(known, state=state, reason=reason, step=done, steps=total)


def is_locked(folder: Path) -> bool | None:
    """Whether a training holds the lock of a local run folder; None where that cannot be known."""
    try:
        file = (folder / LOCK).open(encoding="utf-8")
    except FileNotFoundError:
        return False
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for an instant: a training that starts now tries again
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return None
    return False


def _object(path: Path) -> dict[str, Any]:
    found = storage.read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: no JSON object")
    return found


def _times(folder: Path, stored: Mapping, files: Collection[str], rows: list[dict]) -> dict[str, Any]:
    """Date, seconds and speed."""
    starts = stored.get("starts") or []
    if starts:
        date = starts[-1]["time"]
    else:
        time = (
            (folder / CONFIG_FILE).stat().mtime if storage.is_bucket(folder) else os.path.getmtime(folder / CONFIG_FILE)
        )
        date = datetime.datetime.fromtimestamp(time, datetime.UTC).isoformat(timespec="seconds")
    seconds = None
    if GOODPUT_FILE in files:
        saved = _object(folder / GOODPUT_FILE)
        last = saved[max(saved, key=int)]["seconds"] if saved else {}
        seconds = sum(value for kind, value in last.items() if kind != "away") or None
    speeds = [row["img_per_s"] for row in rows if row.get("img_per_s")]
    return {"date": date, "seconds": seconds, "img_per_s": statistics.median(speeds) if speeds else None}


def _best(folder: Path, config: Mapping, files: Collection[str], rows: list[dict]) -> dict[str, Any]:
    """The best score and what it is; {} without one."""
    metric = config["eval"]["metric"]
    row = metrics_log.best(rows, metric)
    if row:
        return {
            "metric": metric,
            "value": row[f"val/{metric}"],
            "protocol": row["val/protocol"],
            "split": "validation",
        }
    split, protocol = config["data"]["test_split"], config["eval"]["protocol"]
    path = f"{SCORES}/{split}.{protocol}.json"
    value = _object(folder / path).get(metric) if path in files else None
    return {} if value is None else {"metric": metric, "value": value, "protocol": protocol, "split": split}
