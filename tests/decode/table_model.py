"""A model that is a table, its search by lists, and compiled searches over batches of tables."""

import itertools
from functools import cache, partial

import jax
import numpy as np

from jaxmlic import decode

NUM_STATES = 61


SEEDS = 6


def table_step(table, state, previous_label):
    """A model that is a table: the state is a hash of the labels so far, and what it says is the table's row."""
    state = (state * 7 + previous_label + 2) % NUM_STATES
    return state, table[state]


def tables(num_labels, kind="any", seeds=SEEDS):
    """One table per seed, float32 [seeds, states, labels + 1] of log-probabilities."""
    logits = np.random.default_rng(0).normal(0, 1.5, (seeds, NUM_STATES, num_labels + 1))
    if kind == "holes":  # a third of all steps are impossible, some of END's too
        logits[np.random.default_rng(1).random(logits.shape) < 1 / 3] = -np.inf
        logits[..., 0][np.isneginf(logits).all(-1)] = 0
    if kind == "ties":  # few values, whose sums are exact in float32
        return (np.random.default_rng(0).integers(-3, 0, logits.shape) / 4).astype(np.float32)
    return np.asarray(jax.nn.log_softmax(logits)).astype(np.float32)


class Reference:
    """The same table, read by plain Python: what comes after a tuple of labels."""

    def __init__(self, table):
        self.table, self.num_labels = table, table.shape[1] - 1

    def after(self, path):
        state = 0
        for label in (-1, *path):
            state = (state * 7 + label + 2) % NUM_STATES
        return self.table[state]

    def log_prob(self, path):
        total = np.float32(0)
        for t, token in enumerate((*path, self.num_labels)):
            total += self.after(path[:t])[token]
        return total

    def all_paths(self, max_length, min_length=0):
        """Every possible path and its log-probability, best first."""
        lengths = range(min_length, min(max_length, self.num_labels) + 1)
        paths = (path for n in lengths for path in itertools.permutations(range(self.num_labels), n))
        found = [(self.log_prob(path), path) for path in paths]
        return sorted((x for x in found if x[0] > -np.inf), key=lambda x: -x[0])

    def beam_search(self, beam_size, max_length, min_length=0, length_penalty=0.0):
        """Section 3.3 with lists, to the end: no masks and no stop rule. Python's sort is stable."""
        live, done = [((), np.float32(0))], []
        for length in range(max_length + 1):
            longer = []
            for path, total in live:
                step = self.after(path)
                allowed = [label for label in range(self.num_labels) if label not in path and length < max_length]
                allowed += [self.num_labels] if length >= min_length else []
                for label in sorted(allowed, key=lambda label: -step[label])[:beam_size]:
                    if label == self.num_labels:
                        score = (total + step[label]) / np.float32(((6 + length) / 6) ** length_penalty)
                        done.append((score, total + step[label], path))
                    else:
                        longer.append(((*path, label), total + step[label]))
            live = sorted(longer, key=lambda x: -x[1])[:beam_size]
        done = sorted((x for x in done if x[1] > -np.inf), key=lambda x: -x[0])
        return [x[1:] for x in done[:beam_size]]


@cache
def searcher(num_labels, beam_size, max_length, min_length=0, length_penalty=0.0):
    """Beam search over a batch of tables, compiled once."""

    def search(table):
        return decode.beam_search(
            partial(table_step, table),
            0,
            num_labels=num_labels,
            beam_size=beam_size,
            max_length=max_length,
            min_length=min_length,
            length_penalty=length_penalty,
        )

    return jax.jit(jax.vmap(search))


@cache
def greedy_searcher(num_labels, max_length, min_length=0):
    def search(table):
        lengths = {"num_labels": num_labels, "max_length": max_length, "min_length": min_length}
        return decode.greedy(partial(table_step, table), 0, **lengths)

    return jax.jit(jax.vmap(search))


@cache
def rescorer():
    def rescore(table, path):
        return decode.rescore(partial(table_step, table), 0, path)

    return jax.jit(jax.vmap(jax.vmap(rescore, (None, 0))))


def unpadded(paths, num_labels):
    """[beam, T] as tuples of labels; END is followed by nothing but END."""
    tuples = [tuple(int(label) for label in path if label != num_labels) for path in paths]
    for path, labels in zip(paths, tuples, strict=True):
        assert (path[len(labels) :] == num_labels).all() and len(set(labels)) == len(labels)
    return tuples


def assert_same(result, expected, num_labels):
    """Paths and log-probabilities against [(log_prob, path)], the rest being END and -inf."""
    paths, log_probs = (np.asarray(x) for x in result)
    empty = len(paths) - len(expected)
    assert unpadded(paths, num_labels) == [path for _, path in expected] + [()] * empty
    wanted = np.array([log_prob for log_prob, _ in expected] + [-np.inf] * empty, np.float32)
    np.testing.assert_array_equal(log_probs, wanted)


def number_of_paths(num_labels, max_length):
    return sum(1 for n in range(max_length + 1) for _ in itertools.permutations(range(num_labels), n))
