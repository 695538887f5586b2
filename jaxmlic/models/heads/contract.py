"""What the trainer and the evaluator know about a head, and nothing else.

A head module exports
  Model(num_labels, **config.model): a Flax module; `model(images, train=False, labels=None)` takes uint8 or float
    [B, H, W, 3] in 0..255, or `trunks.Features` in their place, and gives a dict of named outputs. `labels` int8 [B, C]
    is passed in training, for heads that read the truth (teacher forcing); padding's labels are all -1. `outputs` may
    hold what the loss needs beside the logits. Draws come from `make_rng("dropout")`.
  loss_fn(outputs, labels, **config.loss) -> (per-example float32 [B], dict of scalars to log).
  predict_fn(model, variables, images) -> Prediction.
and, where the model declares variables in the collection "constants" (names, shapes and dtypes by `self.variable`),
  constants(config, facts) -> dict of numpy arrays: their values, from the training split. They are made once, saved
    with every checkpoint and never trained: an order of the labels, an adjacency, word vectors.
and, where the head decides in steps,
  trace_fn(model, variables, images) -> Trace: what `jaxmlic predict --trace` shows of them.
"""

import dataclasses
from importlib import import_module
from pathlib import Path
from types import ModuleType

import flax.struct
import jax
import numpy as np

from jaxmlic.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a head may know of the training split: labels int8 [N, C] in {1, 0, -1} and the class names [C]."""

    labels: np.ndarray
    class_names: list[str]


@flax.struct.dataclass
class Prediction:
    """What a head says about a batch.

    Attributes:
      scores: float32 [B, C] logits: what rankings and AP are made from; sigmoid(score) is the probability of the label.
      chosen: bool [B, C], the labels a decoder emitted; None where a threshold decides.
      path: int32 [B, T], the emitted order padded with C; None where there is no order.
    """

    scores: jax.Array
    chosen: jax.Array | None = None
    path: jax.Array | None = None


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


def find(name: str) -> ModuleType:
    """The head module `jaxmlic.models.heads.<name>`; UserError with the list of heads for an unknown name."""
    known = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "contract"))
    if name not in known:
        raise UserError(f"config.head = {name!r} is unknown{did_you_mean(name, known)}; heads: {', '.join(known)}")
    return import_module(f"jaxmlic.models.heads.{name}")
