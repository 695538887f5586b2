"""Strict switches for every test, and the small data set and run that many tests share."""

import atexit
import csv
import os
import shutil
import tempfile
from importlib.metadata import version

# Tests compile much and compute little: XLA's expensive passes would be most of their time.
# An XLA that does not know a flag aborts, so the second one, a fifth of a compilation, goes to the series that has it.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        *(["--xla_cpu_use_fusion_emitters=false"] if version("jaxlib").startswith("0.10.") else []),
    ]
)

# The same program is compiled once in the whole session, by whichever test or subprocess comes first.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxmlic-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import cv2
import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

from jaxmlic import config as config_lib  # noqa: E402  (after the switches)
from jaxmlic.data.prepare import writer  # noqa: E402

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}


def picture(labels: np.ndarray, rng: np.random.Generator, side: int = 20) -> np.ndarray:
    """Grey noise with a square of each present label's colour: easy to learn. uint8 [side, side, 3] RGB."""
    image = rng.integers(90, 150, (side, side, 3)).astype(np.uint8)
    for colour, present in zip(COLOURS.values(), labels, strict=True):
        if present == 1:
            y, x = rng.integers(0, side - 9, 2)
            image[y : y + 9, x : x + 9] = colour
    return image


def examples(split: str, count: int, seed: int):
    """Encoded examples of the tiny data set; every seventh label is unknown."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        labels = (rng.random(3) < 0.4).astype(np.int8)
        image = picture(labels, rng)
        labels[rng.random(3) < 1 / 7] = -1
        data = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
        yield {"id": f"{split}-{i:03d}", "image": data, "labels": labels}


def table_of(path):
    """Rows of a CSV file as dicts."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with the prepared data set `tiny`: 72 training and 29 test pictures of 20 px, 3 classes."""
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": examples("train", 72, 0), "test": examples("test", 29, 1)}
    writer.write("tiny", folder, list(COLOURS), splits, {})
    return folder


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """No learning curves in tests/experiments, where each of many runs of a second would draw some."""
    if request.path.parent.name == "experiments":
        monkeypatch.setattr("jaxmlic.reports.figures.learning_curves.write", lambda workdir: None)


def tiny_config(data_dir, **overrides):
    """Sixteen steps on `tiny` in a second or two."""
    config = config_lib.load("quickstart")
    values = {
        "data.name": "tiny",
        "data.dir": str(data_dir),
        "data.image_size": 16,
        "data.resize": 20,
        "data.cache": False,
        "data.val_fraction": 0.25,
        "train.batch_size": 8,
        "train.duration": "16 steps",
        "train.eval_every": "4 steps",
        "train.log_every": "4 steps",
    }
    return config_lib.override(config, values | overrides)


@pytest.fixture(scope="session")
def finished_run(data_dir, tmp_path_factory):
    """The run folder of a complete training on `tiny`. Do not write into it."""
    from jaxmlic.training import loop

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    outcome = loop.run(tiny_config(data_dir), str(folder))
    assert outcome == loop.Outcome(16, True)
    return folder


@pytest.fixture(scope="session")
def path_run(data_dir, tmp_path_factory):
    """The run folder of a CNN-RNN on `tiny`, its weights drawn so that paths differ. Do not write into it.

    Nothing is trained: a few steps would give every image the same path, and many are slow.
    """
    from jaxmlic.training import loop

    class Drawn(loop.Trainer):
        """Begins, and ends, with larger weights than a training's first ones."""

        def initial_state(self, restored=False):
            state, factors = super().initial_state(restored=True), {"image_projection": 4, "decoder": 3}
            drawn = {name: jax.tree.map(lambda x, by=by: x * by, state.params[name]) for name, by in factors.items()}
            return state.replace(params={**state.params, **drawn})

    base = config_lib.flatten(tiny_config(data_dir))
    values = {key: value for key, value in base.items() if key.split(".")[0] in ("data", "train")}
    values |= {"train.duration": "0 epochs", "seed": 10, "model.embedding_size": 16, "model.recurrent_size": 8}
    values |= {"model.max_length": 3, "model.min_length": 1, "model.beam_size": 3}
    config = config_lib.override(config_lib.load("cnn_rnn:dataset=tiny,trunk=small_cnn"), values)
    folder = tmp_path_factory.mktemp("runs") / "path"
    assert Drawn(config, str(folder)).fit().finished
    return folder


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    """The bundle of a file's own `run`. Do not write into it."""
    from jaxmlic.cli import main as cli

    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    assert cli.run(["export", str(run.workdir), f"--out={folder}"]) == 0
    return folder


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")
