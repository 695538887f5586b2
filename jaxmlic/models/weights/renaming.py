"""Arrays of one owner's file brought to the names of another's."""

import re
from collections.abc import Iterable

import numpy as np

State = dict[str, np.ndarray]


def compiled(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern, str], ...]:
    """(pattern, replacement) pairs for `renamed`."""
    return tuple((re.compile(pattern), name) for pattern, name in rules)


def renamed(state: State, rules: Iterable[tuple[re.Pattern, str]]) -> State:
    """Every name through all rules in turn."""
    rules, found = tuple(rules), {}
    for name, array in state.items():
        for pattern, new in rules:
            name = pattern.sub(new, name)
        found[name] = array
    return found


def fuse_qkv(state: State) -> State:
    """Arrays PREFIX.attn.q.LEAF, k and v of linear layers become one, PREFIX.attn.qkv.LEAF."""
    state = dict(state)
    for name in [name for name in state if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in state for part in parts):
            state[name.replace(".attn.q.", ".attn.qkv.")] = np.concatenate([state.pop(part) for part in parts])
    return state
