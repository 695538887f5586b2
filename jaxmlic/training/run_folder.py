"""The run folder: what a training writes so that it can be resumed, evaluated, predicted with and explained.

config.json      config, class names, a fingerprint of the training data, the classes trained, and every start of the
                 training: time, step, host, devices, command, versions, commit
goodput.json     where the time went until the last saves
profile/         a trace, where one was asked for
metrics.jsonl    one row a report; tensorboard/ holds the same numbers
checkpoints/     the best and the last two (see jaxmlic.training.checkpoint)
result.json      written when the training is complete
failed.json      why the last start ended on an error, removed by the next one
learning_curves.png  the numbers of metrics.jsonl
scores/          score files and tables of `jaxmlic evaluate`
pseudo_labels.npz, noise.npz  the labels that were trained on, where they are not the stored ones
.lock            held while it is trained
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic import distributed, provenance, storage
from jaxmlic.data.loader import View
from jaxmlic.errors import UserError
from jaxmlic.labels.names import check_same_classes
from jaxmlic.training import targets
from jaxmlic.training.run_states import CHECKPOINTS, CONFIG_FILE, FAILURE_FILE, LOCK, RESULT_FILE
from jaxmlic.training.run_states import SCORES as SCORES
from jaxmlic.version import __version__

_MOST_REASON = 1000  # characters of a reason that are kept
_PATIENCE = (0.05, 0.2)  # seconds before the lock is tried again: `jaxmlic runs` holds it for an instant


def scores_file(workdir: str | Path, split: str, kind: str = "") -> Path:
    """Where a run keeps the scores of a split.

    kind: "" for the run's own decisions; "fitted" or a protocol with a learned rule for theirs; "out_of_fold" for the
        held-out scores of the training images.
    """
    return storage.to_path(workdir) / SCORES / f"{split}{'.' if kind else ''}{kind}.npz"


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What config.json holds. `trained_classes` are the names of the classes that the training split has, or None;
    `inputs` is the fingerprint of what its images were read from (`Source.fingerprint`), "" in older folders; `added`
    are the class names that `jaxmlic add-label` added, the last ones of `class_names`."""

    workdir: Path
    config: ConfigDict
    class_names: list[str]
    num_train: int
    fingerprint: str
    trained_classes: list[str] | None = None
    inputs: str = ""
    added: tuple[str, ...] = ()


def fingerprint(view: View) -> str:
    """Changes when the class names, the ids, the labels or the weights of the examples do."""
    digest = hashlib.sha256()
    for part in (*view.dataset.class_names, *view.ids.tolist()):
        digest.update(part.encode() + b"\0")
    digest.update(np.ascontiguousarray(view.labels).tobytes())
    if view.targets is not None and view.targets.weights is not None:
        digest.update(np.ascontiguousarray(view.targets.weights).tobytes())
    return digest.hexdigest()[:16]


def must_agree(config: ConfigDict, train: View, workdir: str | Path) -> dict[str, str]:
    """What all processes of a run must have alike, as text by name: folder, config, versions, data."""
    values = {"--workdir": str(storage.resolve(workdir))}
    values |= {f"config.{name}": repr(value) for name, value in config_lib.flatten(config).items()}
    values |= {f"the version of {name}": version for name, version in provenance.versions().items()}
    return values | {f"data set {train.dataset.name!r}, split {train.split!r}": fingerprint(train)}


def lock(workdir: str | Path) -> contextlib.AbstractContextManager:
    """Keeps a second training out of the folder until it is closed, or its process ends in any way.

    There are no locks in buckets: there nobody is kept out.
    Raises UserError where there is another, and where the folder cannot be made.
    """
    if not distributed.is_main() or storage.is_bucket(workdir):
        return contextlib.ExitStack()
    path = storage.to_path(workdir) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({storage.reason(error)}); use another --workdir") from None
    try:
        _take(file)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().decode().strip()
        file.close()
        raise UserError(f"{workdir} is being trained by another process ({owner}); use another --workdir") from None
    except OSError:  # a file system without locks
        return file
    with contextlib.suppress(OSError):  # on a full disk nobody is named, and the lock is held all the same
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def _take(file: IO) -> None:
    for seconds in _PATIENCE:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(seconds)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def claim(workdir: str | Path, config: ConfigDict, train: View, inputs: str = "") -> RunRecord:
    """Writes config.json into a new folder, or checks that the one there belongs to the same config and data.

    A folder without a checkpoint (of a start that ended on a mistake) counts as new: there is nothing to lose in it.
    inputs: fingerprint of what is read for the training images.

    Raises:
      UserError: the folder is of another config (the message names the fields), other class names or other data, or
        has lost its config.json.
    """
    workdir = storage.to_path(workdir)
    names = list(train.dataset.class_names)
    trained = np.array(names)[targets.trained_classes(train)].tolist()
    run = RunRecord(workdir, config, names, len(train), fingerprint(train), trained, inputs)
    if _is_begun(workdir):
        if not (workdir / CONFIG_FILE).exists():
            raise UserError(
                f"{workdir} holds checkpoints but no {CONFIG_FILE}, which says what they are of: remove it, or use "
                "another --workdir"
            )
        old = load(workdir)
        changed = config_lib.differences(old.config.to_dict(), config)
        if changed:
            raise UserError(
                f"{workdir} is the run of another config ({'; '.join(changed[:5])}"
                f"{f'; and {len(changed) - 5} more' if len(changed) > 5 else ''}); "
                "use another --workdir or those values"
            )
        check_same_classes(old.class_names, run.class_names, str(workdir), f"data set {train.dataset.name!r}")
        if old.fingerprint != run.fingerprint:
            raise UserError(
                f"{workdir} was trained on other examples or labels than data set {train.dataset.name!r} now holds; "
                "use another --workdir or prepare the data as it was"
            )
        if old.inputs and old.inputs != run.inputs:
            raise UserError(
                f"{workdir} was trained on other images or features than its data set or features file "
                "now holds, under the same names and labels; use another --workdir or bring back what was there"
            )
        return run
    storage.write_json(
        workdir / CONFIG_FILE,
        {
            "jaxmlic": __version__,
            "config": config.to_dict(),
            "class_names": run.class_names,
            "num_train": run.num_train,
            "fingerprint": run.fingerprint,
            "trained_classes": run.trained_classes,
            "inputs": run.inputs,
            "starts": _starts(workdir),
        },
        remedy="use another --workdir",
    )
    return run


def check_shared(workdir: str | Path, seconds: float = 30.0) -> None:
    """UserError where this process of several does not see the config.json that the first one has written.

    seconds: until a network file system has shown it.
    """
    path, end = storage.to_path(workdir) / CONFIG_FILE, time.monotonic() + seconds
    while distributed.count() > 1 and not path.exists():
        if time.monotonic() > end:
            raise UserError(f"{workdir} is not the folder that process 0 has made: all hosts must share --workdir")
        time.sleep(0.2)


def _is_begun(workdir: Path) -> bool:
    return any(path.name.isdigit() for path in (workdir / CHECKPOINTS).glob("*"))


def changed(workdir: str | Path, config: ConfigDict) -> list[str]:
    """What differs from the config of the run in `workdir`, as `config.differences`; [] where none has begun."""
    workdir = storage.to_path(workdir)
    if not (_is_begun(workdir) and (workdir / CONFIG_FILE).exists()):
        return []
    return config_lib.differences(load(workdir).config.to_dict(), config)


def note_start(workdir: str | Path, step: int) -> None:
    """Adds a start, or a continuation from `step`, to config.json; an earlier failure is forgotten."""
    forget_failure(workdir)
    path = storage.to_path(workdir) / CONFIG_FILE
    storage.write_json(path, storage.read_json(path) | {"starts": [*_starts(workdir), provenance.start(step)]})


def note_failure(workdir: str | Path, reason: str) -> None:
    """Keeps why a run failed, for tables and other workers of a sweep."""
    storage.write_json(storage.to_path(workdir) / FAILURE_FILE, {"reason": reason, "time": time.time()})


def failure(workdir: str | Path) -> dict | None:
    """{"reason": ..., "time": ...} of a run that failed, else None."""
    path = storage.to_path(workdir) / FAILURE_FILE
    try:
        return storage.read_json(path) if path.exists() else None
    except UserError:  # another worker removes it before it tries again
        return None


def forget_failure(workdir: str | Path) -> None:
    """Before another try."""
    (storage.to_path(workdir) / FAILURE_FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def noting_failure(workdir: str | Path) -> Iterator[None]:
    """Keeps the reason of an error that ends the block; the error goes on."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(UserError):  # such as a full disk, which the error may be about
            note_failure(workdir, storage.reason(error)[:_MOST_REASON])
        raise


def _starts(workdir: str | Path) -> list[dict]:
    """Those of config.json; none where it is not there, damaged or older."""
    try:
        return list(storage.read_json(storage.to_path(workdir) / CONFIG_FILE).get("starts", []))
    except (UserError, AttributeError, TypeError):
        return []


def load(workdir: str | Path) -> RunRecord:
    """The run in `workdir`; UserError if there is none or its config.json is damaged."""
    path = storage.to_path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: the run must be the folder of a `jaxmlic train`")
    try:
        stored = json.loads(path.read_text())
        return RunRecord(
            path.parent,
            config_lib.from_dict(stored["config"]),
            list(stored["class_names"]),
            stored["num_train"],
            stored["fingerprint"],
            stored.get("trained_classes"),
            stored.get("inputs", ""),
            tuple(one["name"] for one in stored.get("added_labels", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it or train in another --workdir") from None


def result(workdir: str | Path) -> dict | None:
    """What a complete training left in result.json; None while it is incomplete."""
    path = storage.to_path(workdir) / RESULT_FILE
    return json.loads(path.read_text()) if path.exists() else None
