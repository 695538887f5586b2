"""The launchers that can be run or read here; launch/slurm.sbatch has a test of its own."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return str(path)


def run(command, **env):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | env)


def test_local_starts_each_process_with_its_number(tmp_path):
    own = script(tmp_path / "own", f'echo "$@" >> {tmp_path}/calls')
    done = run([str(LAUNCH / "local.sh"), "3", "train", "--config=a b"], JAXMLIC=own, PORT="4711")
    assert done.returncode == 0, done.stderr
    calls = sorted((tmp_path / "calls").read_text().splitlines())
    common = "train --config=a b --coordinator=localhost:4711 --num-processes=3 --process-id="
    assert calls == [f"{common}{number}" for number in range(3)]


def test_local_ends_with_a_mistake_s_status_and_passes_signals_on(tmp_path):
    failing = script(tmp_path / "failing", 'case "$*" in *process-id=1) exit 2;; esac')
    assert run([str(LAUNCH / "local.sh"), "2", "train"], JAXMLIC=failing).returncode == 2
    assert run([str(LAUNCH / "local.sh"), "train"]).returncode == 2
    saving = script(
        tmp_path / "saving",
        f"trap 'sleep 0.5; echo saved >> {tmp_path}/saved; exit 0' TERM\necho up >> {tmp_path}/up\n"
        "while true; do sleep 0.1; done",
    )
    job = subprocess.Popen([str(LAUNCH / "local.sh"), "2", "train"], env=os.environ | {"JAXMLIC": saving})
    try:
        while not (tmp_path / "up").exists() or len((tmp_path / "up").read_text().split()) < 2:
            assert job.poll() is None
        job.terminate()
        assert job.wait(timeout=30) == 0
    finally:
        job.kill()
    assert (tmp_path / "saved").read_text().split() == ["saved", "saved"]


def test_a_tpu_slice_is_made_again_until_the_command_is_done(tmp_path):
    """gcloud here: there is no slice at first; the first run of the command ends with the slice preempted."""
    script(
        tmp_path / "gcloud",
        f"""cd {tmp_path}; echo "$@" >> calls
case "$*" in
    *describe*) [ -f state ] && cat state; exit 0;;
    *create*) echo READY > state;;
    *delete*) rm state;;
    *jaxmlic\\ *) if [ -f once ]; then exit 0; else touch once; echo PREEMPTED > state; exit 255; fi;;
esac
""",
    )
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PROJECT": "p", "ZONE": "z", "TYPE": "v5litepod-16"}
    done = run([str(LAUNCH / "tpu_vm.sh"), "slice", "train", "--config=it's"], **env)
    assert done.returncode == 0 and "was preempted or lost; start 2" in done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    kinds = [next(word for word in ("create", "delete", "ssh") if f" {word} " in f" {call} ") for call in calls
             if " describe " not in call]  # fmt: skip
    assert kinds == ["create", "ssh", "ssh", "delete", "create", "ssh", "ssh", "delete"]
    command = next(call for call in calls if "jaxmlic 'train'" in call).partition("--command=")[2]
    assert shlex.split(command)[1:] == ["jaxmlic", "train", "--config=it's"]
    assert run([str(LAUNCH / "tpu_vm.sh"), "slice", "train"]).returncode == 2


def test_a_tpu_slice_that_cannot_be_set_up_is_deleted_and_one_that_is_not_there_now_waited_for(tmp_path):
    """gcloud here: setting up fails at first; later the slice is preempted, and cannot be made again at once."""
    script(
        tmp_path / "gcloud",
        f"""cd {tmp_path}; echo "$@" >> calls
case "$*" in
    *describe*) [ -f state ] && cat state; exit 0;;
    *create*) if [ -f full ]; then rm full; exit 1; else echo READY > state; fi;;
    *delete*) rm state;;
    *jaxmlic\\ *) if [ -f once ]; then exit 0; else touch once full; echo PREEMPTED > state; exit 255; fi;;
    *pip*) [ -f pip ] || {{ touch pip; exit 1; }};;
esac
""",
    )
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PROJECT": "p", "ZONE": "z", "TYPE": "v5litepod-16", "WAIT": "0"}
    assert run([str(LAUNCH / "tpu_vm.sh"), "slice", "train"], **env).returncode == 1
    assert not (tmp_path / "state").exists()
    (tmp_path / "calls").unlink()
    done = run([str(LAUNCH / "tpu_vm.sh"), "slice", "train"], **env)
    assert done.returncode == 0 and "could not be made again" in done.stderr and not (tmp_path / "state").exists()
    assert [call.split()[3] for call in (tmp_path / "calls").read_text().splitlines()].count("create") == 3


def test_several_nodes_are_given_no_folder_that_they_cannot_write_to():
    for path in LAUNCH.iterdir():
        assert "--workdir=s3://" not in path.read_text(), path


def test_gke_asks_for_as_many_hosts_as_the_topology_has():
    job = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    work = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = work["template"]["spec"]
    container = pod["containers"][0]
    columns, rows = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert work["parallelism"] == work["completions"] == columns * rows // chips
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert work["backoffLimit"] == 0 and job["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert container["command"][:2] == ["jaxmlic", "train"] and pod["restartPolicy"] == "Never"
    # A pod that ends with 0 is complete to Kubernetes, also where a notice ended it.
    assert {"name": "JAXMLIC_STOPPED_STATUS", "value": "143"} in container["env"]


def test_skypilot_gives_each_node_its_place(tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["use_spot"] and task["num_nodes"] == 2
    script(tmp_path / "jaxmlic", f'printf "%s\\n" "$@" > {tmp_path}/call')
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    env |= {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "COMMAND": "train --config=quickstart"}
    assert run(["sh", "-c", task["run"]], **env).returncode == 0
    wanted = "train --config=quickstart --coordinator=10.0.0.1:8476 --num-processes=2 --process-id=1"
    assert (tmp_path / "call").read_text().split() == wanted.split()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_the_scripts_pass_shellcheck():
    done = run(["shellcheck", *map(str, sorted(LAUNCH.glob("*.s*h")))])
    assert done.returncode == 0, done.stdout


def test_every_launcher_is_in_the_table():
    listed = set(re.findall(r"^\| `([^`]+)`", (LAUNCH / "README.md").read_text(), re.M))
    assert listed == {path.name for path in LAUNCH.iterdir() if path.name != "README.md"}
