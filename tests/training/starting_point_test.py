"""What is frozen needs values from somewhere."""

import pytest

from jaxmlic.training.starting_point import without_values

FROZEN = ["classifier/bias", "classifier/kernel", "trunk/conv/kernel"]


@pytest.mark.parametrize(
    ("frozen", "has_weights", "copied", "mistake", "warning"),
    [
        (FROZEN, True, [], "freezes 2 parameters of the head at random values (first: classifier/bias)", ""),
        (FROZEN, True, FROZEN[:2], "", ""),
        (FROZEN, False, FROZEN, "", ""),
        (FROZEN, False, FROZEN[:2], "", "the trunk is frozen at random values"),
        (FROZEN[2:], False, [], "", "the trunk is frozen at random values"),
        (FROZEN[2:], True, [], "", ""),
        ([], False, [], "", ""),
    ],
)
def test_frozen_parameters_without_values(frozen, has_weights, copied, mistake, warning):
    found = without_values(frozen, has_weights, copied)
    for text, wanted in zip(found, (mistake, warning), strict=True):
        assert wanted in text and bool(text) == bool(wanted)
