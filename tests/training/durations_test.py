"""Durations, against values worked out by hand."""

import pytest

from jaxmlic.errors import UserError
from jaxmlic.training import durations


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500 steps", 500),
        ("1 step", 1),
        ("10 epochs", 156),  # 10 * 1000 / 64 = 156.25
        ("0.5 epochs", 8),  # 7.8
        ("20000 examples", 312),  # 312.5 to even
        ("5%", 10),
        ("2e3 steps", 2000),
    ],
)
def test_each_form(text, expected):
    assert durations.steps(text, examples=1000, batch_size=64, total=200) == expected


@pytest.mark.parametrize("text", ["", "ten epochs", "10", "-3 steps", "10 weeks"])
def test_other_text_names_the_field(text):
    with pytest.raises(UserError, match=r"config\.train\.duration = .* is no duration"):
        durations.steps(text, examples=10, batch_size=1, field="train.duration")


def test_percent_of_nothing():
    with pytest.raises(UserError, match="cannot be a percentage"):
        durations.steps("5%", examples=10, batch_size=1)
