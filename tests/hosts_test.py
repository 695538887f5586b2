"""Several processes are one program: the same numbers on any division into hosts and devices, and one way to end."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import flax
import hosts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.evaluation import score_file
from jaxmlic.models.trunks import resnet
from jaxmlic.propagation import label_file
from jaxmlic.training import run_folder
from jaxmlic.training.checkpoint import Checkpoints

STEPS = 10  # in single precision, where rounding soon moves a value over a kink (ReLU, maximum, hinge)
DOUBLE_STEPS = 20
# A batch norm over the scores, dropout, crops, flips and mixup: all that could depend on the division of a batch.
# Plain SGD, because Adam makes a whole step out of a gradient that is rounding alone.
IMAGES = {
    "config": "multi_order_rnn:dataset=tiny,method=released,trunk=small_cnn,size=16",
    "model.embedding_size": 8,
    "model.recurrent_size": 8,
    "model.dropout": 0.2,
    "loss.cnn_weight": 1.0,
    "augment.crop_area": (0.7, 1.0),
    "augment.mixup": "every_epoch",
    "data.resize": 20,
    "data.val_fraction": 0.25,
    "optim.name": "sgd_nesterov",
    "optim.lr": 0.02,
    "optim.schedule": "constant",
    "optim.groups": ((".*", 1.0),),
    "train.batch_size": 8,
    "train.duration": f"{STEPS} steps",
    "train.eval_every": "5 steps",
    "train.log_every": "1 steps",
}
LAYOUTS = [(1, 8), (2, 4), (4, 2)]  # processes and devices of each


def by_layout(slow):
    """Parameters of a test: every layout, some of them in the slow tests alone."""
    marks = {layout: [pytest.mark.slow] if layout in slow else [] for layout in LAYOUTS}
    return [pytest.param(layout, marks=marks[layout], id="x".join(map(str, layout))) for layout in LAYOUTS]


def options(data_dir, values=IMAGES, **more):
    """The command-line options of a config."""
    values = values | {"data.dir": str(data_dir)} | more
    return [f"--config={values['config']}", *(f"--config.{k}={v}" for k, v in values.items() if k != "config")]


def train(workdir, data_dir, processes, devices, values=IMAGES, before="", **more):
    own = dict.fromkeys(range(processes), before)
    arguments = ["train", f"--workdir={workdir}", *options(data_dir, values, **more)]
    hosts.run(*arguments, processes=processes, devices=devices, before=own)
    return workdir


def train_in_double(workdir, data_dir, layout, values):
    more = {"train.duration": f"{DOUBLE_STEPS} steps", "train.eval_every": f"{DOUBLE_STEPS // 2} steps"}
    return train(workdir, data_dir, *layout, values, hosts.DOUBLE, **more)


def rows_of(workdir):
    """The numbers of metrics.jsonl without those of the clock."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return [{k: v for k, v in row.items() if k != "img_per_s" and not k.startswith("goodput/")} for row in rows]


def assert_same(found, expected, rtol=1e-5):
    """Of two rows, or results; a gradient's norm is of larger sums than a loss, a threshold is one image's score."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            single = name == "train/grad_norm" or name.endswith("best_threshold")
            value = pytest.approx(value, rel=10 * rtol if single else rtol, abs=10 * rtol if single else rtol / 10)
        assert found[name] == value, (expected["step"], name)


def assert_same_rows(found, expected, rtol=1e-5):
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, rtol)


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """The run of one process with one device. Do not write into it."""
    return train(tmp_path_factory.mktemp("alone") / "run", data_dir, 1, 1)


@pytest.fixture
def copy(alone, tmp_path):
    return shutil.copytree(alone, tmp_path / "copy")


@pytest.fixture(scope="module")
def alone_in_double(data_dir, tmp_path_factory):
    """The run of one process with one device by system, made when it is asked for."""
    folders = {}

    def run_of(system):
        if system not in folders:
            workdir = tmp_path_factory.mktemp("alone") / "run"
            folders[system] = train_in_double(workdir, data_dir, (1, 1), values_of(system))
        return folders[system]

    return run_of


@pytest.mark.parametrize("layout", by_layout(slow=[(1, 8), (4, 2)]))
def test_a_run_has_the_same_numbers_on_any_hosts_and_devices(layout, alone, data_dir, tmp_path):
    workdir = train(tmp_path / "run", data_dir, *layout)
    rows = rows_of(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, STEPS + 1))
    assert_same_rows(rows, rows_of(alone))
    assert_same(run_folder.result(workdir), run_folder.result(alone))


SHARED = {key: value for key, value in IMAGES.items() if key.split(".")[0] in ("augment", "data", "optim", "train")}
RECURRENT = {"model.embedding_size": 8, "model.recurrent_size": 8}
SMALL_RMLC = {"config": "cnn_lstm_rmlc:dataset=tiny,head={},trunk=small_cnn,size=16", "model.pool": "avg"}
# Gradients of a ResNet from random values are large: faster, rounding would grow tenfold in five steps.
RESNET = {"config": "linear:dataset=tiny,mode=finetune,size=32", "model.trunk": "resnet18", "data.resize": 36}
RESNET |= {"optim.lr": 0.001}
SYSTEMS = {
    "all at once": IMAGES,
    "linear, trained batch norm": RESNET | {"model.batch_norm": "train"},
    "linear, frozen batch norm, average": RESNET | {"model.batch_norm": "frozen", "optim.ema": 0.9},
    "cnn_rnn": {"config": "cnn_rnn:dataset=tiny,trunk=small_cnn,size=16", "model.max_length": 2} | RECURRENT,
    "cnn_rnn, mla": {"config": "cnn_rnn:dataset=tiny,method=mla,trunk=small_cnn,size=16", "model.max_length": 2}
    | RECURRENT,
    "multi_order_rnn": {"config": "multi_order_rnn:dataset=tiny,trunk=small_cnn,size=16"} | RECURRENT,
    "multi_order_rnn, one order": {
        "config": "multi_order_rnn:dataset=tiny,method=mo_rare_first,trunk=small_cnn,size=16"
    }
    | RECURRENT,
    "cnn_lstm_rmlc.positions": SMALL_RMLC | {"model.units": (8, 4), "model.hidden": 0},
    "cnn_lstm_rmlc.path": SMALL_RMLC | {"model.units": 8, "model.embedding": 6, "model.max_length": 3},
    "cnn_lstm_rmlc.plain": SMALL_RMLC | {"model.hidden": 6},
    "mscnn_lce_mic": {
        "config": "mscnn_lce_mic:dataset=tiny,trunk=small_cnn,size=16",
        **{"model.global_dim": 8, "model.gcn_hidden": 6, "model.gcn_dim": 10, "model.mfb_dim": 12},
        **{"model.word_vectors": "random", "model.word_dim": 5, "optim.lr": 0.002},
    },
}


def values_of(system):
    """Its config; the part of its name after a dot is a head's own."""
    values = SHARED | SYSTEMS[system]
    return values | {"config": values["config"].format(system.rpartition(".")[2])}


@pytest.mark.parametrize("layout", by_layout(slow=[(4, 2)]))
@pytest.mark.parametrize(
    "system", [name if name == "all at once" else pytest.param(name, marks=pytest.mark.slow) for name in SYSTEMS]
)
def test_in_double_precision_any_hosts_and_devices_give_equal_losses(
    system, layout, alone_in_double, data_dir, tmp_path
):
    """To 1e-10 over 20 steps: what is left between them in single precision is rounding."""
    workdir, expected = train_in_double(tmp_path / "run", data_dir, layout, values_of(system)), alone_in_double(system)
    rows = rows_of(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, DOUBLE_STEPS + 1))
    assert_same_rows(rows, rows_of(expected), rtol=1e-10)
    assert_same(run_folder.result(workdir), run_folder.result(expected), rtol=1e-10)


def test_evaluate_on_two_hosts_writes_the_same_score_file(alone, copy):
    """29 images, which neither the hosts nor the batches of 8 divide."""
    assert cli.run(["evaluate", f"--workdir={copy}"]) == 0
    one = score_file.load(copy / "scores" / "test.npz")
    shutil.rmtree(copy / "scores")
    found = hosts.run("evaluate", f"--workdir={copy}", processes=2, devices=2)
    two = score_file.load(copy / "scores" / "test.npz")
    assert one.ids.tolist() == two.ids.tolist() == [f"test-{i:03d}" for i in range(29)]
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-5)
    assert "mAP" in found[0].out and "mAP" not in found[1].out + found[1].err  # process 0 prints


def test_predict_on_two_hosts_gives_the_same_labels(copy, data_dir, tmp_path):
    """Five photographs, one of which cannot be read: the exit status is that of the mistake, on both."""
    records = datasets.load("tiny", data_dir).source("test")
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(records[number]["image"])
    files = [str(tmp_path / f"{number}.png") for number in range(4)]
    assert cli.run(["predict", f"--workdir={copy}", *files]) == 0
    one = json.loads((copy / "predictions.json").read_text())
    (copy / "predictions.json").unlink()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with hosts.Job("predict", f"--workdir={copy}", *files, str(tmp_path / "bad.png"), processes=2) as job:
        found = job.wait()
    assert [process.status for process in found] == [2, 2], found
    two = json.loads((copy / "predictions.json").read_text())
    assert len(one["images"]) == len(two["images"]) == 4 and list(two["unreadable"]) == [str(tmp_path / "bad.png")]
    for a, b in zip(one["images"], two["images"], strict=True):
        assert (a["file"], a["labels"]) == (b["file"], b["labels"])
        assert b["logits"] == pytest.approx(a["logits"], abs=1e-5)


@pytest.mark.slow
def test_features_on_two_hosts_are_the_same_bytes(data_dir, tmp_path):
    """Four devices in one process and in two: the same images on each of them, so the same bits."""
    shapes = jax.eval_shape(lambda: resnet.Trunk(18).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))
    rng, arrays = np.random.default_rng(0), {}
    for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
        turned = [leaf.shape[i] for i in (3, 2, 0, 1)] if len(leaf.shape) == 4 else leaf.shape
        value = np.ones(turned) if path[-1] in ("scale", "var") else 0.05 * rng.normal(size=turned)
        arrays[resnet.torch_names(18)[path]] = value.astype(np.float32)
    np.savez(tmp_path / "weights.npz", **arrays)
    values = RESNET | {"model.batch_norm": "frozen", "pretrained": tmp_path / "weights.npz", "train.batch_size": 8}
    values |= {"optim.groups": (("trunk/.*", None), (".*", 1.0)), "augment.crop_area": (0.7, 1.0)}
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        shutil.copytree(data_dir / "tiny", folder / "tiny", ignore=shutil.ignore_patterns("features"))
        hosts.run("features", *options(folder, values), processes=processes, devices=4 // processes)
        files = sorted((folder / "tiny").rglob("features/**/*.array_record"))
        found.append({file.name: file.read_bytes() for file in files})
    assert found[0].keys() == {"train.array_record", "test.array_record"} and found[0] == found[1]


def test_propagate_on_two_hosts_writes_the_same_labels(alone, data_dir, tmp_path):
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns("features"))
    dataset = datasets.load("tiny", tmp_path)
    parts = {"labelled": np.arange(0, 72, 4), "rest": np.setdiff1d(np.arange(72), np.arange(0, 72, 4))}
    datasets.write_named_split(dataset, "few", parts, {})
    own = ["propagate", f"--workdir={alone}", f"--data-dir={tmp_path}", "--labelled=few/labelled", "--k=5"]
    assert cli.run([*own, f"--out={tmp_path / 'one.npz'}"]) == 0
    hosts.run(*own, f"--out={tmp_path / 'two.npz'}", processes=2, devices=2)
    one, two = (label_file.load(tmp_path / name) for name in ("one.npz", "two.npz"))
    assert one.ids.tolist() == two.ids.tolist()
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-4)
    numbers = [json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json")]
    assert numbers[0].keys() == numbers[1].keys()


def write_features(data_dir, path, dims):
    dataset, rng = datasets.load("tiny", data_dir), np.random.default_rng(0)
    ids = np.concatenate([dataset.ids(split) for split in ("train", "test")])
    np.savez(path, ids=ids, features=rng.normal(size=(len(ids), dims)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def light(data_dir, tmp_path_factory):
    """Options of a linear layer on features from a file, for many short steps and a quick start."""
    path = write_features(data_dir, tmp_path_factory.mktemp("features") / "features.npz", 8)
    values = {"config": "quickstart", "data.source": "file", "data.features_file": path, "model.pool": "avg"}
    values |= {"data.name": "tiny", "data.val_fraction": 0.25, "optim.ema": 0.9, "model.dropout": 0.2}
    values |= {"train.batch_size": 8, "train.eval_every": "150 steps", "train.log_every": "1 steps"}
    return options(data_dir, values | {"train.duration": "300 steps"})


def trains(job):
    """Returns once the job has made three steps."""
    job.wait_until(lambda: len(re.findall(r"^step \d+/", job.printed(0), re.MULTILINE)) > 2)


def test_a_signal_to_one_host_stops_all_at_one_step_and_other_hosts_continue(light, tmp_path, capsys):
    """1 process, then 2, then 1 with 2 devices; the rows are those of a run that was never stopped."""
    hosts.run("train", f"--workdir={tmp_path / 'undisturbed'}", *light)
    workdir, last = tmp_path / "run", 0
    arguments = ["train", f"--workdir={workdir}", *light]
    for processes in (1, 2):
        with hosts.Job(*arguments, processes=processes) as job:
            trains(job)
            job.signal(processes - 1)
            found = job.wait(60)
        assert [one.status for one in found] == [0] * processes, found
        step = Checkpoints(workdir, read_only=True).latest()
        assert last < step < 300 and f"stopped at step {step} by SIGTERM" in found[0].err, found
        assert all("Traceback" not in one.err for one in found)
        last = step
    hosts.run(*arguments, devices=2)
    assert_same_rows(rows_of(workdir), rows_of(tmp_path / "undisturbed"), rtol=1e-4)
    assert run_folder.result(workdir)["finished"]
    capsys.readouterr()
    assert cli.run(arguments) == 0 and "is complete (step 300)" in capsys.readouterr().out


def test_a_lost_host_ends_the_others_with_one_line(light, tmp_path):
    arguments = ["train", f"--workdir={tmp_path / 'run'}", *light, "--config.train.duration=1000000 steps"]
    with hosts.Job(*arguments, processes=2) as job:
        trains(job)
        job.signal(1, signal.SIGKILL)
        found = job.wait(150)
    assert found[1].status == -signal.SIGKILL and found[0].status not in (0, None)
    assert "Traceback" not in found[0].err and found[0].err.strip().splitlines()[-1].startswith("jaxmlic: ")


# A limit on file sizes stands in for a full disk of one host: both reach the writer as a failed write.
FULL = """
import os, resource, signal, threading, time
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def fill():
    while not os.path.isdir({checkpoint!r}):
        time.sleep(0.02)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
threading.Thread(target=fill, daemon=True).start()
"""
# Of process 1 the parts of a checkpoint that it writes; of process 0 a file that it alone writes.
DISKS = {"a checkpoint": (1, 4000, "no space left while saving"), "the log": (0, 12000, "cannot be written")}


@pytest.mark.parametrize("what", DISKS)
def test_a_disk_that_fills_on_one_host_ends_all_with_one_line_and_nothing_is_lost(what, light, data_dir, tmp_path):
    number, size, message = DISKS[what]
    workdir = tmp_path / "run"
    values = {"train.duration": "120 steps", "train.eval_every": "30 steps", "train.shard_state": what != "the log"}
    values |= {"train.checkpoint_every": "10 steps"}
    if what != "the log":  # parameters that the hosts share, so that both write some
        values["data.features_file"] = write_features(data_dir, tmp_path / "wide.npz", 8192)
    arguments = [*light, *(f"--config.{k}={v}" for k, v in values.items())]
    before = {number: FULL.format(checkpoint=str(workdir / "checkpoints" / "20"), size=size)}
    with hosts.Job("train", f"--workdir={workdir}", *arguments, processes=2, before=before) as job:
        trains(job)
        began = time.monotonic()
        found = job.wait(120)
        assert time.monotonic() - began < 60
    assert [one.status for one in found] == [2, 2], found
    last = [one.err.strip().splitlines()[-1] for one in found]
    assert [one.status for one in found] == [2, 2] and all("Traceback" not in one.err for one in found), found
    assert all(line.startswith("jaxmlic: ") and message in line for line in last), last
    assert last[1 - number] == f"{last[number]} (process {number} of 2)"
    hosts.run("train", f"--workdir={workdir}", *arguments, processes=2)
    hosts.run("train", f"--workdir={tmp_path / 'undisturbed'}", *arguments, processes=2)
    assert_same_rows(rows_of(workdir), rows_of(tmp_path / "undisturbed"))
    assert run_folder.result(workdir)["finished"]


SLOW_EVALUATION = """
import time
from jaxmlic.evaluation import scoring
from jaxmlic.training import loop
def slow(*args):
    step = scoring.make_predict_step(*args)
    def predict(*inputs):
        time.sleep(0.5)
        return step(*inputs)
    return predict
loop.scoring = type("scoring", (), {**vars(scoring), "make_predict_step": staticmethod(slow)})
"""


def test_a_signal_to_one_host_in_a_long_evaluation_stops_all_and_the_restart_repeats_it(light, tmp_path):
    """9 batches of half a second."""
    workdir = tmp_path / "run"
    values = {"train.duration": "20 steps", "train.eval_every": "10 steps", "train.eval_batch_size": 2}
    arguments = ["train", f"--workdir={workdir}", *light, *(f"--config.{k}={v}" for k, v in values.items())]
    with hosts.Job(*arguments, processes=2, before=dict.fromkeys((0, 1), SLOW_EVALUATION)) as job:
        job.wait_until(lambda: "step 10/20" in job.printed(0))
        time.sleep(0.7)
        job.signal(1)
        found = job.wait(60)
    assert [one.status for one in found] == [0, 0] and "stopped at step 10 by SIGTERM" in found[0].err, found
    assert "step 10: validation" not in found[0].err
    found = hosts.run(*arguments, processes=2)
    assert found[0].err.count("step 10: validation") == 1 and "step 11/20" in found[0].err
    scored = [row["step"] for row in rows_of(workdir) if "val/protocol" in row]
    assert scored == [10, 20] and run_folder.result(workdir)["finished"]


def test_hosts_with_different_folders_are_refused(light, tmp_path):
    own = {number: [f"--workdir={tmp_path / str(number)}"] for number in (0, 1)}
    with hosts.Job("train", *light, processes=2, own=own) as job:
        found = job.wait(100)
    for one in found:
        assert one.status == 2 and one.err.strip().splitlines()[-1].startswith("jaxmlic: --workdir differs"), found
    assert not (tmp_path / "0" / run_folder.CONFIG_FILE).exists()


def test_hosts_with_different_configs_are_refused(data_dir, tmp_path):
    arguments = ["train", f"--workdir={tmp_path / 'run'}", *options(data_dir)]
    with hosts.Job(*arguments, processes=2, own={1: ["--config.optim.lr=0.5"]}) as job:
        found = job.wait()
    for one in found:
        last = one.err.strip().splitlines()[-1]
        assert one.status == 2 and "Traceback" not in one.err, found
        assert last.startswith("jaxmlic: config.optim.lr") and "0.02" in last and "0.5" in last and "process 1" in last
    assert not (tmp_path / "run" / run_folder.CONFIG_FILE).exists()


def test_a_batch_that_devices_do_not_divide_is_refused_on_all_hosts(data_dir, tmp_path):
    with hosts.Job("train", f"--workdir={tmp_path / 'run'}", *options(data_dir), processes=2, devices=3) as job:
        found = job.wait()
    for one in found:
        assert one.status == 2 and one.err.strip().splitlines()[-1].startswith("jaxmlic: config.train.batch_size = 8")


def test_a_second_trainer_in_a_run_folder_is_refused(data_dir, tmp_path, capsys):
    arguments = ["train", f"--workdir={tmp_path / 'run'}", *options(data_dir)]
    with run_folder.lock(tmp_path / "run"):
        assert cli.run(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is being trained" in error and "--workdir" in error
    with run_folder.lock(tmp_path / "run"):  # it was let go
        pass


def start(*arguments, seconds=60):
    """Calls `distributed.start` in a process of its own."""
    script = f"""
import sys
from jaxmlic import distributed
from jaxmlic.errors import UserError
try:
    distributed.start({", ".join(arguments)})
except UserError as error:
    print(f"jaxmlic: {{error}}", file=sys.stderr)
    sys.exit(2)
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=seconds)


def test_a_port_in_use_is_one_line():
    with socket.socket() as one:
        one.bind(("", 0))
        one.listen()
        port = one.getsockname()[1]
        found = start(f"'localhost:{port}', 2, 0, seconds=5")
    assert found.returncode == 2 and found.stderr.count("\n") == 1 and str(port) in found.stderr


@pytest.mark.parametrize("number", [0, 1], ids=["process 1 does not come", "process 0 does not come"])
def test_processes_that_do_not_come_end_the_job(number):
    port = hosts.free_port()
    found = start(f"'localhost:{port}', 2, {number}, seconds=4")
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert f"localhost:{port}" in found.stderr and ("not all of 2 processes", "did not come")[number] in found.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--coordinator=localhost:1", "--num-processes=2"], "--process-id is missing"),
        (["--process-id=0"], "--coordinator, --num-processes is missing"),
        (["--coordinator=localhost", "--num-processes=2", "--process-id=0"], "HOST:PORT"),
        (["--coordinator=localhost:1", "--num-processes=2", "--process-id=2"], "--process-id=2 is not in 0 ... 1"),
    ],
)
def test_mistakes_in_the_options_are_one_line(given, message, capsys):
    assert cli.run(["evaluate", "--workdir=unused", *given]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert jax.process_count() == 1
