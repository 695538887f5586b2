"""What the trainer, the inputs and the evaluator know about a head, and nothing else.

A head module exports
  Model(num_labels, **config.model): a Flax module; `model(images, train=False, labels=None, frozen_trunk=False)` takes
    uint8 or float [B, H, W, 3] in 0..255, or `trunks.StoredMaps` in their place, and gives a dict of named outputs.
    `labels` int8 [B, C] is passed in training, for heads that read the truth (teacher forcing); padding's labels are
    all -1. `frozen_trunk` is True where no parameter of the trunk is trained; the head hands it to the trunk. `outputs`
    may hold what the loss needs beside the logits; `pooled` [B, D], where there is one, is the image's vector. Draws
    come from `make_rng("dropout")`.
  loss_fn(outputs, labels, **config.loss) -> (per-example float32 [B], dict of scalars to log). It may have a parameter
    `key`, for losses that draw at random; `apply_loss` hands it over.
  predict_fn(model, variables, images) -> Prediction.
  reads(config.model) -> Reads: what the head reads of its trunk.
and, where the model declares variables in the collection "constants" (names, shapes and dtypes by `self.variable`),
  constants(config, statistics) -> (dict of numpy arrays, list of notes): their values, from the training split, and
    lines about them for the user. They are made once, saved with every checkpoint and never trained: an order of the
    labels, an adjacency, word vectors.
and, in place of `loss_fn`, where the parameters have a closed form and training takes no steps,
  describe_fn(model, variables, images) -> a tree of float32 arrays [B, ...]: what the fit reads of each image;
  fit_fn(model, described, labels, seed, report) -> Fitted: described is that tree of all N training images, view 0 of
    each, numpy [N, ...]; labels int8 [N, C]; `report` takes lines about the progress. The Model has a field
    `num_train`, N. The trunk stays as it is;
and, where its logits are linear in the pooled vector, so that layers named `classifier` of other heads can start there,
  linear_layer(model, variables) -> {"kernel": float32 [D, C], "bias": [C]};
and, where labels can be added to a finished run, the Model has a field `added_labels`: how many each addition brought,
  the last ones of num_labels. The layer of addition i is "added_i", on the same vector as `classifier`.
and, where the head decides in steps,
  trace_fn(model, variables, images) -> Trace: what `jaxmlic predict --trace` shows of them;
  step_logits_fn(model, variables, images) -> (logits float32 [B, T, K], taken int32 [B, T]): the same steps as logits
    that can be differentiated by the images, END's among them if K = C + 1 (a softmax), else for each label alone.
and, where the head has vectors of labels,
  label_embeddings(variables) -> {name: float32 [C, D]}: the tables, rows in the order of the labels. Rows that stand
    for no label are entries of their own, [1, D]: "NAME_start", "NAME_end";
and, where images have a place among them,
  joint_embedding_fn(model, variables, images) -> (image vectors [B, E], label vectors [C, E]) of one space.

Outputs named attention_NAME [B, h, w] are a model's weights over positions, logits [B, C] its labels' scores.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import flax.linen as nn
import flax.struct
import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmlic.errors import UserError, unknown

# Pooling a map of 1 x 1 by these gives its vector again, so that the vector can be stored in place of the map.
STORABLE_POOLS = ("avg", "max", "avg_unit")


@dataclasses.dataclass(frozen=True)
class LabelStatistics:
    """What a head may know of the training split: labels int8 [N, C] in {1, 0, -1} and the class names [C]."""

    labels: np.ndarray
    class_names: list[str]


@dataclasses.dataclass(frozen=True)
class Reads:
    """What a head reads of its trunk: the feature map, pooled or position by position, or several stages.

    Attributes:
      pool: the pooling through which alone the head reads the feature map; "" where it reads positions or stages.
      stages: the stages that it reads, () for the trunk's levels; None where it reads the feature map.
      map_size: stages with more rows or columns are averaged to so many; 0 leaves them as they are.
    """

    pool: str = ""
    stages: tuple[str, ...] | None = None
    map_size: int = 0

    def check_store(self, store: str) -> None:
        """UserError unless what `config.features.store` ("pooled", "map" or "stages") keeps is what the head reads."""
        if (store == "stages") != (self.stages is not None):
            remedy = "'map' or 'pooled'" if self.stages is None else "'stages'"
            what = "the feature map" if self.stages is None else "stages of the trunk"
            raise UserError(f"config.features.store = {store!r}, but this head reads {what}: set it to {remedy}")
        if store == "pooled" and self.pool not in STORABLE_POOLS:
            what = f"this one is {self.pool!r}" if self.pool else "this head reads the positions of a map"
            raise UserError(
                f"config.features.store = 'pooled' goes with config.model.pool = 'avg', 'max' or 'avg_unit', and {what}"
                ": set config.features.store='map'"
            )


@flax.struct.dataclass
class Prediction:
    """What a head predicts for a batch.

    Attributes:
      scores: float32 [B, C] logits: what rankings and AP are made from; sigmoid(score) is the probability of the label.
      chosen: bool [B, C], the labels a decoder emitted; None where a threshold decides.
      path: int32 [B, T], the emitted order padded with C; None where there is no order.
    """

    scores: jax.Array
    chosen: jax.Array | None = None
    path: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a closed form gives.

    Attributes:
      params: the head's parameters by name, those of the trunk left out.
      scores: float32 [N, C] logits of the training images, each from a fit that had not seen it.
      numbers: to log.
      notes: lines for the user.
    """

    params: dict[str, np.ndarray]
    scores: np.ndarray
    numbers: dict[str, float]
    notes: list[str]


@flax.struct.dataclass
class Trace:
    """How a head came to its labels step by step.

    Attributes:
      probabilities: float32 [B, T, K], of every label at every step. K is C, or C + 1 with END as the last token.
      taken: int32 [B, T], the token that each step leads on with; steps after an END (K = C + 1) mean nothing.
      pooled: bool [B, T, C], where a label's score is the one of this step; None where scores are made otherwise.
      paths: int32 [B, N, L], the N best paths, padded with C; None without a search.
      log_probs: float32 [B, N], of these paths; -inf where there is none.
    """

    probabilities: jax.Array
    taken: jax.Array
    pooled: jax.Array | None = None
    paths: jax.Array | None = None
    log_probs: jax.Array | None = None


def apply_loss(
    head: ModuleType, outputs: dict, labels: jax.Array, options: Mapping, key: jax.Array
) -> tuple[jax.Array, dict]:
    """The head's `loss_fn` with the options of config.loss, and with a key where it takes one."""
    drawn = {"key": key} if "key" in inspect.signature(head.loss_fn).parameters else {}
    return head.loss_fn(outputs, labels, **drawn, **options)


def has_closed_form(head: ModuleType) -> bool:
    """Whether the head is fitted at once and not trained in steps."""
    return hasattr(head, "fit_fn")


def make_model(head: ModuleType, config: ConfigDict, num_labels: int, num_train: int) -> nn.Module:
    """The head's Model for the config, C labels and a training split of N images."""
    kept = {"num_train": num_train} if has_closed_form(head) else {}
    return head.Model(num_labels, **kept, **config.model)


def find(name: str) -> ModuleType:
    """The head module `jaxmlic.models.heads.<name>`, such as "linear" or "cnn_lstm_rmlc.path".

    UserError with the list of heads for an unknown name.
    """
    known = names()
    if name not in known:
        raise unknown("config.head =", name, known)
    return import_module(f"jaxmlic.models.heads.{name}")


def names() -> list[str]:
    """The names of all heads: files here, and files of the folders here, whose names do not begin with "_"."""
    folder = Path(__file__).parent
    paths = [path.relative_to(folder) for pattern in ("*.py", "*/*.py") for path in folder.glob(pattern)]
    public = [path for path in paths if not path.name.startswith("_") and path != Path("contract.py")]
    return sorted(".".join(path.with_suffix("").parts) for path in public)
