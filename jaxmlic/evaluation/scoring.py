"""Scores of a whole split, and their metrics under a named protocol."""

from collections.abc import Callable
from types import ModuleType

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import metrics, progress, sharding
from jaxmlic.data import loader
from jaxmlic.errors import unknown
from jaxmlic.inputs import Inputs, eval_inputs
from jaxmlic.models.heads import contract

PredictStep = Callable[[dict, Inputs], contract.Prediction]


def make_predict_step(head: ModuleType, model: nn.Module, mesh: jax.sharding.Mesh) -> PredictStep:
    """Jitted (variables, images uint8 [B, S, S, 3] or their StoredMaps) -> Prediction, images divided over the mesh."""

    def predict(variables: dict, images: Inputs) -> contract.Prediction:
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
    bar: progress.Progress,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[contract.Prediction, np.ndarray, np.ndarray] | None:
    """Prediction (numpy, [N, ...]), labels int8 [N, C] and ids [N] of every example, padding removed.

    bar: counts the examples.
    stop: asked before each batch, by all processes; None is returned where it says so.
    """
    parts = []
    batches = loader.eval_batches(
        reader, batch_size, threads=threads, process_index=jax.process_index(), process_count=jax.process_count()
    )
    for batch in batches:
        if stop():
            return None
        arrays = sharding.put(batch, mesh)
        prediction = predict_step(variables, eval_inputs(arrays))
        keep = sharding.gather(arrays["mask"])
        prediction = jax.tree.map(lambda x, keep=keep: sharding.gather(x)[keep], prediction)
        ids = sharding.gather_text(batch["id"])[keep]
        parts.append((prediction, sharding.gather(arrays["labels"])[keep], ids))
        bar.advance(len(ids))
    predictions, labels, ids = zip(*parts, strict=True)
    return jax.tree.map(lambda *xs: np.concatenate(xs), *predictions), np.concatenate(labels), np.concatenate(ids)


def check_rules(config: ConfigDict) -> None:
    """Raises UserError for an unknown protocol, or a metric that reports do not have."""
    protocol = metrics.get_protocol(config.eval.protocol).name
    chosen = np.ones((1, 1), bool)
    numbers = metrics.evaluate(np.ones((1, 1), np.float32), np.ones((1, 1), np.int8), protocol, chosen=chosen)
    known = sorted(name for name, value in numbers.items() if isinstance(value, float))
    if config.eval.metric not in known:
        raise unknown("config.eval.metric =", config.eval.metric, known)


def report(
    config: ConfigDict, prediction: contract.Prediction, labels: np.ndarray, trained: np.ndarray | None, **rules
) -> dict:
    """`metrics.evaluate` with the run's own rules on which classes enter; of heads with paths also `path_metrics`.

    Args:
      config: of the run.
      prediction: of N examples, as numpy arrays.
      labels: int8 [N, C].
      trained: bool [C], the classes with a positive in the training split; read where the config counts no others.
      rules: in place of the config's, such as protocol or threshold.
    """
    classes = trained if config.eval.trained_classes_only else None
    given = {"protocol": config.eval.protocol, "threshold": 0.0, "min_positives": config.eval.min_positives} | rules
    numbers = metrics.evaluate(prediction.scores, labels, chosen=prediction.chosen, classes=classes, **given)
    return numbers | ({} if prediction.path is None else metrics.path_metrics(prediction.path, labels))


def validation_numbers(
    config: ConfigDict, prediction: contract.Prediction, labels: np.ndarray, trained: np.ndarray
) -> dict[str, float | str]:
    """The `report` of a run's own validation examples as a row of its log, and the threshold that suits them best."""
    numbers = report(config, prediction, labels, trained, protocol=metrics.get_protocol(config.eval.protocol).plain)
    threshold, _ = metrics.best_threshold(prediction.scores, labels)
    plain = {f"val/{k}": float(v) for k, v in numbers.items() if isinstance(v, float | np.floating)}
    return {**plain, "val/protocol": numbers["protocol"], "val/best_threshold": float(threshold)}


def as_json(numbers: dict) -> dict:
    """A report with plain numbers; undefined ones as None."""
    return {key: _plain(value) for key, value in numbers.items()}


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and value != value else value
