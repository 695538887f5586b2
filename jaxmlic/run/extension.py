"""Labels added to a finished run: units of their own beside its classifier, the rest as it is.

A unit comes from the vector that a text encoder gave the label, or in closed form from examples. It is a layer of its
own, so that the scores of the labels before it are computed as they were, to the bit.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import provenance, sharding, storage
from jaxmlic.data import datasets, loader
from jaxmlic.data.prepare.sources.files import LocalFile
from jaxmlic.data.prepare.tables import table
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.kernels import linear
from jaxmlic.models.heads import contract
from jaxmlic.run.finished import Run
from jaxmlic.training import restore, run_states, starting_point
from jaxmlic.training import state as state_lib
from jaxmlic.training.checkpoint import Checkpoints

_LEAST = 2  # positives that a closed form needs, so that one can be held out


@dataclasses.dataclass(frozen=True)
class Added:
    """What became of a run: the folder of the new one, and a line about each label."""

    workdir: Path
    notes: list[str]


def add_labels(
    workdir: str | os.PathLike,
    labels: Sequence[str],
    out: str | os.PathLike,
    *,
    vectors: str = "",
    positives: str = "",
    data: str = "",
    data_dir: str | None = None,
    scale: float = 0.0,
    bias: float = 0.0,
    report: Callable[[str], None] = lambda line: None,
) -> Added:
    """Writes the run in `workdir` with more labels into the folder `out`. Nothing of what it learned changes.

    Args:
      workdir: the run folder.
      labels: K names that the run does not have.
      out: a folder that does not exist.
      vectors: a text encoder's file, see `labels.text_vectors`; or
      positives: a folder of photographs that have the one label, beside which the run's training images are those
        without it; a table of photographs and labels (.csv, .tsv, .jsonl); or a prepared data set with the labels among
        its classes, NAME or NAME/SPLIT.
      data: name of a data set with the labels that the new run is evaluated on; "" for the run's own, where a label
        that it does not have is unknown.
      data_dir: where the data sets are, if not where the run found them.
      scale, bias: see `starting_point.text_layer`.
      report: gets lines about the progress.

    Raises:
      UserError: no run; a head that labels cannot be added to; labels that are there, or that are not in what is given;
        `out` exists; too few examples.
    """
    if bool(vectors) == bool(positives):
        raise UserError("add-label: give either --vectors=FILE or --positives=WHERE")
    out = storage.to_path(out)
    if out.exists():
        raise UserError(f"{out} exists; name a new folder with --workdir")
    if not (storage.to_path(workdir) / run_states.CONFIG_FILE).is_file():
        raise UserError(f"{os.fspath(workdir)}: no run is there; name the folder of a `jaxmlic train`")
    old = _Old(restore.restore(storage.to_path(workdir)), data_dir)
    _check(old.run, labels)
    if data:
        _check_data_set(old, data, labels)
    if vectors:
        text = old.run.config.text
        layer, notes = _from_text(old, labels, vectors, scale or text.scale, bias or text.bias)
    else:
        layer, notes = _from_examples(old, labels, positives, report)
    _write(old, labels, out, data, layer, vectors or positives)
    return Added(out, notes)


class _Old:
    """The run that labels are added to: as it was restored, as an object, and where its data sets are."""

    def __init__(self, restored: restore.Restored, data_dir: str | None):
        self.restored, self.run = restored, Run(restored, data_dir)
        self.added = restored.record.added
        self.data_dir = data_dir or self.run.config.data.dir or None


def _check(run: Run, labels: Sequence[str]) -> None:
    """UserError for a head without units of its own a label, and for labels that are there or named twice."""
    if not hasattr(contract.find(run.config.head).Model, "added_labels"):
        raise UserError(
            f"{run.workdir}: the head {run.config.head!r} has no layer 'classifier' on the image's vector alone, which "
            "labels can be added to; add them to a run of the head 'linear'"
        )
    for number, label in enumerate(labels):
        if not label.strip():
            raise UserError("add-label: a name given with --label is empty")
        if label in run.class_names:
            raise UserError(
                f"{run.workdir} has the label {label!r} already, one of {len(run.class_names)}; name another"
            )
        if label in labels[:number]:
            raise UserError(f"--label={label} is given twice; give it once")


def _check_data_set(old: _Old, name: str, labels: Sequence[str]) -> None:
    """UserError unless a prepared data set has the new labels and the classes that the run was trained on."""
    dataset = datasets.load(name, old.data_dir)
    for label in labels:
        _column(label, dataset.class_names, f"data set {name!r}")
    datasets.WithAdded(dataset, (*old.run.class_names, *labels), (*old.added, *labels))


# --- units


def _from_text(
    old: _Old, labels: Sequence[str], path: str, scale: float, bias: float
) -> tuple[dict[str, np.ndarray], list[str]]:
    model, width = old.run.config.model, len(old.restored.variables["params"]["classifier"]["kernel"])
    layer, note = starting_point.text_layer(
        path, labels, width, pool=model.pool, trunk=model.trunk, scale=scale, bias=bias
    )
    return layer, [note]


def _from_examples(
    old: _Old, labels: Sequence[str], where: str, report: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], list[str]]:
    points, truth = _examples(old, labels, where, report)
    kernels, biases, notes = [], [], []
    for label, column in zip(labels, truth.T, strict=True):
        count, others = int((column == 1).sum()), int((column == 0).sum())
        if count < _LEAST or not others:
            raise UserError(
                f"{where}: {count} images with {label!r} and {others} without; give {_LEAST} with it and one without, "
                "or more"
            )
        unit = linear.fit(points, column, old.run.config.seed)
        kernels.append(unit.kernel)
        biases.append(unit.bias)
        notes.append(
            f"{label}: {count} images with it, {others} without; ridge {unit.ridge:g}, held-out AP "
            f"{100 * unit.average_precision:.2f}"
        )
    return {"kernel": np.stack(kernels, axis=1), "bias": np.array(biases, np.float32)}, notes


def _examples(
    old: _Old, labels: Sequence[str], where: str, report: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 [N, D] of images and their labels int8 [N, K] in {1, 0, -1}."""
    run = old.run
    path = storage.to_path(where)
    if path.is_dir():
        if len(labels) > 1:
            raise UserError(f"{where}: a folder of photographs has one label; a table (.csv) can have several")
        with_it = run.photograph_features([path])
        view = loader.train_and_val(run.config.data, run.dataset, run.config.seed)[0]
        report(f"taken as without {labels[0]!r}: the {len(view):,} training images of {view.dataset.name!r}")
        without = run.image_features(view, progress=True)
        truth = np.repeat(np.array([1, 0], np.int8), [len(with_it), len(without)])
        return np.concatenate([with_it, without]), truth[:, None]
    if path.is_file():
        found = table.read(where)
        if found.problems:
            raise UserError(f"{where}: {len(found.problems)} rows are wrong, such as {found.problems[0]}; mend them")
        columns = [_column(label, found.class_names, where) for label in labels]
        rows = [row for part in found.splits.values() for row in part]
        images = [row.image.path if isinstance(row.image, LocalFile) else row.image.read() for row in rows]
        return run.photograph_features(images), np.stack([row.labels for row in rows])[:, columns]
    name, _, split = where.partition("/")
    if name not in datasets.prepared(old.data_dir):
        raise UserError(f"--positives={where}: no folder, no table and no prepared data set of that name")
    dataset = datasets.load(name, old.data_dir)
    columns = [_column(label, dataset.class_names, f"data set {name!r}") for label in labels]
    if split or set(run.class_names) - set(old.added) - set(dataset.class_names):
        view = loader.select(run.config.data, dataset, split or run.config.data.train_split)
    else:  # of a data set that the run could be of, its training part
        same = datasets.WithAdded(dataset, run.class_names, old.added)
        view = loader.train_and_val(run.config.data, same, run.config.seed)[0]
    return run.image_features(view, progress=True), dataset.labels(view.split)[view.indices][:, columns]


def _column(label: str, class_names: Sequence[str], where: str) -> int:
    if label not in class_names:
        raise UserError(f"{where} has no label {label!r}{did_you_mean(label, class_names)}; name one that it has")
    return list(class_names).index(label)


# --- the new folder


def _write(old: _Old, labels: Sequence[str], out: Path, data: str, layer: dict[str, np.ndarray], origin: str) -> None:
    """config.json, result.json and one checkpoint, of the step that the run's own is of."""
    run, record = old.run, old.restored.record
    class_names = [*run.class_names, *labels]
    before = tuple(run.config.model.get("added_labels", ()))
    name = f"added_{len(before)}"
    config = _config(run.config, (*before, len(labels)), name)
    config.data.name, config.data.dir = data or config.data.name, old.data_dir or ""
    config.lock()
    model = contract.make_model(old.restored.head, config, len(class_names), record.num_train)
    whole = sharding.replicated(old.restored.mesh)
    new = {key: jax.device_put(jnp.asarray(value, jnp.float32), whole) for key, value in layer.items()}
    variables = old.restored.variables | {"params": {**old.restored.variables["params"], name: new}}
    example = old.restored.source.example()
    tx, multipliers, _, _ = state_lib.optimizer(config, model, example, record.num_train)
    state = state_lib.from_variables(config, tx, multipliers, variables)
    checkpoints = Checkpoints(out, config.eval.metric)
    checkpoints.save(run.step, jax.device_put(dataclasses.replace(state, step=jnp.int32(run.step)), whole), None)
    checkpoints.close()
    stored = storage.read_json(run.workdir / run_states.CONFIG_FILE)
    trained = None if record.trained_classes is None else [*record.trained_classes, *labels]
    entries = [{"name": label, "from": origin, "run": str(run.workdir)} for label in labels]
    changed = {"config": config.to_dict(), "class_names": class_names, "trained_classes": trained}
    changed["added_labels"] = [*stored.get("added_labels", ()), *entries]
    changed["starts"] = [*stored.get("starts", ()), provenance.start(run.step)]
    storage.write_json(out / run_states.CONFIG_FILE, stored | changed)
    result = {"finished": True, "step": run.step, "best_step": run.step}
    storage.write_json(out / run_states.RESULT_FILE, result)


def _config(before: ConfigDict, added: tuple[int, ...], name: str) -> ConfigDict:
    """The run's config for a model with these additions, whose new layer some group of parameters matches."""
    config = ConfigDict(before.to_dict())
    config.model.added_labels = added
    if not any(re.fullmatch(pattern, f"{name}/kernel") for pattern, _ in config.optim.groups):
        config.optim.groups = (*config.optim.groups, (f"{name}/.*", 1.0))
    return config
