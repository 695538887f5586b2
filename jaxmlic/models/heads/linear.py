"""Binary relevance: a trunk, global pooling and one linear unit per label."""

import inspect
import typing
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic import losses
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.models import trunks
from jaxmlic.models.heads.contract import Prediction
from jaxmlic.models.layers import pooling

POOLS = {
    "avg": pooling.global_avg_pool,
    "max": pooling.global_max_pool,
    "avg_max": lambda x: jnp.concatenate([pooling.global_avg_pool(x), pooling.global_max_pool(x)], axis=-1),
}
LOSSES = (
    "asymmetric",
    "binary_cross_entropy",
    "focal",
    "lsep",
    "rmlc",
    "softmax_cross_entropy",
    "warp",
    "weighted_cross_entropy",
)


class Model(nn.Module):
    """Images to label logits.

    Attributes:
      num_labels: C.
      trunk: name of a trunk (see jaxmlic.models.trunks).
      pool: "avg" or "max" over the positions of the feature map, or "avg_max", both side by side.
      dropout: rate on the pooled vector.
      batch_norm: "train" or "frozen", for trunks that have batch norm.
      dtype: compute dtype of the trunk; the linear layer works in float32, since logits are ranked.
    """

    num_labels: int
    trunk: str = "small_cnn"
    pool: str = "avg"
    dropout: float = 0.0
    batch_norm: str = "train"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, labels: jax.Array | None = None) -> dict[str, jax.Array]:
        """Images uint8 or float [B, H, W, 3] in 0..255, or `trunks.Features`, to label logits.

        Returns feature_map [B, h, w, D], features [B, D] and logits float32 [B, C].
        """
        if self.pool not in POOLS:
            raise UserError(f"config.model.pool = {self.pool!r} is unknown; pools: {', '.join(POOLS)}")
        feature_map, _ = trunks.feature_map(
            images, train, name=self.trunk, dtype=self.dtype, batch_norm=self.batch_norm
        )
        features = POOLS[self.pool](feature_map.astype(jnp.float32))
        dropped = nn.Dropout(self.dropout, deterministic=not train)(features)
        logits = nn.Dense(self.num_labels, name="classifier")(dropped)
        return {"feature_map": feature_map, "features": features, "logits": logits}


def loss_fn(
    outputs: dict[str, jax.Array], labels: jax.Array, *, name: str, options: tuple = ()
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The named loss on the logits, per example [B]; nothing further to log.

    `options` are (name, value) pairs for the loss's keyword-only parameters. No key reaches a loss from here, so that
    sampled ranks are for direct callers of jaxmlic.losses. Raises UserError for a name, an option or a value that the
    loss does not have.
    """
    if name not in LOSSES:
        raise UserError(
            f"config.loss.name = {name!r} is unknown{did_you_mean(name, LOSSES)}; losses: {', '.join(LOSSES)}"
        )
    loss = getattr(losses, name)
    return loss(outputs["logits"], labels, **check_options(loss, options)), {}


def check_options(loss: Callable[..., jax.Array], options: tuple) -> dict[str, float | str | None]:
    """config.loss.options as keyword arguments of `loss`; UserError for what is not an option of it."""
    known = {
        name: parameter
        for name, parameter in inspect.signature(loss).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    try:
        options = {str(name): value for name, value in options}
    except (TypeError, ValueError):
        raise UserError(f"config.loss.options = {options!r} is not a tuple of (name, value) pairs") from None
    for name, value in options.items():
        if name not in known:
            raise UserError(
                f"config.loss.options: {loss.__name__} has no option {name!r}{did_you_mean(name, known)}; "
                f"its options: {', '.join(known) or 'none'}"
            )
        if value is None and type(None) in typing.get_args(known[name].annotation):
            continue
        kind = str if isinstance(known[name].default, str) else (int, float)
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = "text" if kind is str else "a number"
            raise UserError(f"config.loss.options: {name} = {value!r} of {loss.__name__} is not {expected}")
    return options


def predict_fn(model: Model, variables: dict, images: jax.Array) -> Prediction:
    """Scores are the float32 logits; which labels count as predicted is a threshold's matter."""
    return Prediction(scores=model.apply(variables, images, train=False)["logits"])
