"""The run folder: what a training writes so that it can be resumed, evaluated, predicted with and explained.

config.json      config, class names, a fingerprint of the training data, the classes trained
metrics.jsonl    one row a report; tensorboard/ holds the same numbers
checkpoints/     best and last (see jaxmlic.checkpoint)
result.json      written when the training is complete
scores/          score files and tables of `jaxmlic evaluate`
pseudo_labels.npz, noise.npz  the labels that were trained on, where they are not the stored ones
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic import storage
from jaxmlic.data.loader import View
from jaxmlic.errors import UserError
from jaxmlic.labels.names import check_same_classes
from jaxmlic.training import targets
from jaxmlic.training.checkpoint import FOLDER
from jaxmlic.version import __version__

CONFIG_FILE, RESULT_FILE, SCORES = "config.json", "result.json", "scores"


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What config.json holds. `trained_classes` are the names of the classes that the training split has, or None."""

    workdir: Path
    config: ConfigDict
    class_names: list[str]
    num_train: int
    fingerprint: str
    trained_classes: list[str] | None = None


def fingerprint(view: View) -> str:
    """Changes when the class names, the ids, the labels or the weights of the examples do."""
    digest = hashlib.sha256()
    for part in (*view.dataset.class_names, *view.ids.tolist()):
        digest.update(part.encode() + b"\0")
    digest.update(np.ascontiguousarray(view.labels).tobytes())
    if view.targets is not None and view.targets.weights is not None:
        digest.update(np.ascontiguousarray(view.targets.weights).tobytes())
    return digest.hexdigest()[:16]


def claim(workdir: str | Path, config: ConfigDict, train: View) -> RunRecord:
    """Writes config.json into a new folder, or checks that the one there belongs to the same config and data.

    A folder without a checkpoint (of a start that ended on a mistake) counts as new: there is nothing to lose in it.

    Raises:
      UserError: the folder is of another config (the message names the fields), other class names or other data, or
        has lost its config.json.
    """
    workdir = Path(workdir)
    names = list(train.dataset.class_names)
    trained = np.array(names)[targets.trained_classes(train)].tolist()
    run = RunRecord(workdir, config, names, len(train), fingerprint(train), trained)
    begun = any(path.name.isdigit() for path in (workdir / FOLDER).glob("*"))
    if begun:
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
        },
        remedy="use another --workdir",
    )
    return run


def load(workdir: str | Path) -> RunRecord:
    """The run in `workdir`; UserError if there is none or its config.json is damaged."""
    path = Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; --workdir must be the folder of a `jaxmlic train`")
    try:
        stored = json.loads(path.read_text())
        return RunRecord(
            Path(workdir),
            config_lib.from_dict(stored["config"]),
            list(stored["class_names"]),
            stored["num_train"],
            stored["fingerprint"],
            stored.get("trained_classes"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it or train in another --workdir") from None


def result(workdir: str | Path) -> dict | None:
    """What a complete training left in result.json; None while it is incomplete."""
    path = Path(workdir) / RESULT_FILE
    return json.loads(path.read_text()) if path.exists() else None
