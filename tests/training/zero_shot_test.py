"""A classifier that starts from label vectors, and runs of no steps."""

import json

import jax
import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic import config as config_lib
from jaxmlic import run as run_lib
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets, loader
from jaxmlic.errors import UserError
from jaxmlic.inputs import open_source
from jaxmlic.labels.stratify import stratified_split
from jaxmlic.models.heads import contract
from jaxmlic.models.layers.pooling import POOLS
from jaxmlic.training import loop, run_folder, starting_point
from jaxmlic.training import state as state_lib

WIDTH = 96  # of small_cnn's vector
FIELDS = {"head": "linear", "model.pool": "avg_unit", "train.duration": "0 steps"}


@pytest.fixture
def names(tmp_path):
    """The file of vectors of red, green and blue, in another order, of any length."""
    return write(tmp_path / "names.npz", ["blue", "Red", "green", "grey"])


def write(path, names, width=WIDTH, **more):
    vectors = np.random.default_rng(3).normal(size=(len(names), width)) * np.arange(1, len(names) + 1)[:, None]
    np.savez(path, names=np.array(names), vectors=vectors, **more)
    return path


def cosines(features, path, columns):
    """By hand: [N, C] of features [N, D] and rows of the file."""
    with np.load(path) as file:
        vectors = file["vectors"][columns]
    lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)[None]
    return features @ vectors.T / lengths


def test_logits_of_a_run_of_no_steps_are_scaled_cosines(data_dir, names, tmp_path):
    """Through the run folder: the scores of `evaluate` are scale * cosine + bias of the trunk's mean feature map."""
    write(names, ["blue", "Red", "green", "grey"], logit_scale=np.log(30.0), logit_bias=-1.5)
    config = tiny_config(data_dir, **FIELDS, **{"text.vectors": str(names), "text.bias": 0.25})
    outcome = loop.run(config, str(tmp_path / "run"))
    assert outcome == loop.Outcome(0, True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best_step"] == 0 and 0 < result["val/mAP"] <= 1
    run = run_lib.load(tmp_path / "run")
    scores = run.evaluate().scores.scores
    assert run.step == 0
    variables = run._restored.variables
    outputs = jax.jit(run._restored.model.apply)(
        variables, np.stack([run.pictures(split="test", rows=np.arange(29)).pixels[i] for i in range(29)])
    )
    features = np.asarray(outputs["feature_map"], np.float64).mean((1, 2))
    np.testing.assert_allclose(scores, 30 * cosines(features, names, [1, 2, 0]) - 1.25, atol=2e-4)
    assert loop.run(config, str(tmp_path / "run")).finished  # again: it is complete


@pytest.mark.parametrize(
    ("argument", "side", "width"),
    [
        ("", 224, 512),
        ("trunk=vit_large_patch14_clip_336_projected", 336, 768),
        ("trunk=vit_base_patch16_siglip_256_pooled", 256, 768),
        ("trunk=small_cnn,size=48", 48, 96),
        ("smoke", 224, 512),
    ],
)
def test_the_experiment_is_the_trunk_as_it_was_trained(argument, side, width):
    """Shapes alone: the classifier is on a vector in the text's space, and no parameter of the trunk learns."""
    config = config_lib.load(f"zero_shot:{argument}" if argument else "zero_shot")
    model = contract.make_model(contract.find(config.head), config, 20, 5)
    shapes = state_lib.parameter_shapes(model, open_source(config).example())
    assert config.data.image_size == side and shapes["classifier/kernel"] == (width, 20)
    _, multipliers, _, total = state_lib.optimizer(config, model, open_source(config).example(), 100)
    assert total == 0 and {name for name, rate in multipliers.items() if rate} == {
        "classifier/bias",
        "classifier/kernel",
    }


@pytest.mark.parametrize(
    ("given", "stored", "scale", "bias"),
    [
        ({}, {}, 100.0, 0.0),
        ({"scale": 20.0, "bias": -3.0}, {}, 20.0, -3.0),
        ({"scale": 20.0, "bias": -3.0}, {"logit_scale": 1.0, "logit_bias": 2.0}, 20.0, -1.0),
        ({}, {"logit_scale": 1.0, "logit_bias": 2.0}, np.e, 2.0),
    ],
)
def test_scale_and_bias(given, stored, scale, bias, names):
    write(names, ["blue", "red"], **stored)
    layer, note = starting_point.text_layer(
        str(names), ["red", "blue"], WIDTH, pool="avg_unit", trunk="small_cnn", **given
    )
    np.testing.assert_allclose(np.linalg.norm(layer["kernel"], axis=0), scale, rtol=1e-5)
    np.testing.assert_array_equal(layer["bias"], np.float32([bias, bias]))
    assert f"{scale:.6g} * cosine {bias:+.6g}" in note


def test_a_vector_of_zeros_stays_one_and_has_a_gradient():
    found, gradient = jax.value_and_grad(lambda x: POOLS["avg_unit"](x).sum())(np.zeros((1, 2, 2, 3), np.float32))
    assert found == 0 and np.isfinite(gradient).all()


def test_training_goes_on_from_the_vectors(data_dir, names, tmp_path):
    """With steps, the averaged parameters start there too; a frozen classifier has its values from the file."""
    fields = FIELDS | {"train.duration": "2 steps", "text.vectors": str(names), "optim.ema": 0.9}
    groups = {"optim.groups": (("classifier/.*", None), (".*", 1.0))}
    config = tiny_config(data_dir, **fields, **groups)
    assert loop.run(config, str(tmp_path / "frozen")).finished
    params = run_lib.load(tmp_path / "frozen")._restored.variables["params"]
    layer, _ = starting_point.text_layer(
        str(names), ["red", "green", "blue"], WIDTH, pool="avg_unit", trunk="small_cnn"
    )
    np.testing.assert_array_equal(params["classifier"]["kernel"], layer["kernel"])
    state = loop.Trainer(tiny_config(data_dir, **fields), str(tmp_path / "x")).initial_state()
    np.testing.assert_array_equal(state.ema["classifier/kernel"], layer["kernel"])


def test_no_steps_keep_another_run_as_it_is(finished_run, data_dir, tmp_path):
    config = tiny_config(data_dir, **{"start_from": str(finished_run), "train.duration": "0 epochs"})
    assert loop.run(config, str(tmp_path / "run")).finished
    same = [run_lib.load(folder).evaluate().scores.scores for folder in (finished_run, tmp_path / "run")]
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"model.pool": "avg"}, "config.model.pool = 'avg' keeps the length of the image's vector: set"),
        ({"head": "kernel_ridge"}, "the head 'kernel_ridge' has no layer 'classifier' to start from them"),
        ({"text.scale": -1.0}, "config.text.scale = -1.0"),
        ({"text.vectors": "gone.npz"}, "gone.npz: cannot be read"),
        ({"text.vectors": ""}, "config.train.duration = '0 steps' leaves 2 parameters of the head at random values"),
        ({"train.duration": "1 examples"}, "config.train.duration = '1 examples' is less than one step"),
    ],
)
def test_mistakes(fields, line, data_dir, names, tmp_path, capsys):
    values = {"text.vectors": str(names)} | FIELDS | fields
    if fields.get("head"):
        config = tiny_config(data_dir, **(values | {"head": "linear"}))
        state = loop.Trainer(config, str(tmp_path / "x")).initial_state()
        config.head = fields["head"]
        with pytest.raises(UserError, match=line):
            starting_point.from_text(state.replace(params={}), config, ["red"])
        return
    with pytest.raises(UserError) as caught:
        loop.run(tiny_config(data_dir, **values), str(tmp_path / "run"))
    assert line in str(caught.value)


def test_a_file_without_a_label_or_of_another_width_ends_in_one_line(data_dir, tmp_path, capsys):
    """On the command line, with status 2."""
    fields = {"data.name": "tiny", "data.dir": data_dir, "data.image_size": 16, **FIELDS}
    argv = ["train", "--config=quickstart:smoke", f"--workdir={tmp_path / 'run'}"]
    argv += [f"--config.{name}={value}" for name, value in fields.items()]
    lacking = write(tmp_path / "names.npz", ["blue", "red"])
    assert cli.run([*argv, f"--config.text.vectors={lacking}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"jaxmlic: {lacking}: no vector for 1 of 3 labels: 'green'; encode their names with the same text encoder and "
        "add them"
    )
    narrow = write(tmp_path / "narrow.npz", ["blue", "red", "green"], 64)
    assert cli.run([*argv, f"--config.text.vectors={narrow}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "vectors of 64 numbers, and the image's vector of trunk 'small_cnn' has 96: take the trunk" in line


def test_a_data_set_is_divided_as_it_was_before_labels_were_added(data_dir):
    config = tiny_config(data_dir)
    dataset = datasets.load("tiny", data_dir)
    before = loader.train_and_val(config.data, dataset, 0)
    more = datasets.WithAdded(dataset, ("blue", "red", "pink"), ("red", "pink"))
    after = loader.train_and_val(config.data, more, 0)
    np.testing.assert_array_equal(after[0].labels[:, 2], -1)
    np.testing.assert_array_equal(after[0].labels[:, 0], dataset.labels("train")[after[0].indices, 2])
    own = datasets.WithAdded(dataset, (*dataset.class_names, "pink"), ("pink",))
    for view, other in zip(before, loader.train_and_val(config.data, own, 0), strict=True):
        np.testing.assert_array_equal(view.indices, other.indices)
        np.testing.assert_array_equal(view.labels, other.labels[:, :3])
        assert run_folder.fingerprint(view) != run_folder.fingerprint(other)
    two = loader.train_and_val(config.data, datasets.WithAdded(dataset, dataset.class_names, ("blue",)), 0)
    rows = stratified_split(dataset.labels("train")[:, :2], 0.25, 0)
    for view, expected, other in zip(two, rows, before, strict=True):
        np.testing.assert_array_equal(view.indices, expected)
        assert not np.array_equal(view.indices, other.indices)  # by all three classes
    with pytest.raises(UserError, match=r"has no class 'rde' .did you mean 'red'.., which the run was trained on"):
        datasets.WithAdded(dataset, ("rde", "pink"), ("pink",))
