"""Label paths from a step callback, greedily or by beam search (CNN-RNN, section 3.3), for one image.

The functions know no model. A path is labels 0..C-1, none twice, and then END, which is the number C. The callback is
`step_fn(state, previous_label) -> (state, log_probs [C + 1])` for one image and one path: `previous_label` is an int32
scalar, -1 (START) at the first call; `state` is any pytree of arrays, of fixed shapes and dtypes after the first call.
What never changes along a path, such as the image's features, is better closed over than carried: the state of every
path is copied at every step. `jax.vmap` makes a batch of images of one; the loop then ends with its slowest image.

A label that the path has (unless `repeats`), END before `min_length` labels, and labels after `max_length` of them are
masked, and what is left is not normalised again: a path's log-probability is the sum of what the model gave to its
labels and to END, and never grows along the path. Log-probabilities are float32 whatever the model's dtype, and -inf
marks what cannot be.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

Array = jax.Array
State = Any
StepFn = Callable[[State, Array], tuple[State, Array]]

START = -1

_BLOCK = 128  # tokens, of which the best is found first where there are many


class Search(NamedTuple):
    """The search after `length` labels; an empty place among the live or the done has log-probability -inf."""

    length: Array  # int32 [], labels on every live path
    state: State  # [beam, ...], before the last label of the live path has been read
    live_paths: Array  # int32 [beam, max_length], END after `length` labels
    live_log_probs: Array  # float32 [beam], falling
    done_paths: Array  # int32 [beam, max_length], the candidates of the paper, END included in what follows
    done_log_probs: Array  # float32 [beam]
    done_scores: Array  # float32 [beam], falling


def greedy(
    step_fn: StepFn,
    init_state: State,
    *,
    num_labels: int,
    max_length: int,
    min_length: int = 0,
    repeats: bool = False,
) -> tuple[Array, Array]:
    """The most probable label at each step until that is END; of equal ones the lowest, END last.

    Args:
      step_fn: see above.
      init_state: what its first call gets.
      num_labels: C.
      max_length: of a path, in labels; END follows and counts.
      min_length: labels before END is allowed.
      repeats: whether a path may have a label twice.

    Returns:
      (path int32 [max_length] padded with END, its log-probability float32 []); END and -inf if the labels run out.

    Raises:
      ValueError: num_labels or max_length is below 1, min_length is negative or more than a path can have.
    """
    longest = _check_lengths(num_labels, max_length, min_length, repeats)

    def choose(length: Array, path: Array, log_prob: Array, step_log_probs: Array) -> tuple[Array, Array, Array]:
        step_log_probs = _masked(step_log_probs[None], path[None], length, num_labels, min_length, longest, repeats)[0]
        label = jnp.argmax(step_log_probs)
        path = jnp.where(jnp.arange(max_length) == length, label, path)  # END changes nothing
        return path, log_prob + step_log_probs[label], label.astype(jnp.int32)

    def unfinished(carry: tuple) -> Array:
        *_, log_prob, label = carry
        return (label != num_labels) & (log_prob != -jnp.inf)

    def step(carry: tuple) -> tuple:
        length, state, path, log_prob, label = carry
        state, step_log_probs = step_fn(state, label)
        return length + 1, state, *choose(length, path, log_prob, step_log_probs)

    state, step_log_probs = step_fn(init_state, jnp.int32(START))
    chex.assert_shape(step_log_probs, (num_labels + 1,))
    path = jnp.full(max_length, num_labels, jnp.int32)
    first = choose(jnp.int32(0), path, jnp.float32(0), step_log_probs)
    *_, path, log_prob, _ = jax.lax.while_loop(unfinished, step, (jnp.int32(1), state, *first))
    return jnp.where(log_prob == -jnp.inf, num_labels, path), log_prob


def beam_search(
    step_fn: StepFn,
    init_state: State,
    *,
    num_labels: int,
    beam_size: int,
    max_length: int,
    min_length: int = 0,
    length_penalty: float = 0.0,
    repeats: bool = False,
) -> tuple[Array, Array]:
    """The N most probable paths that a beam of N finds (CNN-RNN, section 3.3 and Fig. 5).

    At each step every intermediate path is extended by its N best labels, END among them. Extensions that end in END
    become candidates, of which the N best are kept; the N best others are the next intermediate paths. The search stops
    when no intermediate path can beat the N-th candidate any more, which changes no result, as log-probabilities only
    fall. So N = 1 is `greedy`, and N = the number of all prefixes is exact. Equal probabilities: the candidate found
    first, the better intermediate path, the lower label, END last.

    Args:
      step_fn: see above.
      init_state: what its first call gets.
      num_labels: C.
      beam_size: N.
      max_length: of a path, in labels; END follows and counts.
      min_length: labels before END is allowed.
      length_penalty: alpha >= 0; candidates are ranked by log-probability / ((5 + n) / 6)^alpha, n their labels and END
        (Wu et al., 2016, eq. 14). The stop rule then compares with the longest path's divisor, and stays exact.
      repeats: whether a path may have a label twice.

    Returns:
      (paths int32 [N, max_length] padded with END, log_probs float32 [N]), best first; the log-probabilities are not
      normalised. Where fewer than N paths exist the rest is END and -inf.

    Raises:
      ValueError: num_labels, beam_size or max_length is below 1, length_penalty is negative, min_length is negative or
        more than a path can have.

    >>> table = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.6, 0.1, 0.3]]))  # after START, after 0, after 1
    >>> step = lambda state, previous: (state, table[previous + 1])
    >>> paths, log_probs = beam_search(step, jnp.zeros(()), num_labels=2, beam_size=2, max_length=2)
    >>> print(paths.tolist(), jnp.exp(log_probs).round(2))  # 0.6 * 0.8; 0.3 * 0.6 * 0.8
    [[0, 2], [1, 0]] [0.48 0.14]
    """
    rules = _Rules.checked(num_labels, beam_size, max_length, min_length, length_penalty, repeats)

    def step(search: Search) -> Search:
        state, step_log_probs = jax.vmap(step_fn)(search.state, _last_labels(rules, search))
        return _extend(rules, search._replace(state=state), step_log_probs)

    first = _start(rules, *step_fn(init_state, jnp.int32(START)))
    search = jax.lax.while_loop(partial(_is_unfinished, rules), step, first)
    return search.done_paths, search.done_log_probs


def along_path(step_fn: StepFn, init_state: State, path: Array) -> Array:
    """The log-probabilities before each label of a path and before its END, nothing masked.

    Args:
      step_fn: see above.
      init_state: what its first call gets.
      path: int [T], labels and then END.

    Returns:
      float32 [T + 1, C + 1] log-probabilities; rows after the one of the path's END mean nothing.
    """

    def step(carry: tuple[State, Array], label: Array) -> tuple[tuple[State, Array], Array]:
        state, step_log_probs = step_fn(*carry)
        last_label = step_log_probs.shape[0] - 2  # a model need not be able to read END
        return (state, label.clip(max=last_label)), step_log_probs.astype(jnp.float32)

    path = path.astype(jnp.int32)
    carry, first = step((init_state, jnp.int32(START)), path[0])
    _, rest = jax.lax.scan(step, carry, jnp.append(path[1:], path[-1]))  # what follows the last label is not read
    return jnp.concatenate([first[None], rest])


def rescore(step_fn: StepFn, init_state: State, path: Array) -> Array:
    """A path's log-probability float32 []: of its labels and of the END after them.

    Args:
      step_fn: see above.
      init_state: what its first call gets.
      path: int [T], labels and then END; T labels without END are followed by one.
    """
    step_log_probs = along_path(step_fn, init_state, path)  # [T + 1, labels + 1]
    tokens = jnp.append(path, step_log_probs.shape[1] - 1)  # [T + 1]
    chosen = jnp.take_along_axis(step_log_probs, tokens[:, None], axis=1)[:, 0]  # [T + 1]
    return jnp.sum(chosen, where=steps_of_path(step_log_probs, path))


class _Rules(NamedTuple):
    """The arguments of a search; `longest` is the number of labels of the longest path there can be."""

    num_labels: int
    beam_size: int
    max_length: int
    min_length: int
    length_penalty: float
    repeats: bool
    longest: int

    @classmethod
    def checked(
        cls, num_labels: int, beam_size: int, max_length: int, min_length: int, length_penalty: float, repeats: bool
    ) -> "_Rules":
        """ValueError for arguments that cannot be."""
        longest = _check_lengths(num_labels, max_length, min_length, repeats)
        if beam_size < 1:
            raise ValueError(f"beam_size {beam_size} is below 1")
        if not length_penalty >= 0:
            raise ValueError(f"length_penalty {length_penalty} is not 0 or more")
        return cls(num_labels, beam_size, max_length, min_length, length_penalty, repeats, longest)

    def divisor(self, num_tokens: Array | int) -> Array:
        return ((5.0 + jnp.float32(num_tokens)) / 6.0) ** self.length_penalty


def _start(rules: _Rules, state: State, step_log_probs: Array) -> Search:
    """The search after the first call, which is made once and not for N equal paths: the other places start empty."""
    chex.assert_shape(step_log_probs, (rules.num_labels + 1,))
    no_paths = jnp.full((rules.beam_size, rules.max_length), rules.num_labels, jnp.int32)
    nothing = jnp.full(rules.beam_size, -jnp.inf, jnp.float32)
    search = Search(
        length=jnp.int32(0),
        state=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rules.beam_size, *jnp.shape(leaf))), state),
        live_paths=no_paths,
        live_log_probs=nothing.at[0].set(0),
        done_paths=no_paths,
        done_log_probs=nothing,
        done_scores=nothing,
    )
    return _extend(rules, search, jnp.broadcast_to(step_log_probs, (rules.beam_size, rules.num_labels + 1)))


def _extend(rules: _Rules, search: Search, step_log_probs: Array) -> Search:
    """One step of the search, given the log-probabilities after each live path: float [beam, labels + 1]."""
    num_labels, beam_size = rules.num_labels, rules.beam_size
    step_log_probs = _masked(
        step_log_probs, search.live_paths, search.length, num_labels, rules.min_length, rules.longest, rules.repeats
    )  # [beam, labels + 1]
    best, labels = _top_k(step_log_probs, min(beam_size, num_labels + 1))  # [beam, k]
    totals = search.live_log_probs[:, None] + best  # [beam, k]
    totals = jnp.where(search.live_log_probs[:, None] == -jnp.inf, -jnp.inf, totals)  # whatever an empty place has
    is_end = labels == num_labels  # [beam, k]

    ended = jnp.max(totals, axis=1, initial=-jnp.inf, where=is_end)  # [beam]
    log_probs = jnp.concatenate([search.done_log_probs, ended])  # [2 * beam]
    scores = jnp.concatenate([search.done_scores, ended / rules.divisor(search.length + 1)])  # [2 * beam]
    # Of equal ones the first: an impossible path never drives out the END that fills an empty place.
    done_scores, chosen = jax.lax.top_k(scores, beam_size)  # [beam]
    done_paths = jnp.concatenate([search.done_paths, search.live_paths])[chosen]  # [beam, max_length]

    totals = jnp.where(is_end, -jnp.inf, totals).reshape(-1)  # [beam * k]
    live_log_probs, extension = jax.lax.top_k(totals, beam_size)  # [beam]
    parent = extension // best.shape[1]  # [beam]
    label = labels.reshape(-1)[extension]  # [beam]
    at_length = jnp.arange(rules.max_length) == search.length  # [max_length]
    return Search(
        length=search.length + 1,
        state=jax.tree.map(lambda leaf: leaf[parent], search.state),
        live_paths=jnp.where(at_length[None], label[:, None], search.live_paths[parent]),
        live_log_probs=live_log_probs,
        done_paths=done_paths,
        done_log_probs=log_probs[chosen],
        done_scores=done_scores,
    )


def _top_k(x: Array, k: int) -> tuple[Array, Array]:
    """jax.lax.top_k of [beam, tokens]: among many tokens first the k best blocks, where the k best tokens must be."""
    rows, tokens = x.shape
    if tokens < 8 * _BLOCK or tokens <= k * _BLOCK:
        return jax.lax.top_k(x, k)
    blocks = tokens // _BLOCK
    highest = x[:, : blocks * _BLOCK].reshape(rows, blocks, _BLOCK).max(axis=2)  # [beam, blocks]
    # In rising order, as of equal tokens the first is the best; the tokens after the last whole block come along.
    chosen = jnp.sort(jax.lax.top_k(highest, k)[1], axis=1)  # [beam, k]
    within = (chosen[:, :, None] * _BLOCK + jnp.arange(_BLOCK)[None, None]).reshape(rows, -1)
    rest = jnp.broadcast_to(jnp.arange(blocks * _BLOCK, tokens)[None], (rows, tokens - blocks * _BLOCK))
    candidates = jnp.concatenate([within, rest], axis=1)  # [beam, k * block + rest]
    best, place = jax.lax.top_k(jnp.take_along_axis(x, candidates, axis=1), k)
    return best, jnp.take_along_axis(candidates, place, axis=1)


def _last_labels(rules: _Rules, search: Search) -> Array:
    """int32 [beam]. An empty place may hold any label, END too, which a model need not be able to read."""
    return jnp.take(search.live_paths, search.length - 1, axis=1).clip(max=rules.num_labels - 1)


def _is_unfinished(rules: _Rules, search: Search) -> Array:
    """Whether the best live path, the first, can still lead to a candidate better than the N-th: bool []."""
    bound = search.live_log_probs[0] / rules.divisor(rules.longest + 1)
    # Not "bound > ...": a NaN from the model must reach the result.
    return (search.length <= rules.longest) & ~(bound <= search.done_scores[-1])


def steps_of_path(step_log_probs: Array, path: Array) -> Array:
    """Which steps a path takes, its END's included: bool [T + 1] for T labels or END."""
    chex.assert_axis_dimension(step_log_probs, 0, path.shape[0] + 1)
    labels_left = jnp.cumprod(path != step_log_probs.shape[1] - 1)
    return jnp.concatenate([jnp.array([True]), labels_left.astype(bool)])


def _masked(
    step_log_probs: Array,
    paths: Array,
    length: Array,
    num_labels: int,
    min_length: int,
    longest: int,
    repeats: bool,
) -> Array:
    """What may follow paths int32 [beam, T] of one length, else -inf: float32 [beam, labels + 1]."""
    labels = jnp.arange(num_labels + 1)  # [labels + 1]
    used = (paths[:, :, None] == labels[None, None]).any(axis=1)  # [beam, labels + 1], END too where paths are padded
    label_allowed = (repeats | ~used) & (length < longest)  # [beam, labels + 1]
    allowed = jnp.where((labels == num_labels)[None], length >= min_length, label_allowed)  # [beam, labels + 1]
    return jnp.where(allowed, step_log_probs.astype(jnp.float32), -jnp.inf)


def _check_lengths(num_labels: int, max_length: int, min_length: int, repeats: bool) -> int:
    """The labels of the longest path there can be; ValueError if there can be none."""
    if num_labels < 1:
        raise ValueError(f"num_labels {num_labels} is below 1")
    if max_length < 1:
        raise ValueError(f"max_length {max_length} is below 1")
    longest = max_length if repeats else min(max_length, num_labels)
    if not 0 <= min_length <= longest:
        raise ValueError(
            f"min_length {min_length} lies outside 0..{longest}: a path has at most {longest} labels "
            f"(max_length {max_length}, {num_labels} labels{'' if repeats else ', each once'})"
        )
    return longest
