"""Recurrent outputs along the label paths of a batch, each distinct beginning of a path computed once.

Written for one CPU, where it halves the CPU time of a training (`cnn_rnn.along_paths`, which has the plain form). A
recurrent state that reads labels alone is the same for all paths that begin alike: every path begins with START, in a
batch of 256 images and 80 classes at most 80 states follow it, and nothing follows a path's END. So the beginnings form
a tree, of which an unrolled loop over [T + 1, B] computes many nodes again and again. Here the nodes lie in one row,
parents before their children, and are taken in tiles of some tens, as many as there are.
"""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.models.layers import cells

Array = jax.Array


def tile_of(batch: int) -> int:
    """Nodes computed together: enough for a good product, few enough to leave little of a step's last tile empty."""
    return min(batch, max(8, min(64, batch // 4)))


class Tree(NamedTuple):
    """The distinct beginnings of a batch of paths; N is the most nodes that there can be, whole tiles a step.

    Attributes:
      parent: int32 [N], N for START and for nodes that do not exist.
      label: int32 [N], the one that the node reads last; -1 for START.
      node: int32 [T + 1, B], the node of each path's first t labels; any node for t beyond the path's length.
      tiles: int32 [], how many tiles hold nodes.
    """

    parent: Array
    label: Array
    node: Array
    tiles: Array


def tree(paths: Array, num_labels: int, tile: int = 0) -> Tree:
    """The tree of paths int32 [B, T] that end in END, the number `num_labels`; a tile of 0 is `tile_of` the batch."""
    chex.assert_rank(paths, 2)
    batch, longest = paths.shape
    tile = min(tile or tile_of(batch), batch)
    rows = jnp.arange(batch, dtype=jnp.int32)
    labels = paths.T.astype(jnp.int32)  # [T, B]
    places = (longest + 1) * -(-batch // tile) * tile  # N

    def deeper(alike: Array, labels: Array) -> tuple[Array, Array]:
        alike &= labels[:, None] == labels[None, :]  # [B, B]
        return alike, jnp.min(jnp.where(alike, rows[None], batch), axis=1)

    first = jax.lax.scan(deeper, jnp.ones((batch, batch), bool), labels)[1]  # [T, B], the first path that begins so
    first = jnp.concatenate([jnp.zeros((1, batch), jnp.int32), first])  # [T + 1, B]
    is_label = jnp.pad(labels < num_labels, ((1, 0), (0, 0)), constant_values=True)
    before_end = jnp.cumprod(is_label, axis=0) == 1  # [T + 1, B]
    own = (first == rows[None]) & before_end  # [T + 1, B], whether a path's beginning is a node of its own
    counts = own.sum(axis=1)
    ends = jnp.cumsum(-(-counts // tile) * tile)  # [T + 1], in whole tiles
    places_of = (jnp.cumsum(own, axis=1) - 1 + jnp.pad(ends, (1, 0))[:-1, None]).astype(jnp.int32)  # [T + 1, B]
    node = jnp.take_along_axis(places_of, first, axis=1).clip(min=0)  # [T + 1, B]
    before = jnp.pad(node, ((1, 0), (0, 0)), constant_values=places)[:-1]
    where = jnp.where(own, places_of, places)  # out of bounds is dropped
    nothing = jnp.full(places, places, jnp.int32)
    return Tree(
        parent=nothing.at[where].set(before, mode="drop"),
        label=(nothing * 0).at[where].set(jnp.pad(labels, ((1, 0), (0, 0)), constant_values=-1), mode="drop"),
        node=node,
        tiles=ends[-1] // tile,
    )


def outputs(cell: cells.Weights, read: Array, tree: Tree, tile: int = 0) -> Array:
    """The cell's output at each node: float32 [N, H]; rows that are no node mean nothing.

    Args:
      cell: with a state, which is zeros at first.
      read: float32 [rows, E], of which a node's label is an index.
      tree: of the batch's paths.
      tile: as `tree` was made with.
    """
    kernel = jnp.concatenate([cell.recurrent_kernel, cell.input_kernel])  # [H + E, G]
    bias = jnp.zeros(kernel.shape[1]) if cell.bias is None else cell.bias
    batch = tree.node.shape[1]
    return _outputs(cell.kind, min(tile or tile_of(batch), batch), kernel, bias, read, tree)


def _rows(array: Array, start: Array, tile: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, start, tile)


def _set_rows(array: Array, rows: Array, start: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, rows, start, 0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _outputs(kind: str, tile: int, kernel: Array, bias: Array, read: Array, tree: Tree) -> Array:
    return _forward(kind, tile, kernel, bias, read, tree)[0]


def _inputs(state: Array, read: Array, parents: Array, labels: Array) -> Array:
    """What the product with the kernel takes: [nodes, H + E]."""
    return jnp.concatenate([state[parents], read[labels]], axis=1)


def _forward(kind: str, tile: int, kernel: Array, bias: Array, read: Array, tree: Tree) -> tuple[Array, tuple]:
    nodes, size = len(tree.parent), kernel.shape[1] // 4

    def step(carry: tuple) -> tuple:
        number, states, all_outputs, all_gates = carry
        start = number * tile
        parents = _rows(tree.parent, start, tile)
        gates = _inputs(states[0], read, parents, _rows(tree.label, start, tile)) @ kernel + bias[None]  # [tile, G]
        state, output = cells.activate(kind, tuple(x[parents] for x in states), gates)
        states = tuple(_set_rows(old, new, start) for old, new in zip(states, state, strict=True))
        return number + 1, states, _set_rows(all_outputs, output, start), _set_rows(all_gates, gates, start)

    # The last row of the states is START's parent.
    states = (jnp.zeros((nodes + 1, size)),) * cells.KINDS[kind][1]
    start = (jnp.int32(0), states, jnp.zeros((nodes, size)), jnp.zeros((nodes, 4 * size)))
    _, states, found, gates = jax.lax.while_loop(lambda carry: carry[0] < tree.tiles, step, start)
    return found, (kernel, read, tree, states, gates)


def _backward(kind: str, tile: int, residuals: tuple, cotangent: Array) -> tuple:
    kernel, read, tree, states, gates = residuals
    size, nodes = kernel.shape[1] // 4, len(tree.parent)

    def step(carry: tuple) -> tuple:
        number, d_states, d_inputs, gates = carry
        start = (number - 1) * tile
        parents = _rows(tree.parent, start, tile)
        before = tuple(x[parents] for x in states)
        _, pull = jax.vjp(partial(cells.activate, kind), before, _rows(gates, start, tile))
        after = tuple(jnp.split(_rows(d_states, start, tile), len(states), axis=1))
        d_before, d_gates = pull((after, _rows(cotangent, start, tile)))
        d_product = d_gates @ kernel.T  # [tile, H + E]
        d_before = jnp.concatenate([d_before[0] + d_product[:, :size], *d_before[1:]], axis=1)

        def add(i: Array, x: Array) -> Array:
            return _set_rows(x, _rows(x, parents[i], 1) + _rows(d_before, i, 1), parents[i])

        # Row by row, since a scatter would copy all of them first.
        d_states = jax.lax.fori_loop(0, tile, add, d_states)
        d_inputs = _set_rows(d_inputs, d_product[:, size:], start)
        return number - 1, d_states, d_inputs, _set_rows(gates, d_gates, start)  # these gates are not read again

    start = (tree.tiles, jnp.zeros((nodes + 1, size * len(states))), jnp.zeros((nodes, read.shape[1])), gates)
    _, _, d_inputs, d_gates = jax.lax.while_loop(lambda carry: carry[0] > 0, step, start)

    def kernel_gradient(nodes: int) -> tuple[Array, Array]:
        inputs = _inputs(states[0], read, tree.parent[:nodes], tree.label[:nodes])
        return inputs.T @ d_gates[:nodes], (jnp.ones((1, nodes)) @ d_gates[:nodes])[0]

    # One product over all nodes, in the smallest of some sizes that holds them; beyond the tiles there are zeros.
    sizes = sorted({-(-len(tree.parent) * k // (8 * tile)) * tile for k in range(1, 9)})
    which = jnp.sum(tree.tiles * tile > jnp.array(sizes))
    d_kernel, d_bias = jax.lax.switch(which, [partial(kernel_gradient, size) for size in sizes])
    d_read = jnp.zeros_like(read).at[tree.label].add(d_inputs)
    nothing = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), tree)
    return d_kernel, d_bias, d_read, nothing


_outputs.defvjp(_forward, _backward)
