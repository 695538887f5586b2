"""The search that shares states between images, against the search of each image alone."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_test import NUM_STATES, table_step, tables

from jaxmlic import decode
from jaxmlic.decode import shared


def advance(state, previous_label):
    """The state of decode_test's model, which is also all that it puts out."""
    state = (state * 7 + previous_label + 2) % NUM_STATES
    return state, state


def say(table, state):
    return table[state]


@pytest.mark.parametrize("kind", ["any", "holes", "ties"])
@pytest.mark.parametrize(
    ("num_labels", "beam_size", "max_length", "more"),
    [
        (5, 3, 4, {}),
        (4, 1, 6, {}),
        (3, 20, 3, {"min_length": 2}),  # 240 rows: two tiles, the second not full
        (5, 3, 4, {"min_length": 1, "length_penalty": 0.7}),
    ],
)
def test_finds_what_images_find_alone(kind, num_labels, beam_size, max_length, more):
    """Bit for bit, as the model is a table."""
    table = jnp.asarray(tables(num_labels, kind, seeds=12))
    options = {"num_labels": num_labels, "beam_size": beam_size, "max_length": max_length} | more

    @jax.jit
    def run(table):
        alone = jax.vmap(lambda t: decode.beam_search(partial(table_step, t), jnp.int32(0), **options))(table)
        return alone, shared.beam_search_batch(advance, say, table, jnp.int32(0), **options)

    alone, together = run(table)
    chex.assert_trees_all_equal(together, alone)


def test_a_path_s_state_is_computed_once_for_all_images(monkeypatch):
    """Counted at run time in tiles of one: equal images cost what one does, and images that end at once nothing."""
    monkeypatch.setattr(shared, "TILE", 1)
    calls = []

    def counting(state, last):
        jax.debug.callback(lambda _: calls.append(1), last)
        return advance(state, last)

    @jax.jit
    def search(table):
        options = {"num_labels": 5, "beam_size": 2, "max_length": 5}
        return shared.beam_search_batch(counting, say, table, jnp.int32(0), **options)

    def cost(*images):
        calls.clear()
        jax.block_until_ready(search(jnp.asarray(np.stack(images))))
        jax.effects_barrier()
        return len(calls)

    one, other = np.asarray(tables(5, seeds=2)) - np.eye(6, dtype=np.float32)[5] * 9
    ends = np.full((NUM_STATES, 6), -9, np.float32)
    ends[:, 5] = -1e-3
    assert cost(ends, ends) <= 3  # START, and the two paths that might still be the second best
    assert 3 < cost(one, one) < cost(one, other)
    assert cost(one, ends) <= cost(one, one) + 2


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match="beam_size 0 is below 1"):
        shared.beam_search_batch(
            advance, say, jnp.zeros((2, NUM_STATES, 6)), jnp.int32(0), num_labels=5, beam_size=0, max_length=3
        )
