"""The descriptor sets that `config.features.sets` names.

A set is "TRUNK@SIDE", what a pretrained trunk makes of an image whose short side has SIDE pixels, or one without
weights, such as "colour".
"""

import re
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxmlic.errors import UserError, check_choice, did_you_mean
from jaxmlic.inputs.descriptors.descriptor_set import DescriptorSet
from jaxmlic.inputs.descriptors.handmade import HANDMADE, HandmadeSet
from jaxmlic.inputs.descriptors.trunk_set import TrunkSet
from jaxmlic.models import trunks

_TRUNK = re.compile(r"(\w+)@([1-9]\d{0,3})")
_LEAST_SIDE = 16


def sets_of(config: ConfigDict) -> list[DescriptorSet]:
    """The sets in their order. UserError, one line, for a name that is none, one twice, and rules that do not go."""
    rules = config.features
    names = tuple(rules.sets)
    if isinstance(rules.sets, str) or not names:
        raise UserError(
            "data.source = 'descriptors' needs config.features.sets, such as ('efficientnet_lite0@224', 'colour')"
        )
    if len(set(names)) < len(names):
        raise UserError(f"config.features.sets = {names} names a set twice")
    check_choice("features.aspect", rules.aspect, ("keep", "square"))
    if not rules.pools:
        raise UserError("config.features.pools is empty: name one of avg, max, gem, stages")
    if not rules.gem_power > 0:
        raise UserError(f"config.features.gem_power = {rules.gem_power}: a number above 0")
    return [_set_of(config, name) for name in names]


def _set_of(config: ConfigDict, name: str) -> DescriptorSet:
    if name in HANDMADE:
        return HandmadeSet(config, name)
    match = _TRUNK.fullmatch(str(name))
    if not match:
        raise UserError(
            f"config.features.sets: {name!r} is no set{did_you_mean(str(name), HANDMADE)}; known: TRUNK@SIDE (such as "
            f"efficientnet_lite0@224), {', '.join(HANDMADE)}"
        )
    trunk, side = match[1], int(match[2])
    try:
        trunks.get(trunk)
    except UserError as error:
        raise UserError(f"config.features.sets: {name!r}: {error}") from None
    if side < _LEAST_SIDE:
        raise UserError(f"config.features.sets: {name!r}: a side of {_LEAST_SIDE} pixels or more")
    return TrunkSet(config, name, trunk, side)


def vectors(sets: Sequence[DescriptorSet], images: Sequence[np.ndarray], count: int) -> np.ndarray:
    """float32 [N, D] of images uint8 [H, W, 3] of any shapes: the sets' vectors side by side.

    count: images of one shape that go through together.
    """
    return np.concatenate([_vectors(one, [one.prepare(image) for image in images], count) for one in sets], axis=1)


def _vectors(one: DescriptorSet, prepared: list[np.ndarray], count: int) -> np.ndarray:
    found = np.empty((len(prepared), one.size), np.float32)
    for shape in dict.fromkeys(x.shape for x in prepared):
        rows = [row for row, x in enumerate(prepared) if x.shape == shape]
        for start in range(0, len(rows), count):
            part = rows[start : start + count]
            found[part] = one.describe(np.stack([prepared[row] for row in part]), count)
    return found
