"""Beam search for a batch of images by a model whose recurrent state reads labels alone, as that of CNN-RNN does.

Under `jax.vmap` of beam_search every image computes its own states and waits for the slowest. Here paths of
different images that begin alike share their state, which is computed once, and only for paths that can still enter
their image's result: the same search with a fraction of the products. States do not stay with an image, so it is for a
program of one device, and it pays on a CPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmlic.decode import search as beam
from jaxmlic.decode.search import State

Array = jax.Array

TILE = 128  # states computed together


def beam_search_batch(
    advance_fn: Callable[[State, Array], tuple[State, Any]],
    say_fn: Callable[[Any, Any], Array],
    images: Any,
    init_state: State,
    *,
    num_labels: int,
    beam_size: int,
    max_length: int,
    min_length: int = 0,
    length_penalty: float = 0.0,
) -> tuple[Array, Array]:
    """beam_search of every image, where step_fn(state, label) would be advance_fn and then say_fn.

    Args:
      advance_fn: (state, previous_label) -> (state, output), for one path, whichever image it is of.
      say_fn: (image, output) -> log_probs [C + 1], for one path of one image.
      images: pytree of arrays [B, ...], what `say_fn` gets of an image.
      init_state: what the first call of `advance_fn` gets.
      num_labels, beam_size, max_length, min_length, length_penalty: as in beam_search.

    Returns:
      (paths int32 [B, N, max_length], log_probs float32 [B, N]).

    Raises:
      ValueError: as beam_search.
    """
    rules = beam.Rules.of(num_labels, beam_size, max_length, min_length, length_penalty)
    batch = jax.tree.leaves(images)[0].shape[0]
    rows = batch * beam_size
    tile = min(TILE, rows)
    places = -(-rows // tile) * tile  # whole tiles

    def step(carry: tuple) -> tuple:
        search, found = carry  # search.state int32 [batch, beam] tells where in `found` a live path's state is
        going_on = jax.vmap(partial(beam.going_on, rules))(search)  # [batch]
        wanted = going_on[:, None] & jax.vmap(partial(beam.can_win, rules))(search)  # [batch, beam]
        labels = jax.vmap(partial(beam.last_labels, rules))(search)  # [batch, beam]
        which, parents, read, count = distinct(wanted.reshape(rows), search.state.reshape(rows), labels.reshape(rows))
        half = jnp.max(search.length) % 2 * places  # a step's states are put where the ones before its own were
        found = advance(found, half, parents, read, -(-count // tile))
        which = half + which.reshape(batch, beam_size)
        outputs = jax.tree.map(lambda x: x[which], found[1])
        log_probs = jax.vmap(jax.vmap(say_fn, (None, 0)))(images, outputs)  # [batch, beam, C + 1]
        # A path that cannot win has nowhere to go, nor do its extensions, whose places no other could win from.
        log_probs = jnp.where(wanted[:, :, None], log_probs.astype(jnp.float32), -jnp.inf)
        new = jax.vmap(partial(beam.extend, rules))(search._replace(state=which), log_probs)
        keep = lambda new, old: jnp.where(going_on.reshape(batch, *(1,) * (new.ndim - 1)), new, old)  # noqa: E731
        return jax.tree.map(keep, new, search), found

    def advance(found: tuple, half: Array, parents: Array, labels: Array, tiles: Array) -> tuple:
        """Puts the states and outputs after labels [places] have been read in the states of parents [places]."""

        def one_tile(carry: tuple) -> tuple:
            number, found = carry
            here = jax.lax.dynamic_slice_in_dim(parents, number * tile, tile)
            read = jax.lax.dynamic_slice_in_dim(labels, number * tile, tile)
            new = jax.vmap(advance_fn)(jax.tree.map(lambda x: x[here], found[0]), read)
            put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, half + number * tile, 0)  # noqa: E731
            return number + 1, jax.tree.map(put, found, new)

        return jax.lax.while_loop(lambda carry: carry[0] < tiles, one_tile, (jnp.int32(0), found))[1]

    def distinct(wanted: Array, states: Array, labels: Array) -> tuple[Array, Array, Array, Array]:
        """Which of the distinct (state, label) each row is, these as [places] each, and how many are wanted."""
        unwanted, state, label, row = jax.lax.sort(
            ((~wanted).astype(jnp.int32), states, labels, jnp.arange(rows, dtype=jnp.int32)), num_keys=3
        )
        new = jnp.append(True, (jnp.diff(state) != 0) | (jnp.diff(label) != 0) | (jnp.diff(unwanted) != 0))  # [rows]
        number = jnp.cumsum(new, dtype=jnp.int32) - 1
        which = jnp.zeros(rows, jnp.int32).at[row].set(number, unique_indices=True)
        fill = lambda x: jnp.zeros(places, jnp.int32).at[number].set(x)  # noqa: E731
        return which, fill(state), fill(label), jnp.sum(new & (unwanted == 0))

    first = advance_fn(init_state, jnp.int32(beam.START))
    found = jax.tree.map(lambda x: jnp.zeros((2 * places, *jnp.shape(x)), x.dtype).at[0].set(x), first)
    begin = lambda image: beam.begin(rules, jnp.int32(0), say_fn(image, first[1]))  # noqa: E731
    running = lambda carry: jax.vmap(partial(beam.going_on, rules))(carry[0]).any()  # noqa: E731
    search, _ = jax.lax.while_loop(running, step, (jax.vmap(begin)(images), found))
    return search.done_paths, search.done_log_probs
