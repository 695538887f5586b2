"""launch/slurm.sbatch on a real SLURM of one machine, which this test starts and stops.

It needs root, and Debian's packages slurm-wlm and munge; nothing is installed here.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)), reason="needs root, slurm-wlm and munge"
    ),
]
CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a running SLURM."""
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().split(".")[0]
    folder.chmod(0o755)  # munge refuses a folder that others may write, and one that it cannot pass
    for name in ("spool", "state"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    ports = []
    for _ in range(2):
        with socket.socket() as one:
            one.bind(("", 0))
            ports.append(one.getsockname()[1])
    conf = CONF.format(folder=folder, host=host, ports=ports, cores=os.cpu_count())
    (folder / "slurm.conf").write_text(conf)
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}
    munge = [f"--{what}={folder}/munge.{what.split('-')[0]}" for what in ("key-file", "socket", "pid-file", "log-file")]
    daemons = [
        ["munged", "--foreground", "--force", *munge, f"--seed-file={folder}/munge.seed"],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    ]
    started = []
    try:
        for command in daemons:
            started.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(1)
        wait(lambda: "idle" in output(["sinfo", "--noheader"], env), 30)
        yield env
    finally:
        for one in reversed(started):
            one.terminate()
            one.wait(timeout=30)


def output(command, env):
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False).stdout


def wait(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.5)


def rows(workdir):
    path = workdir / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.endswith("}"):
            found.append(json.loads(line))
    return found


def test_a_killed_task_and_a_stopped_job_are_queued_again(slurm, tmp_path, data_dir):
    """Two tasks; one is killed, then the job is told to leave: both times the job goes on where it was."""
    arguments = [
        "train", "--config=quickstart:smoke", "--config.train.duration=60 steps", "--config.train.log_every=1 steps",
        "--config.train.checkpoint_every=2 steps", "--config.train.eval_every=60 steps", "--config.train.cpu_devices=1",
        "--config.optim.name=sgd", "--config.optim.lr=0.02",
        "--config.data.name=tiny", f"--config.data.dir={data_dir}",
    ]  # fmt: skip
    jaxmlic = f"{sys.executable} -m jaxmlic"
    plain = subprocess.run(
        [*jaxmlic.split(), *arguments, f"--workdir={tmp_path / 'plain'}"], env=slurm, timeout=600, check=True
    )
    assert plain.returncode == 0
    workdir, log = tmp_path / "job", tmp_path / "job.log"
    options = ["--parsable", "--nodes=1", "--ntasks-per-node=2", f"--output={log}", "--chdir", str(ROOT)]
    job = output(
        ["sbatch", *options, str(ROOT / "launch/slurm.sbatch"), *arguments, f"--workdir={workdir}"],
        slurm | {"JAXMLIC": jaxmlic},
    ).strip()
    assert job.isdigit()

    def steps():
        return max((row["step"] for row in rows(workdir)), default=0)

    def restarts():
        shown = output(["scontrol", "show", "job", job], slurm)
        return int(shown.partition("Restarts=")[2].split()[0]) if "Restarts=" in shown else 0

    wait(lambda: steps() >= 5, 300)
    tasks = [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if (folder / "cmdline").exists() and str(workdir).encode() in (folder / "cmdline").read_bytes()
        and b"SLURM_PROCID=1" in (folder / "environ").read_bytes()
    ]  # fmt: skip
    os.kill(tasks[0], signal.SIGKILL)
    wait(lambda: restarts() == 1, 120)
    before = steps()
    wait(lambda: steps() > before + 3, 300)
    subprocess.run(["scancel", "--signal=TERM", "--batch", job], env=slurm, check=True, timeout=60)
    wait(lambda: restarts() == 2, 120)
    wait(lambda: (workdir / "result.json").exists(), 300)
    trained = [row["step"] for row in rows(workdir) if "train/loss" in row]
    assert trained == list(range(1, 61))  # no step twice, none left out
    for mine, own in zip(rows(workdir), rows(tmp_path / "plain"), strict=True):
        if "train/loss" in own:
            # One process here, two there: sums in another order. Adam would make steps out of the difference alone.
            assert mine["train/loss"] == pytest.approx(own["train/loss"], rel=1e-5 if own["step"] < 6 else 1e-3)
    assert "stopped at step" in log.read_text() and "saved. The same command continues" in log.read_text()
