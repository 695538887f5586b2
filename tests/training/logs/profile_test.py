"""Which steps are traced, and that the files are those that TensorBoard and Perfetto open."""

import gzip
import json

import jax.numpy as jnp
import pytest

from jaxmlic.errors import UserError
from jaxmlic.training.logs import profile


def test_steps_are_parsed():
    assert profile.parse("10:13") == (10, 3) and profile.parse("3") == (None, 3)
    for text in ("", "0", "-1", "x", "5:5", "7:3", "-2:3", "1:2:3"):
        with pytest.raises(UserError, match="--profile="):
            profile.parse(text)


def test_a_trace_of_two_steps(tmp_path):
    trace = profile.Profile((3, 2), tmp_path, 0, active=True)
    lines = []
    for step in range(8):
        trace.before(step)
        x = jnp.ones(8) * step
        lines.append(trace.after(step + 1, x))
    assert [i for i, line in enumerate(lines) if line] == [4] and "steps 3 to 4" in lines[4]
    assert trace.stop() == ""
    (events,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    assert json.loads(gzip.decompress(events.read_bytes()))["traceEvents"]
    assert len(list((tmp_path / "profile" / "plugins" / "profile").glob("*/*.xplane.pb"))) == 1


def test_no_trace_unless_asked_for_and_active(tmp_path):
    for wanted, active in ((None, True), ((0, 2), False)):
        trace = profile.Profile(wanted, tmp_path, 0, active)
        for step in range(3):
            trace.before(step)
            assert trace.after(step + 1, None) == ""
    assert not list(tmp_path.iterdir())


def test_a_number_of_steps_leaves_out_the_first(tmp_path):
    trace = profile.Profile((None, 3), tmp_path, 100, active=True)
    assert (trace.first, trace.end) == (105, 108)
