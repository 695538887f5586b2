"""Plans: numbers by hand and from the compiled program, mistakes, and every kind of row at the papers' size."""

import jax
import jax.numpy as jnp
import pytest
from conftest import tiny_config

from jaxmlic import config as config_lib
from jaxmlic import sharding
from jaxmlic.cli import main as cli
from jaxmlic.data import benchmark_facts
from jaxmlic.experiments import plan, sweep
from jaxmlic.experiments.devices import DEVICES


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(jax.devices()[:2])


def linear(**overrides):
    """A linear head on a small trunk, of a data set that is nowhere."""
    config = config_lib.load("quickstart")
    values = {"data.name": "nowhere", "data.val_fraction": 0.0, "data.image_size": 24, "train.batch_size": 8}
    return config_lib.override(config, values | overrides)


def test_numbers_of_a_small_model(mesh):
    found = plan.make(linear(**{"train.duration": "3 epochs"}), mesh, labels=5, images=80, compile_step=True)
    assert (found.labels, found.images, found.steps, found.devices) == (5, 80, 30, 2)
    assert found.trainable == found.parameters
    # AdamW keeps two moments of each parameter; gradients are as large as the parameters.
    assert 4 * 4 * found.parameters <= found.state_bytes < 4 * 4 * found.parameters + 20_000
    # What the compiled program sums over the devices: gradients, statistics and a few scalars.
    number, counted = found.collectives["all-reduce"]
    assert number > 0 and found.collective_bytes <= counted < found.collective_bytes * 1.1 + 1000


def test_a_device_more_halves_what_is_not_replicated(mesh):
    one = plan.make(linear(), sharding.make_mesh(jax.devices()[:1]), labels=5, images=80)
    two = plan.make(linear(), mesh, labels=5, images=80)
    assert one.state_bytes == two.state_bytes and one.flops == two.flops
    assert two.activation_bytes == pytest.approx(one.activation_bytes / 2, abs=2)
    assert one.collective_bytes == 0


def test_levers_in_a_plan():
    """Divided state: a share of it, and parameters gathered. Micro-batches: fewer activations, the same FLOPs, more
    sums. Rematerialisation: fewer activations for more FLOPs."""
    mesh = sharding.make_mesh(jax.devices()[:4])
    base = {"model.trunk": "small_cnn_wide", "train.batch_size": 16}
    plans = {
        name: plan.make(linear(**base, **more), mesh, labels=5, images=80, compile_step=name == "shard_state")
        for name, more in {
            "none": {},
            "shard_state": {"train.shard_state": True},
            "accumulate": {"train.accumulate": 4},
            "blocks": {"train.remat": "blocks"},
        }.items()
    }
    none, shard = plans["none"], plans["shard_state"]
    kernels = none.parameters - 4_000  # norms and biases stay whole
    assert shard.gathered_bytes == pytest.approx(4 * kernels, rel=0.05) and none.gathered_bytes == 0
    # Parameters, two moments and gradients: a fourth each, and the gathered parameters.
    assert shard.state_bytes == pytest.approx(4 * kernels * (4 / 4 + 1), rel=0.05)
    assert none.state_bytes == pytest.approx(4 * none.parameters * 4, rel=0.05)
    number, counted = shard.collectives["all-gather"]
    assert number > 0 and counted == pytest.approx(shard.gathered_bytes, rel=0.05)
    assert plans["accumulate"].activation_bytes < 0.4 * none.activation_bytes
    assert plans["accumulate"].flops == none.flops == shard.flops
    assert plans["accumulate"].collective_bytes == 4 * none.collective_bytes
    assert plans["blocks"].activation_bytes < none.activation_bytes
    assert 1.1 * none.flops < plans["blocks"].flops < 1.5 * none.flops


def test_flops_of_vgg16_are_those_of_its_layers(mesh):
    """A frozen VGG16 costs its forward pass: 15.47e9 multiply-adds an image at 224 px, as its paper's layers give."""
    layers = [(224, 3, 64), (224, 64, 64), (112, 64, 128), (112, 128, 128), (56, 128, 256), (56, 256, 256)]
    layers += [(56, 256, 256), (28, 256, 512), (28, 512, 512), (28, 512, 512), *3 * [(14, 512, 512)]]
    adds = sum(side * side * 9 * inputs * outputs for side, inputs, outputs in layers)
    adds += 512 * 49 * 4096 + 4096 * 4096
    config = config_lib.load("cnn_rnn:dataset=coco2014,method=bce")
    found = plan.make(config, mesh)
    assert found.flops == pytest.approx(32 * 2 * adds, rel=0.05)
    assert found.trainable == 80 * 4097 and found.parameters == pytest.approx(134.3e6, rel=0.01)
    assert found.problems == ("the trunk is frozen at random values; config.pretrained names a file with its weights",)


def test_time_is_flops_over_the_peak(mesh):
    found = plan.make(linear(), mesh, labels=5, images=80)
    device = DEVICES["h100"]
    assert found.seconds(device, "bfloat16") == pytest.approx(found.steps * found.flops / (2 * 0.25 * 989e12))
    assert found.seconds(device, "float32") > found.seconds(device, "bfloat16")


def test_rings_by_hand():
    """8 GPUs of a node: each sends 2 * 7/8 of the bytes. 16 GPUs: an eighth goes on to the other node and back."""
    gpu = DEVICES["h100"]
    assert gpu.all_reduce_seconds(1e9, 1) == 0
    assert gpu.all_reduce_seconds(1e9, 8) == pytest.approx(2 * 7 / 8 / 450)
    assert gpu.all_reduce_seconds(1e9, 16) == pytest.approx(2 * 7 / 8 / 450 + 2 * (1 / 8) * (1 / 2) / 50)


def test_growth(capsys):
    """Equal images a device: the batch grows, steps fall, arithmetic stays; a row for each number of devices."""
    command = ["plan", "--config=quickstart", "--labels=5", "--images=80", "--device=h100", "--devices=1,2,8"]
    more = ["--config.train.batch_size=2", "--config.data.image_size=24", "--config.data.name=nowhere"]
    assert cli.run([*command, *more, "--config.data.val_fraction=0", "--config.train.duration=2 epochs"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert [row[:3] for row in rows] == [["1", "2", "80"], ["2", "4", "40"], ["8", "16", "10"]]
    assert rows[0][9] == "arithmetic" and float(rows[0][5]) == 0 and float(rows[2][5]) > 0
    assert cli.run([*command[:-1], "--devices=1,x", *more]) == 2


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"eval.protocol": "path"}, "head 'linear' emits no labels of its own"),
        ({"optim.groups": (("trunk/.*", 1.0), (".*", None))}, "freezes 2 parameters of the head at random values"),
        ({"data.name": "coco2014", "eval.metric": "accuracy"}, "'accuracy': coco2014 has several labels an image"),
    ],
)
def test_problems(mesh, overrides, problem):
    found = plan.make(linear(**overrides), mesh, labels=5, images=80)
    assert len(found.problems) == 1 and problem in found.problems[0]


def test_a_first_stage_gives_what_is_frozen(mesh):
    second = linear(**{"optim.groups": (("trunk/.*", 1.0), (".*", None))})
    assert plan.make(second, mesh, labels=5, images=80, first_stage=linear()).problems == ()
    other = plan.make(second, mesh, labels=5, images=80, first_stage=linear(**{"model.pool": "avg"}))
    assert "freezes 1 parameters" in other.problems[0]  # of another width; the bias fits
    ridge = {"model.trunk": "small_cnn", "model.batch_norm": "train", "model.kernel": "linear"}
    fitted = config_lib.override(config_lib.load("kernel_ridge"), ridge)  # it pools by the mean
    second = config_lib.override(second, {"model.pool": "avg"})
    assert plan.make(second, mesh, labels=5, images=80, first_stage=fitted).problems == ()
    second = config_lib.override(second, {"model.pool": "max"})
    assert "freezes 2 parameters" in plan.make(second, mesh, labels=5, images=80, first_stage=fitted).problems[0]


def test_needs_say_what_is_there(mesh, data_dir, tmp_path):
    weights = tmp_path / "w.npz"
    weights.touch()
    config = tiny_config(data_dir, **{"pretrained": str(weights), "data.train_split": "few/labelled"})
    needs = dict(plan.make(config, mesh, images=40).needs)
    assert needs == {
        "data set tiny: jaxmlic data prepare tiny": True,
        "split few/labelled": False,
        f"config.pretrained: {weights}": True,
    }
    # A prepared data set needs no numbers.
    assert plan.make(tiny_config(data_dir), mesh).labels == 3


def test_images_of_splits():
    assert benchmark_facts.images("coco2014", "train", drop_empty=True) == 82_081
    assert benchmark_facts.images("voc2007", "rmlc/test") == 3_963
    assert benchmark_facts.images("cifar10", "folds10_seed0/train3") == 45_000
    assert benchmark_facts.images("coco2014", "subset10_seed0/labelled") == 8_278
    assert benchmark_facts.images("voc2007", "labelled2000/labelled") == 2_000
    assert benchmark_facts.made_split("voc2007", "labelled2000/labelled")[1].endswith(
        "--subset=2000 --from=rmlc/train --as=labelled2000"
    )
    assert "--from=train " in benchmark_facts.made_split("cifar10", "labelled2000/labelled")[1]
    assert benchmark_facts.images("voc2007", "all/images") == 9_963
    assert benchmark_facts.images("cifar10", "draws10_seed0/draw9") == 4_000
    assert benchmark_facts.images("voc2007", "mine/part") is benchmark_facts.images("mine", "train") is None


def test_mistakes_are_one_line(capsys):
    for more, message in (
        (
            ["--config=cnn_rnn", "--devices=7"],
            "batch_size = 32 cannot be divided over 7 devices; the next that can is 35",
        ),
        (
            ["--config=linear:dataset=birds"],
            "nothing is known of 'train' of data set 'birds': prepare it, or give --labels",
        ),
        (["--config=quickstart", "--devices=0"], "--devices"),
        (["--config=quickstart", "--only=recipe"], "--only goes with --sweep"),
        (["--config=quickstart", "--sweep", "--only=recipes"], "no such entry (did you mean 'recipe'?)"),
    ):
        assert cli.run(["plan", *more]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err


def test_the_command(capsys):
    assert cli.run(["plan", "--config=quickstart", "--devices=2", "--device=h100"]) == 0
    out = capsys.readouterr().out
    assert "scenes, train: 9,500 images, 20 labels" in out and "NVIDIA H100 SXM" in out and "TPU" not in out
    assert cli.run(["plan", "--config=cnn_lstm_rmlc:dataset=cifar10,row=warp", "--sweep", "--only=warp_random"]) == 0
    out = capsys.readouterr().out
    assert "warp_random  cifar14  32     64" in out and "(1 of 1 entries)" in out


def test_an_entry_that_cannot_be_planned_leaves_the_others(tmp_path, capsys):
    text = (
        "from jaxmlic.configs import quickstart\n"
        "def get_config():\n    return quickstart.get_config()\n"
        "def sweep():\n    return [('lost', {'data.name': 'birds'}), ('found', {'optim.lr': 0.1})]\n"
    )
    (tmp_path / "two.py").write_text(text)
    assert cli.run(["plan", f"--config={tmp_path / 'two.py'}", "--sweep"]) == 2
    out, err = capsys.readouterr()
    assert "found  small_cnn" in out and "1 of 2 entries cannot be planned: lost: nothing is known of 'train'" in err


def plan_of(spec, name, mesh, seen):
    """The plan of an entry; None where one like it, of the same model, size and groups, was made before."""
    base, everything = config_lib.load(spec), {entry.name: entry for entry in sweep.entries(spec)}
    entry = everything[name]
    config = sweep.config_of(spec, base, entry, ())
    key = str(
        (config.head, config.model, config.loss, config.optim.groups, config.data.image_size, config.train.batch_size)
    )
    if key in seen:
        return None
    seen.add(key)
    first = sweep.config_of(spec, base, everything[entry.start_from], ()) if entry.start_from else None
    # The size of a split of one's own is not known.
    return plan.make(config, mesh, first_stage=first, images=500 if "few" in spec else None)


PAPERS = ("cnn_rnn", "multi_order_rnn", "cnn_lstm_rmlc", "mscnn_lce_mic:dataset=coco2014", "baseline_ensemble")


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*PAPERS, "mscnn_lce_mic", "mscnn_lce_mic:labelled=few", "cnn_lstm_rmlc:noise"])
def test_every_row_of_the_papers_lowers_at_its_own_size(spec, mesh):
    seen = set()
    for entry in sweep.entries(spec):
        found = plan_of(spec, entry.name, mesh, seen)
        if found is not None:
            assert found.flops > 0 and found.steps > 0, entry.name
            # Weights are given by the command line; nothing else may be wrong.
            assert all("config.pretrained names a file" in problem for problem in found.problems), entry.name


def test_one_row_of_each_head_lowers_at_the_papers_size(mesh):
    """`make test-slow` has all rows; here those of the quickest trunks."""
    rows = {
        "cnn_rnn": ("coco2014_cnn_rnn", "nus_wide_tags_softmax"),
        "cnn_lstm_rmlc": ("cifar10_cnn_lstm_rmlc_random",),
        "mscnn_lce_mic:dataset=coco2014": ("full",),
    }
    for spec, names in rows.items():
        for name in names:
            found = plan_of(spec, name, mesh, set())
            assert found.flops > 1e10 and jnp.isfinite(found.flops)
