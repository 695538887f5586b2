"""Label sets as paths: the label orders for training sequence models, and two alignments with the model's predictions.

A path is int32 [T]: the labels of an image in some order, then END (index C) up to its length. A model trained on it
gives T + 1 distributions over C + 1 tokens, the last of them after T labels. The orders, which depend on the training
split alone, are computed once on the host; `paths` and the functions after it run inside the training step.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmlic.errors import unknown
from jaxmlic.labels.stratify import counts

Array = jax.Array

ORDERS = ("frequent_first", "rare_first", "lexicographic", "fixed_random", "random_per_batch")

# Costs are clipped here (a probability of e^-1000): the algorithm below subtracts them, and infinities would give NaN.
_HIGHEST_COST = 1000.0


def frequent_first(labels: np.ndarray) -> np.ndarray:
    """Classes by falling number of positives in labels int8 [N, C], equal ones by index: int32 [C]."""
    return np.argsort(-counts(labels)[0], kind="stable").astype(np.int32)


def rare_first(labels: np.ndarray) -> np.ndarray:
    """Classes by rising number of positives in labels int8 [N, C], equal ones by index: int32 [C]."""
    return np.argsort(counts(labels)[0], kind="stable").astype(np.int32)


def lexicographic(class_names: Sequence[str]) -> np.ndarray:
    """Classes by name, by code points and upper case before lower, equal ones by index: int32 [C]."""
    return np.array(sorted(range(len(class_names)), key=class_names.__getitem__), np.int32)


def fixed_random(num_labels: int, seed: int) -> np.ndarray:
    """One order for the whole training, drawn from a seed: int32 [C]."""
    return np.random.default_rng(seed).permutation(num_labels).astype(np.int32)


def order_fn(name: str, labels: np.ndarray, class_names: Sequence[str], seed: int) -> Callable[[Array], Array]:
    """The function key -> int32 [C] that gives the order of classes, first to last, for a batch.

    Only "random_per_batch" uses the key; all images of a batch share an order (CNN-RNN, section 3.4).

    Args:
      name: one of ORDERS; "frequent_first" is the paper's.
      labels: int8 [N, C] of the training split, in {1, 0, -1}.
      class_names: [C].
      seed: of "fixed_random".

    Raises:
      UserError: no such order.
    """
    if name not in ORDERS:
        raise unknown("label order", name, ORDERS)
    if name == "random_per_batch":
        return lambda key: jax.random.permutation(key, len(class_names)).astype(jnp.int32)
    order = {
        "frequent_first": lambda: frequent_first(labels),
        "rare_first": lambda: rare_first(labels),
        "lexicographic": lambda: lexicographic(class_names),
        "fixed_random": lambda: fixed_random(len(class_names), seed),
    }[name]()
    return lambda key: jnp.asarray(order)


def training_order(
    name: str, max_length: int, labels: np.ndarray, class_names: Sequence[str], seed: int
) -> tuple[np.ndarray, list[str]]:
    """An order fixed for a training, int32 [C], and a note on how many training paths are cut, [] if none.

    The order that "random_per_batch" draws from is frequent-first. Args: as for `order_fn`; max_length: of a path.
    """
    fixed = "frequent_first" if name == "random_per_batch" else name
    order = np.asarray(order_fn(fixed, labels, class_names, seed)(jax.random.key(0)))
    cut = int(np.sum((labels == 1).sum(axis=1) > max_length))
    note = (
        f"{cut} of {len(labels)} training images have more than config.model.max_length = {max_length} labels: "
        "what comes after these in the order is cut from their paths"
    )
    return order, [note] if cut else []


def paths(labels: Array, order: Array, max_length: int) -> Array:
    """The positive labels of each image in an order, then END: int32 [B, T]. An image without any is END alone.

    Args:
      labels: int [B, C] in {1, 0, -1}; -1 (unknown) is on no path.
      order: int [C], classes from first to last.
      max_length: T; where an image has more labels, the last ones in the order are cut, see `is_cut`.

    Raises:
      ValueError: max_length is below 1.
    """
    if max_length < 1:
        raise ValueError(f"max_length {max_length} is below 1")
    num_labels = labels.shape[1]
    chex.assert_shape(order, (num_labels,))
    place = jnp.argsort(order).astype(jnp.int32)  # [C], of each class in the order
    places = jnp.where(labels == 1, place[None], num_labels)  # [B, C]
    first = -jax.lax.top_k(-places, min(max_length, num_labels))[0]  # [B, min(T, C)], rising
    found = jnp.append(order, num_labels).astype(jnp.int32)[first]  # [B, min(T, C)]
    return jnp.pad(found, ((0, 0), (0, max(max_length - num_labels, 0))), constant_values=num_labels)


def is_cut(labels: Array, max_length: int) -> Array:
    """Which images have more positive labels than a path can hold: bool [B], from labels int [B, C]."""
    return (labels == 1).sum(axis=-1) > max_length


def path_cross_entropy(log_probs: Array, paths: Array) -> Array:
    """Minus the log-probability of each path and the END after it (CNN-RNN, section 3.4), the sum over its tokens.

    Args:
      log_probs: float [B, T + 1, C + 1], log-softmax of the logits at each step.
      paths: int [B, T].

    Returns:
      float32 [B].
    """
    _check_steps(log_probs, paths)
    end = log_probs.shape[-1] - 1
    tokens = jnp.pad(paths, ((0, 0), (0, 1)), constant_values=end)  # [B, T + 1]
    chosen = jnp.take_along_axis(log_probs.astype(jnp.float32), tokens[..., None], axis=-1)[..., 0]  # [B, T + 1]
    length = (paths != end).sum(axis=1, keepdims=True)  # [B, 1]
    return -jnp.sum(chosen, axis=1, where=jnp.arange(tokens.shape[1])[None] <= length)


def minimal_loss_alignment(log_probs: Array, paths: Array) -> Array:
    """MLA: the labels of each path in the order with the least cross-entropy (Yazici et al., 2019).

    The labels stay in the first steps, END in the step after them. `path_cross_entropy` of the result is the loss; no
    gradient flows through the choice.

    Args:
      log_probs: float [B, T + 1, C + 1], from a model that reads its own predictions.
      paths: int [B, T], in any order.

    Returns:
      int32 [B, T].
    """
    _check_steps(log_probs, paths)
    return jax.vmap(_align)(log_probs, paths, jnp.zeros((*paths.shape, paths.shape[1]), bool))


def predicted_label_alignment(log_probs: Array, paths: Array, read: Array) -> Array:
    """PLA: a label that the model predicts is assigned to that step, the others as in MLA to the steps left.

    The prediction is the label that the model read next: with masked repeats the most probable label that was left. A
    label read twice is assigned to the first of these steps. Otherwise as minimal_loss_alignment, whose cross-entropy
    is never above that of PLA. (In the authors' released code, a label predicted only after the last step of an image's
    labels keeps its arbitrary place; here, as in their text, it is one of the others.)

    Args:
      log_probs, paths: as for minimal_loss_alignment.
      read: int [B, T], the label that each of the first T steps found and the next one read.
    """
    _check_steps(log_probs, paths)
    chex.assert_equal_shape([read, paths])
    num_labels = log_probs.shape[-1] - 1
    taken = (read[:, :, None] == paths[:, None, :]) & (paths != num_labels)[:, None, :]  # [B, step, label]
    taken &= (paths != num_labels)[:, :, None]  # steps after an image's last label are not assigned
    taken &= jnp.cumsum(taken, axis=1) == 1  # the first step of several
    return jax.vmap(_align)(log_probs, paths, taken)


def _align(log_probs: Array, path: Array, fixed: Array) -> Array:
    """The order of one path int [T] with the least cost, given the labels fixed to steps, bool [step, label]."""
    end = log_probs.shape[-1] - 1
    cost = -jax.lax.stop_gradient(log_probs[:-1].astype(jnp.float32))[:, path].clip(min=-_HIGHEST_COST)  # [step, label]
    real = path != end  # [T], of steps and of labels, as labels come first
    allowed = real[:, None] == real[None, :]
    # A fixed pair rules out the rest of its row and of its column.
    allowed &= (fixed.any(axis=1, keepdims=True) == fixed) & (fixed.any(axis=0, keepdims=True) == fixed)
    cost = jnp.where(real[:, None] & ~fixed, cost, 0.0)
    # Above the sum of all allowed costs, but close to it: the algorithm adds and subtracts it in float32.
    cost = jnp.where(allowed, cost, 1.0 + path.shape[0] * jnp.max(cost, where=allowed, initial=0.0))
    step, label = optax.assignment.hungarian_algorithm(cost)  # [T] each, pairs in no order
    return path[label[jnp.argsort(step)]].astype(jnp.int32)


def _check_steps(log_probs: Array, paths: Array) -> None:
    chex.assert_rank([log_probs, paths], [3, 2])
    chex.assert_shape(log_probs, (paths.shape[0], paths.shape[1] + 1, None))
