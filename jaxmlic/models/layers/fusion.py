"""Bilinear fusion of images and label embeddings: section E of MSCNN-LCE-MIC.

No array over images, labels and units is held: `bilinear_scores` goes through the labels in blocks.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.errors import UserError

Array = jax.Array

# Numbers over images, labels and units that the fusion holds at a time: what stays in a CPU's cache (at 1,000 labels
# five times faster than all at once), or 64 MB of an accelerator's memory.
_BLOCK = {"cpu": 1 << 19}
_OTHER_BLOCK = 1 << 24
_FEW = 4  # groups up to this size are summed term by term, which is two to four times faster than a tiny product
_EPSILON = 1e-6
NORMS = ("none", "power_l2")


class FactorizedBilinear(nn.Module):
    """Multi-modal factorised bilinear pooling (MFB) of every image with every label, and one linear unit per label.

    Section E of MSCNN-LCE-MIC: both sides go through a linear layer of `dim` units, their product is summed over groups
    of `groups` units, and each label has its own weights on the result, read into "a f_c layer" that gives the label's
    component. Yu et al. (2017), whose pooling it is, follow the sum with a signed square root and a division by the
    length. Section E names neither; they are read into its "MFB", and norm="none" leaves them out: then the scores are
    linear in the image and cost one matrix product.
    Parameters `image` and `label` (linear layers), `kernel` [C, dim / groups] and `bias` [C].

    Attributes:
      dim: m.
      groups: g, units in a group; UserError unless it divides m.
      norm: one of NORMS: "power_l2" as in Yu et al., to the length sqrt(m / g) and not 1: the same functions, but with
        length 1 the weights have to grow by tens before a score leaves -1..1; or "none".
    """

    dim: int = 358
    groups: int = 2
    norm: str = "power_l2"

    @nn.compact
    def __call__(self, images: Array, labels: Array) -> Array:
        """images [B, D] and labels [C, E] -> logits float32 [B, C]."""
        check_groups(self.dim, self.groups)
        units = self.dim // self.groups
        images = nn.Dense(self.dim, name="image")(images)  # [B, m]
        labels = nn.Dense(self.dim, name="label")(labels)  # [C, m]
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=1, out_axis=0), (len(labels), units))
        bias = self.param("bias", nn.initializers.zeros, (len(labels),))
        if self.norm == "none":  # sum_k w_k sum_j a_kj l_kj = sum_kj a_kj (w_k l_kj)
            logits = images @ (labels * jnp.repeat(kernel, self.groups, axis=1)).T  # [B, C]
        else:
            logits = bilinear_scores(images, labels, kernel * units**0.5, self.groups)
        return logits + bias[None]


def check_groups(dim: int, groups: int) -> None:
    """UserError unless `groups` divides `dim`."""
    if dim < 1 or groups < 1 or dim % groups:
        near = -(-dim // max(groups, 1)) * max(groups, 1)
        raise UserError(
            f"config.model.mfb_groups = {groups} does not divide config.model.mfb_dim = {dim}; the next multiple is "
            f"{near}"
        )


def bilinear_scores(images: Array, labels: Array, kernel: Array, groups: int, block: int = 0) -> Array:
    """The pooled product of each image with each label, normalised, times the label's weights.

    Args:
      images: [B, m], projected.
      labels: [C, m], projected.
      kernel: [C, m / groups].
      groups: consecutive units that are summed.
      block: labels at a time; 0 chooses. The backward pass computes a block anew, so that memory grows with B + C and
        not with B C m / groups.

    Returns:
      float32 [B, C].
    """
    batch, count, units = len(images), len(labels), kernel.shape[1]
    images = images.reshape(batch, units, groups)
    labels = labels.reshape(count, units, groups)
    block = block or max(1, _BLOCK.get(jax.default_backend(), _OTHER_BLOCK) // (batch * units))
    if block >= count:
        return _scores(images, labels, kernel)
    blocks = -(-count // block)
    spare = blocks * block - count  # labels of zeros, so that the blocks are equal
    labels = jnp.pad(labels, ((0, spare), (0, 0), (0, 0))).reshape(blocks, block, units, groups)
    kernel = jnp.pad(kernel, ((0, spare), (0, 0))).reshape(blocks, block, units)
    one = jax.checkpoint(lambda part: _scores(images, *part))
    scores = jax.lax.map(one, (labels, kernel))  # [blocks, B, block]
    return scores.transpose(1, 0, 2).reshape(batch, blocks * block)[:, :count]


def _scores(images: Array, labels: Array, kernel: Array) -> Array:
    """images [B, K, g], labels [C, K, g], kernel [C, K] -> [B, C]."""
    groups = images.shape[2]
    if groups <= _FEW:
        pooled = sum(images[:, None, :, j] * labels[None, :, :, j] for j in range(groups))  # [B, C, K]
    else:
        pooled = jnp.einsum("bkg,ckg->bck", images, labels)  # [B, C, K]
    # z / sqrt(|z|): the signed square root, with a finite derivative at 0.
    root = pooled * jax.lax.rsqrt(jnp.abs(pooled) + _EPSILON)  # [B, C, K]
    length = jax.lax.rsqrt(jnp.sum(root * root, axis=-1) + _EPSILON)  # [B, C]
    return jnp.einsum("bck,ck->bc", root, kernel) * length


def unit_scale(x: Array) -> Array:
    """[..., D] divided by its root mean square over D: every vector gets the length sqrt(D); one of zeros stays."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + _EPSILON)
