"""The order of the examples: grain's own shuffle, a permutation every epoch, the same however it is asked for."""

import grain
import numpy as np
import pytest

from jaxmlic.data import order


@pytest.mark.parametrize("count", [1, 300, 2049, 70_001])
def test_it_is_the_order_of_grain(count):
    shuffled = grain.MapDataset.range(count).seed(5).shuffle()
    found = order.EpochOrder(count, 5)
    for start in (0, count - 1, 3 * count - 2):
        expected = [int(shuffled[i]) for i in range(start, start + 4)]
        np.testing.assert_array_equal(found.rows(start, start + 4), expected)


@pytest.mark.parametrize("count", [2, 3, 57, 65_536, 65_537, 65_538, 100_000])
def test_an_epoch_has_every_example_once(count):
    found = [order.permutation(count, seed) for seed in (0, 2**32 - 1)]
    for rows in found:
        np.testing.assert_array_equal(np.sort(rows), np.arange(count))
    assert count < 4 or (found[0] != found[1]).any()
    np.testing.assert_array_equal(order.permutation(count, 2**32), found[0])  # seeds wrap around, as epochs add to them


def test_rows_run_over_the_ends_of_epochs():
    found = order.EpochOrder(7, 3)
    whole = found.rows(0, 40)
    parts = [found.rows(start, start + 5) for start in range(0, 40, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len({tuple(whole[i : i + 7]) for i in range(0, 35, 7)}) > 1
