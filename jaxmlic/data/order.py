"""The order of the training examples: a new permutation every epoch, a function of seed and epoch alone.

It is the order of `grain.MapDataset.range(N).seed(seed).shuffle().repeat()`, computed for a whole epoch at once: a
Simon block cipher of four rounds (Beaulieu et al., 2013) over blocks of at least 16 bits, applied again and again
until it falls among the examples. One at a time that takes 10 us an example of a large split and 900 us of one of 50;
here a split takes milliseconds. (grain's block is a bit short for 2^16 + 1, 2^18 + 1, ... examples, and so gives some
of them twice and others never; here it is not.)
"""

import functools

import numpy as np

_ROUNDS = 4
_LEAST_BLOCK = 16  # bits; smaller blocks show patterns
_WORD = 0xFFFFFFFF


class EpochOrder:
    """`rows(start, stop)`: the examples at those positions of the endless sequence of shuffled epochs."""

    def __init__(self, examples: int, seed: int):
        first = int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])
        self.examples = examples
        # Two epochs, since threads read ahead over the end of one.
        self.epoch = functools.lru_cache(maxsize=2)(lambda epoch: permutation(examples, first + epoch))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start], numbers of examples."""
        parts = []
        while start < stop:
            epoch, first = divmod(start, self.examples)
            last = min(self.examples, first + stop - start)
            parts.append(self.epoch(epoch)[first:last])
            start += last - first
        return np.concatenate(parts)


def permutation(count: int, seed: int) -> np.ndarray:
    """int64 [count], a permutation of 0..count - 1; seed: any integer, modulo 2^32."""
    if count == 1:
        return np.zeros(1, np.int64)
    bits = (count - 1).bit_length()
    block = max(bits + bits % 2, _LEAST_BLOCK)
    keys = seed_sequence(seed % 2**32, _ROUNDS)
    if block == _LEAST_BLOCK:  # walks may be long, but all together pass a value once
        table = encrypt(np.arange(1 << block, dtype=np.uint64), keys, block // 2).tolist()
        return np.array([_walk(table, start, count) for start in range(count)], np.int64)
    found = np.arange(count, dtype=np.uint64)
    outside = np.arange(count)
    while len(outside):
        found[outside] = encrypt(found[outside], keys, block // 2)
        outside = outside[found[outside] >= count]
    return found.astype(np.int64)


def _walk(table: list[int], value: int, count: int) -> int:
    value = table[value]
    while value >= count:
        value = table[value]
    return value


def encrypt(values: np.ndarray, keys: list[int], word: int) -> np.ndarray:
    """uint64 [N] -> uint64 [N]: Simon's Feistel rounds over blocks of 2 * word bits."""
    mask, shift = np.uint64((1 << word) - 1), np.uint64(word)

    def rotate(x: np.ndarray, by: int) -> np.ndarray:
        return (x << np.uint64(by) | x >> np.uint64(word - by)) & mask

    left, right = values >> shift & mask, values & mask
    for key in keys:
        left ^= (rotate(right, 1) & rotate(right, 8)) ^ rotate(right, 2) ^ (np.uint64(key) & mask)
        left, right = right, left
    return left << shift | right


def seed_sequence(seed: int, count: int) -> list[int]:
    """`count` numbers below 2^32: what C++'s std::seed_seq of one seed generates ([rand.util.seedseq])."""
    state = [0x8B8B8B8B] * count
    t = (count - 1) // 2 if count < 7 else 3
    p, steps = (count - t) // 2, max(2, count)
    q = p + t

    def mixed(value: int) -> int:
        return value ^ value >> 27

    for k in range(steps):
        here, ahead, after = k % count, (k + p) % count, (k + q) % count
        first = 1664525 * mixed(state[here] ^ state[ahead] ^ state[(k - 1) % count]) & _WORD
        second = first + (1 if k == 0 else here + seed if k == 1 else here) & _WORD
        state[ahead] = state[ahead] + first & _WORD
        state[after] = state[after] + second & _WORD
        state[here] = second
    for k in range(steps, steps + count):
        here, ahead, after = k % count, (k + p) % count, (k + q) % count
        first = 1566083941 * mixed(state[here] + state[ahead] + state[(k - 1) % count] & _WORD) & _WORD
        second = first - here & _WORD
        state[ahead] ^= first
        state[after] ^= second
        state[here] = second
    return state
