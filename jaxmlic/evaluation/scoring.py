"""Scores of a whole split, and their metrics under a named protocol: `jaxmlic evaluate`. Restores; never trains."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import metrics, sharding
from jaxmlic.data import datasets, loader
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.evaluation import score_file
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.inputs import cache as cache_lib
from jaxmlic.inputs.images import ImageReader
from jaxmlic.labels.names import check_same_classes
from jaxmlic.models import trunks
from jaxmlic.models.heads import contract
from jaxmlic.propagation import label_file
from jaxmlic.reports import ap_table
from jaxmlic.training import run_folder
from jaxmlic.training import state as state_lib
from jaxmlic.training.checkpoint import Checkpoints

PredictStep = Callable[[dict, jax.Array], contract.Prediction]


def make_predict_step(head: ModuleType, model: nn.Module, mesh: jax.sharding.Mesh) -> PredictStep:
    """Jitted (variables, images uint8 [B, S, S, 3] or their StoredMaps) -> Prediction, images divided over the mesh."""

    def predict(variables: dict, images: jax.Array | trunks.StoredMaps) -> contract.Prediction:
        return head.predict_fn(model, variables, images)

    return jax.jit(
        predict, in_shardings=(sharding.replicated(mesh), sharding.split(mesh)), out_shardings=sharding.split(mesh)
    )


def batch_size_for(config: ConfigDict, mesh: jax.sharding.Mesh) -> int:
    """The evaluation batch, rounded up to a multiple of the devices (padding is masked, so the result is the same)."""
    wanted = config.train.eval_batch_size or config.train.batch_size
    return -(-wanted // mesh.size) * mesh.size


def score(
    predict_step: PredictStep,
    variables: dict,
    reader: loader.RowReader,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int,
    threads: int,
) -> tuple[contract.Prediction, np.ndarray, np.ndarray]:
    """Prediction (numpy, [N, ...]), labels int8 [N, C] and ids [N] of every example, padding removed."""
    parts = []
    batches = loader.eval_batches(
        reader, batch_size, threads=threads, process_index=jax.process_index(), process_count=jax.process_count()
    )
    for batch in batches:
        arrays = sharding.put(batch, mesh)
        prediction = predict_step(variables, cache_lib.inputs(arrays))
        keep = sharding.gather(arrays["mask"])
        prediction = jax.tree.map(lambda x, keep=keep: sharding.gather(x)[keep], prediction)
        ids = sharding.gather_text(batch["id"])[keep]
        parts.append((prediction, sharding.gather(arrays["labels"])[keep], ids))
    predictions, labels, ids = zip(*parts, strict=True)
    return jax.tree.map(lambda *xs: np.concatenate(xs), *predictions), np.concatenate(labels), np.concatenate(ids)


def check_rules(config: ConfigDict) -> None:
    """Raises UserError for an unknown protocol, or a metric that reports do not have."""
    protocol = metrics.get_protocol(config.eval.protocol).name
    chosen = np.ones((1, 1), bool)
    numbers = metrics.evaluate(np.ones((1, 1), np.float32), np.ones((1, 1), np.int8), protocol, chosen=chosen)
    known = sorted(name for name, value in numbers.items() if isinstance(value, float))
    if config.eval.metric not in known:
        hint = did_you_mean(config.eval.metric, known)
        raise UserError(f"config.eval.metric = {config.eval.metric!r} is unknown{hint}; metrics: {', '.join(known)}")


def report(config: ConfigDict, prediction: contract.Prediction, labels: np.ndarray, train: loader.View, **kw) -> dict:
    """`metrics.evaluate` with the run's own rules on which classes enter; `kw` overrides (protocol, threshold)."""
    classes = trained_classes(config, train)
    rules = {"protocol": config.eval.protocol, "threshold": 0.0, "min_positives": config.eval.min_positives} | kw
    return metrics.evaluate(prediction.scores, labels, chosen=prediction.chosen, classes=classes, **rules)


def trained_classes(config: ConfigDict, train: loader.View) -> np.ndarray | None:
    """bool [C], classes with a positive in the training split as stored; None where the metrics count all classes."""
    return (train.stored_labels == 1).any(axis=0) if config.eval.trained_classes_only else None


def restore_variables(run: run_folder.Run, model: nn.Module, mesh: jax.sharding.Mesh) -> tuple[dict, int]:
    """Variables of the run's best checkpoint (averaged parameters where the run keeps them), and its step."""
    checkpoints = Checkpoints(run.workdir, run.config.eval.metric, read_only=True)
    step = checkpoints.best()
    if step is None:
        checkpoints.close()
        raise UserError(f"{run.workdir} holds no finished checkpoint yet; let the training reach its first one")
    state = checkpoints.restore(step, state_lib.abstract(run.config, model, run.num_train, mesh))
    checkpoints.close()
    return state_lib.eval_variables(state), step


def run(workdir: str, *, protocol: str | None = None, split: str | None = None, data_dir: str | None = None) -> dict:
    """Scores `split` with the best checkpoint, writes scores/<split>.* and returns the report.

    Raises UserError for a folder without a run, another model's checkpoint, class names that differ.
    """
    found = run_folder.load(workdir)
    config = found.config
    sharding.use_cpu_devices(config.train.cpu_devices, config.train.batch_size)
    protocol = metrics.get_protocol(protocol or config.eval.protocol).name
    split = split or config.data.test_split
    dataset = datasets.load(config.data.name, data_dir or config.data.dir or None)
    check_same_classes(found.class_names, dataset.class_names, str(workdir), f"data set {dataset.name!r}")
    train_view, _ = label_file.training_views(config, dataset, workdir, restored=True)
    view = loader.find_view(config.data, dataset, config.seed, split)

    head = contract.find(config.head)
    model = head.Model(len(found.class_names), **config.model)
    mesh = sharding.make_mesh()
    variables, step = restore_variables(found, model, mesh)
    reader = cache_lib.find(view, config) or ImageReader(view, config.data.image_size)
    predict_step = make_predict_step(head, model, mesh)
    prediction, labels, ids = score(
        predict_step,
        variables,
        reader,
        mesh,
        batch_size=batch_size_for(config, mesh),
        threads=config.data.threads,
    )
    numbers = report(config, prediction, labels, train_view, protocol=protocol)
    if jax.process_index() == 0:
        extra = {"step": step}
        classes = trained_classes(config, train_view)
        if classes is not None:  # a reader of the score file cannot know the training split
            extra["untrained_classes"] = np.array(found.class_names)[~classes].tolist()
        write(found, split, prediction, labels, ids, numbers, extra)
    return numbers


def write(
    found: run_folder.Run,
    split: str,
    prediction: contract.Prediction,
    labels: np.ndarray,
    ids: np.ndarray,
    numbers: dict,
    extra: dict,
) -> None:
    """scores/<split>.npz with the report beside it; prints the report."""
    scores = ScoreFile(
        scores=np.asarray(prediction.scores, np.float32),
        labels=labels,
        ids=ids,
        class_names=found.class_names,
        config=found.config.to_dict(),
        protocol=numbers["protocol"],
        split=split,
        threshold=numbers["threshold"],
        chosen=prediction.chosen,
        extra=extra,
    )
    print(ap_table.text(numbers, found.class_names, labels))
    save(found.workdir / run_folder.SCORES / f"{split}.npz", scores, numbers, {"split": split, "step": extra["step"]})


def save(path: Path, scores: ScoreFile, numbers: dict, facts: dict) -> None:
    """Writes `path`, STEM.npz, and beside it STEM.<protocol>.json (numbers and `facts`), .csv and .png; says so."""
    score_file.save(path, scores)
    stem = path.with_suffix("").as_posix() + f".{numbers['protocol']}"
    run_folder.write_json(Path(f"{stem}.json"), as_json(numbers) | facts)
    ap_table.write_csv(f"{stem}.csv", numbers, scores.class_names, scores.labels)
    ap_table.plot(f"{stem}.png", numbers, scores.class_names, scores.labels)
    print(f"\nwritten: {path} and {stem}.{{json,csv,png}}")


def as_json(numbers: dict) -> dict:
    """The report with plain numbers; undefined ones as None."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            return [plain(v) for v in value.tolist()]
        if isinstance(value, np.generic):
            value = value.item()
        return None if isinstance(value, float) and value != value else value

    return {key: plain(value) for key, value in numbers.items()}
