"""A run killed with SIGKILL at any step and started again ends with the same bits as one that never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from conftest import tiny_config

from jaxmlic.training import loop
from jaxmlic.training import state as state_lib
from jaxmlic.training.checkpoint import Checkpoints
from jaxmlic.training.logs import metrics_log

SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import conftest
from jaxmlic.training import loop
kill_at = int(sys.argv[1])
trainer = loop.Trainer(conftest.tiny_config({data!r}), {workdir!r})
jitted = trainer.train_step
def step(state, batch):
    if int(state.step) == kill_at:
        for number in sys.argv[2:]:  # a checkpoint is written in the background: wait for those that must be there
            while not os.path.isdir(os.path.join({workdir!r}, "checkpoints", number)):
                time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return jitted(state, batch)
trainer.train_step = step
trainer.fit()
"""


def states(trainer, *folders):
    abstract = state_lib.abstract(
        trainer.config, trainer.model, trainer.source.example(), len(trainer.train_view), trainer.mesh
    )
    return [Checkpoints(folder, read_only=True).restore(16, abstract) for folder in folders]


def test_killed_and_resumed_equals_never_stopped(finished_run, data_dir, tmp_path):
    # Before the first checkpoint, right after one (while it may still be written), between two, at the last step.
    workdir = tmp_path / "run"
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), data=str(data_dir), workdir=str(workdir))
    for kill_at, status in ((2, -9), (8, -9), (15, -9), (-1, 0)):
        done = subprocess.run(
            [sys.executable, "-c", script, str(kill_at)], capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == status, done.stderr
    trainer = loop.Trainer(tiny_config(data_dir), str(workdir))
    jax.tree.map(np.testing.assert_array_equal, *states(trainer, workdir, finished_run))
    rows = [
        [
            {k: v for k, v in row.items() if k != "img_per_s" and not k.startswith("goodput/")}
            for row in metrics_log.read(folder)
        ]
        for folder in (workdir, finished_run)
    ]
    assert rows[0] == rows[1]
    starts = json.loads((workdir / "config.json").read_text())["starts"]
    assert [start["step"] for start in starts][:2] == [0, 0] and 4 <= starts[2]["step"] <= starts[3]["step"] <= 12
    assert len(starts) == 4 and sorted(start["time"] for start in starts) == [start["time"] for start in starts]
    last = [row for row in metrics_log.read(workdir) if "goodput/steps" in row][-1]
    assert last["goodput/redone"] > 0 and last["goodput/away"] > 0
    results = [(folder / "result.json").read_text() for folder in (workdir, finished_run)]
    assert results[0] == results[1]


def test_no_space_while_saving_keeps_the_last_good_checkpoint(finished_run, data_dir, tmp_path):
    """A limit on file sizes stands in for a full disk: both reach the writer as a failed write."""
    workdir = tmp_path / "run"
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), data=str(data_dir), workdir=str(workdir))
    first = subprocess.run([sys.executable, "-c", script, "6", "4"], capture_output=True, env=os.environ)
    assert first.returncode == -9
    limited = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import sys
from jaxmlic.cli import main as cli
cli.quiet_libraries()
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import conftest
from jaxmlic.training import loop
from jaxmlic.errors import UserError
trainer = loop.Trainer(conftest.tiny_config({str(data_dir)!r}), {str(workdir)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    trainer.fit()
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""
    second = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, env=os.environ)
    assert second.returncode == 2, second.stderr
    assert "Traceback" not in second.stderr
    message = second.stderr.strip().splitlines()[-1]
    assert "no space left" in message and "last good checkpoint is step 4" in message
    third = subprocess.run([sys.executable, "-c", script, "-1"], capture_output=True, text=True, env=os.environ)
    assert third.returncode == 0, third.stderr
    trainer = loop.Trainer(tiny_config(data_dir), str(workdir))
    jax.tree.map(np.testing.assert_array_equal, *states(trainer, workdir, finished_run))
