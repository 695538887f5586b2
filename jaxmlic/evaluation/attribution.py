"""What a model looks at: gradients of scores by pixels, Grad-CAM, deconvolutions, attention weights, maps of the trunk.

The model is asked through the head's contract alone. Images are looked at one by one: the memory is that of one image.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.errors import UserError, unknown
from jaxmlic.models import trunks
from jaxmlic.models.layers import rectifier

Array = jax.Array

ATTENTION = "attention_"  # beginning of the names of a model's attention maps
NODES = 10  # a step's labels that deconvolutions start from: the others have little probability, hence little image


@dataclasses.dataclass(frozen=True)
class Steps:
    """Where a recurrent head looks at each step.

    Attributes:
      maps: float32 [N, T, S, S], the largest absolute value of the colours.
      taken: int [N, T], the token of each step; C is END, after which steps mean nothing.
      probabilities: float32 [N, T], of these tokens.
    """

    maps: np.ndarray
    taken: np.ndarray
    probabilities: np.ndarray


def saliency(
    head: ModuleType,
    model: nn.Module,
    variables: dict,
    images: np.ndarray,
    labels: np.ndarray,
    form: str = "gradient",
    reduce: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """d score of a label / d pixel, float32 [N, S, S, 3], of images uint8 [N, S, S, 3] and a label each, int [N].

    The score is the label's logit; of heads without, its highest log-probability over the steps. `form`: one of
    `rectifier.RULES`, in place of the derivative of ReLUs. `reduce`: what is kept of each image's [S, S, 3].
    """

    def one(variables: dict, image: Array, label: Array) -> Array:
        return jax.grad(lambda x: label_scores(head, model, variables, x[None])[0, label])(image)

    with rectifier.backward(form):
        return _each(jax.jit(one), variables, images, np.asarray(labels, np.int32), reduce=reduce)


def grad_cam(
    head: ModuleType,
    model: nn.Module,
    variables: dict,
    images: np.ndarray,
    labels: np.ndarray,
    stage: str = "",
    reduce: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Grad-CAM (Selvaraju et al., 2017) of a label's score, float32 [N, h, w] >= 0, of the arguments of `saliency`.

    Of a map A [h, w, D] of the trunk and the score y of `saliency`: ReLU(sum_d w_d A_d), w_d the mean of dy / dA_d over
    the positions.

    stage: one of those that the head reads, "" for the last; heads that read the feature map have that alone, or where
      it is the output of fully connected layers, the map that these read.
    reduce: what is kept of each map [h, w].

    Raises UserError for another stage.
    """
    read = head.reads(model).stages
    known = () if read is None else tuple(read) or trunks.levels(model.trunk)
    if stage and stage not in known:
        raise unknown(f"stage that the head {_name(head)!r} reads", stage, known)
    name = stage or (known[-1] if known else "")

    def score_of(variables: dict, image: Array, label: Array, added: Array, layer: str) -> tuple[Array, tuple]:
        """The score where `added` [1, h, w, D] is added to the map, or to what `layer` of the trunk reads; the map."""
        maps, layers = [], []

        def intercept(method: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
            path = context.module.path
            if context.method_name != "__call__" or "trunk" not in path:
                return method(*args, **kwargs)
            if path[-1] != "trunk":
                own = args[0] if args and getattr(args[0], "ndim", 0) == 4 else None
                if own is not None and own.shape[1:3] != (1, 1):
                    layers.append(path[-1])
                if path[-1] == layer:
                    maps.append(own)
                    args = ((own + added).astype(own.dtype), *args[1:])
                return method(*args, **kwargs)
            whole, stages = method(*args, **kwargs)  # [1, h, w, D], and such maps by name
            if layer:
                return whole, stages
            own = stages[name] if name else whole
            maps.append(own)
            moved = (own + added).astype(own.dtype)
            # The feature map may be the last stage, and is moved with it: heads read one of the two.
            stages = {key: moved if value is own else value for key, value in stages.items()}
            return (moved if whole is own else whole), stages

        with nn.intercept_methods(intercept):
            scores = label_scores(head, model, variables, image[None])
        return scores[0, label].astype(jnp.float32), (maps[0], layers[-1:])

    def one(variables: dict, image: Array, label: Array) -> Array:
        nothing, layer, last = jnp.zeros((1, 1, 1, 1)), "", []

        def shape_of(layer: str) -> jax.ShapeDtypeStruct:
            def own_map() -> Array:
                own, last[:] = score_of(variables, image, label, nothing, layer)[1]
                return own

            return jax.eval_shape(own_map)

        shape = shape_of(layer)
        if shape.shape[1:3] == (1, 1):  # fully connected layers: the map that the first of them reads
            layer = last[0]
            shape = shape_of(layer)

        def moved(added: Array) -> tuple[Array, Array]:
            score, (own, _) = score_of(variables, image, label, added, layer)
            return score, own

        slopes, own = jax.grad(moved, has_aux=True)(jnp.zeros(shape.shape))
        weights = slopes[0].mean(axis=(0, 1))  # [D]
        return jax.nn.relu(own[0].astype(jnp.float32) @ weights)  # [h, w]

    return _each(jax.jit(one), variables, images, np.asarray(labels, np.int32), reduce=reduce)


def step_attention(
    head: ModuleType,
    model: nn.Module,
    variables: dict,
    images: np.ndarray,
    form: str = "gradient",
    reduce: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Steps:
    """The pixels that each step of a head's own path depends on, of images uint8 [N, S, S, 3].

    form: "gradient", of the log-probability of the token that the step takes; "deconvolution" (CNN-RNN, section 4.6),
      the mean of the images synthesised from each label's node, each from the value of its softmax (or sigmoid), of
      the NODES most probable ones; "guided", the same with guided backpropagation.
    reduce: what is kept of each step's map [S, S].

    Raises UserError for a head that labels images in one step.
    """
    if not hasattr(head, "step_logits_fn"):
        raise UserError(f"the head {_name(head)!r} labels images in one step: no attention of steps; it has saliency")

    def one(variables: dict, image: Array) -> tuple[Array, Array, Array]:
        def logits_of(image: Array) -> tuple[Array, Array]:
            logits, taken = head.step_logits_fn(model, variables, image[None])
            return logits[0], taken[0]  # [T, K], [T]

        logits, pull, taken = jax.vjp(logits_of, image, has_aux=True)
        log_probs = log_probabilities(logits, model.num_labels)
        num_steps, num_tokens = logits.shape
        if form == "gradient":
            slopes = jax.vmap(jax.grad(lambda x, k: log_probabilities(x, model.num_labels)[k]))(logits, taken)
            signals = (jnp.eye(num_steps)[:, :, None] * slopes[None])[:, None]  # [T, 1, T, K]
        else:
            best = jnp.argsort(-log_probs, axis=-1)[:, :NODES]  # [T, n]
            values = jnp.exp(jnp.take_along_axis(log_probs, best, axis=-1))  # [T, n]
            nodes = jax.nn.one_hot(best, num_tokens) * values[..., None]  # [T, n, K]
            signals = jnp.eye(num_steps)[:, None, :, None] * nodes[:, :, None]  # [T, n, T, K]
        images = jax.lax.map(lambda step: jax.lax.map(lambda s: pull(s)[0], step).mean(axis=0), signals)
        own = jnp.take_along_axis(log_probs, taken[:, None], axis=-1)[:, 0]
        return strength(images), taken, jnp.exp(own)

    def kept(maps: np.ndarray) -> np.ndarray:
        return maps if reduce is None or maps.ndim != 3 else np.stack([reduce(own) for own in maps])

    with rectifier.backward(form):
        return Steps(*_each(jax.jit(one), variables, images, reduce=kept))


def label_scores(head: ModuleType, model: nn.Module, variables: dict, images: Array) -> Array:
    """float32 [B, C]: the logits, or the labels' highest log-probabilities over the steps up to the path's END."""
    if not hasattr(head, "step_logits_fn"):
        return model.apply(variables, images, train=False)["logits"]
    logits, taken = head.step_logits_fn(model, variables, images)
    if logits.shape[-1] == model.num_labels:
        return logits.max(axis=1)
    ended = jnp.cumsum(taken == model.num_labels, axis=1) - (taken == model.num_labels) > 0  # [B, T]
    log_probs = log_probabilities(logits, model.num_labels)[..., :-1]  # [B, T, C]
    return jnp.where(ended[..., None], -jnp.inf, log_probs).max(axis=1)


def log_probabilities(logits: Array, num_labels: int) -> Array:
    """Of logits [..., K]: a softmax's where END is the last token (K = num_labels + 1), else each label's alone."""
    return jax.nn.log_softmax(logits) if logits.shape[-1] == num_labels + 1 else jax.nn.log_sigmoid(logits)


def strength(pixels: Array | np.ndarray) -> Array | np.ndarray:
    """[..., 3] -> [...]: the largest absolute value of the colours, as Simonyan et al. (2014) show saliency."""
    return abs(pixels).max(axis=-1)


def attention_maps(head: ModuleType, model: nn.Module, variables: dict, images: np.ndarray) -> dict[str, np.ndarray]:
    """{name: float32 [N, h, w]}: the weights over positions that the model gives out; UserError where it has none."""

    def one(variables: dict, image: Array) -> dict[str, Array]:
        outputs = model.apply(variables, image[None], train=False)
        found = {name: outputs[name][0] for name in outputs if name.startswith(ATTENTION)}
        if not found:
            arrays = [name for name, value in outputs.items() if isinstance(value, jax.Array)]
            steps = ", and attention of steps" if hasattr(head, "step_logits_fn") else ""
            raise UserError(f"the head {_name(head)!r} has no attention maps; it has {', '.join(arrays)}{steps}")
        return found

    found = _each(jax.jit(one), variables, images)
    return {name.removeprefix(ATTENTION): maps for name, maps in found.items()}


def trunk_maps(model: nn.Module, variables: dict, images: np.ndarray, stage: str = "") -> tuple[str, np.ndarray]:
    """A stage's name and its maps float32 [N, h, w, D]; "" for the last one. UserError for an unknown stage."""

    def stages_of(image: Array) -> dict[str, Array]:
        _, captured = model.apply(
            variables,
            image[None],
            train=False,
            capture_intermediates=lambda module, _: module.name == "trunk",
            mutable=["intermediates"],
        )
        return captured["intermediates"]["trunk"]["__call__"][0][1]

    names = jax.eval_shape(stages_of, images[0])
    # jit sorts the keys, eval_shape does too: the last stage is the one with the fewest positions, then most channels.
    name = stage or min(names, key=lambda n: (np.prod(names[n].shape[1:3]), -names[n].shape[-1]))
    if name not in names:
        raise unknown("stage", name, names)
    return name, _each(jax.jit(lambda _, image: stages_of(image)[name][0].astype(jnp.float32)), variables, images)


def joint_embedding(
    head: ModuleType, model: nn.Module, variables: dict, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of images float32 [N, E] and of labels [C, E] in one space; UserError for a head without such a space."""
    if not hasattr(head, "joint_embedding_fn"):
        raise UserError(f"the head {_name(head)!r} has no space that images and labels share")

    def one(variables: dict, image: Array) -> tuple[Array, Array]:
        image_vectors, label_vectors = head.joint_embedding_fn(model, variables, image[None])
        return image_vectors[0], label_vectors

    image_vectors, label_vectors = _each(jax.jit(one), variables, images)
    return image_vectors, label_vectors[0]


def _name(head: ModuleType) -> str:
    """As in config.head."""
    return head.__name__.rpartition("heads.")[2]


def _each(function: Callable, variables: dict, images: np.ndarray, *arrays: np.ndarray, reduce: Callable | None = None):
    """function(variables, image float32 [S, S, 3], ...) of each image, numpy, reduced and stacked leaf by leaf."""
    found = []
    for image, *rest in zip(images, *arrays, strict=True):
        leaves = jax.tree.map(np.asarray, function(variables, np.asarray(image, np.float32), *rest))
        found.append(jax.tree.map(reduce, leaves) if reduce else leaves)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)
