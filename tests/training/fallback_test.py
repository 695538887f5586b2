"""A damaged last checkpoint: training continues from the one before, says so, and ends as if nothing had been."""

import gc
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic import sharding
from jaxmlic.errors import UserError
from jaxmlic.training import loop
from jaxmlic.training import state as state_lib
from jaxmlic.training.checkpoint import Checkpoints

# The storage library's threads report a failed read to an event loop that the failure has closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect():
    """Their complaints come when they are collected: here, and not in a later test."""
    yield
    gc.collect()


def steps_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def cut(folder):
    """Every file of the arrays loses its second half, as on a disk that was full."""
    for path in [path for path in folder.rglob("*") if path.is_file() and "/state/" in str(path)]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder):
    """The files are there and hold nothing, as after a power cut."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.write_bytes(b"")


def lose_state(folder):
    shutil.rmtree(folder / "state")


def lose_position(folder):
    shutil.rmtree(folder / "data")


def zeros(folder):
    """The arrays' values are zeros, as where blocks were never written."""
    for path in [path for path in (folder / "state").rglob("d/*") if path.is_file()]:
        path.write_bytes(bytes(path.stat().st_size))


@pytest.fixture
def stopped(finished_run, tmp_path):
    """The run as it was before its last lines were written: all checkpoints, not complete."""
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    (workdir / "result.json").unlink()
    return workdir


@pytest.mark.parametrize("damage", [cut, empty, lose_state, lose_position, zeros])
def test_the_checkpoint_before_a_damaged_one_is_taken(damage, stopped, finished_run, data_dir, capsys):
    *_, before, last = steps_of(stopped)
    assert (before, last) == (12, 16)
    damage(stopped / "checkpoints" / str(last))
    trainer = loop.Trainer(tiny_config(data_dir), str(stopped), mesh_of_one())
    assert trainer.fit() == loop.Outcome(16, True)
    printed = capsys.readouterr()
    assert f"checkpoints/{last} is damaged" in printed.out and f"{last} becomes {last}.damaged" in printed.out
    assert f"from step {before} of 16" in printed.err
    assert json.loads((stopped / "result.json").read_text()) == json.loads((finished_run / "result.json").read_text())
    assert last in steps_of(stopped)
    rows = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert rows == [json.loads(line)["step"] for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    abstract = state_lib.abstract(
        trainer.config, trainer.model, trainer.source.example(), len(trainer.train_view), trainer.mesh
    )
    ours, theirs = (Checkpoints(folder, read_only=True).restore(16, abstract) for folder in (stopped, finished_run))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


def test_training_ends_where_no_checkpoint_can_be_read(stopped, data_dir):
    for step in steps_of(stopped):
        empty(stopped / "checkpoints" / str(step))
    with pytest.raises(UserError, match=r"is damaged"):
        loop.Trainer(tiny_config(data_dir), str(stopped), mesh_of_one()).fit()


def mesh_of_one():
    return sharding.make_mesh(jax.devices()[:1])
