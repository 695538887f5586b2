"""A finished run as an object: the same numbers as the commands, and mistakes in one line."""

import dataclasses
import io
import json
import logging
import shutil
import subprocess
import sys

import absl.logging
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxmlic
from jaxmlic.data import datasets
from jaxmlic.errors import UserError
from jaxmlic.evaluation import score_file
from jaxmlic.experiments import runs


@pytest.fixture(scope="module")
def run(finished_run):
    return jaxmlic.load(finished_run)


def test_loading_is_quiet(finished_run, caplog, capfd):
    absl.logging.set_verbosity(absl.logging.INFO)
    jaxmlic.load(finished_run).label_embeddings()
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    out, err = capfd.readouterr()
    if jax.lib.__version__ in ("0.10.0", "0.10.1"):  # XLA says there that a program comes from a cache
        err = "".join(line for line in err.splitlines(keepends=True) if "cpu_aot_loader" not in line)
    assert (out, err) == ("", "") and absl.logging.get_verbosity() == absl.logging.INFO
    absl.logging.set_verbosity(absl.logging.WARNING)


def test_a_run_evaluates_as_the_command_does(run, finished_run, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "run")
    numbers = runs.evaluate(copy, protocol="top1_forced")
    found = run.evaluate(protocol="top1_forced")
    stored = score_file.load(copy / "scores" / "test.npz")
    np.testing.assert_array_equal(found.scores.scores, stored.scores)
    assert found.numbers["mAP"] == numbers["mAP"] and found.numbers["protocol"] == "top1_forced"
    assert not (finished_run / "scores").exists()  # the object writes nothing


def test_photographs_have_the_scores_of_evaluation(run, data_dir, tmp_path):
    source = datasets.load("tiny", data_dir).source("test")
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(source[i]["image"])
    (tmp_path / "2.png").write_bytes(b"no image")
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    with pytest.raises(UserError, match=r"1 of 3 images could not be read: .*2\.png \(not an image"):
        run.predict(paths)
    found = run.predict(paths, skip_unreadable=True)
    np.testing.assert_allclose(found.scores, run.evaluate().scores.scores[:2], atol=1e-5)
    np.testing.assert_array_equal(found.chosen, found.scores >= 0)
    assert found.files == [str(path) for path in paths[:2]] and found.path is None and found.threshold == 0
    assert list(found.unreadable) == [str(paths[2])] and "2.png: unreadable" in repr(found)
    assert cv2.imread(str(tmp_path / "0.png")).shape == (20, 20, 3)
    with pytest.raises(UserError, match="labels images in one step"):
        run.predict(paths[0], trace=True)
    assert [one.file for one in run.predict(tmp_path, skip_unreadable=True)] == found.files  # a folder


def test_arrays_and_pil_images_have_the_scores_of_their_file(run, data_dir, tmp_path):
    """Every form that one image can have, alone and in a batch, and of any size."""
    data = datasets.load("tiny", data_dir).source("test")[0]["image"]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    image = Image.open(path)
    forms = [path, str(path), data, image, pixels, pixels.astype(np.int64), (pixels / 255).astype(np.float32)]
    forms += [np.dstack([pixels, np.full((20, 20, 1), 255, np.uint8)]), jnp.asarray(pixels)]
    expected = run.predict([path]).scores[0]
    for form in forms:
        np.testing.assert_array_equal(run.predict(form).scores, expected[None])
    both = run.predict(np.stack([pixels, pixels[::-1]]))
    assert len(both) == 2 and both.files == ["image 0", "image 1"]
    mixed = run.predict([path, pixels, image])
    assert mixed.files == [str(path), "image 1", "image 2"] and (mixed.scores == expected).all()
    large = run.predict(cv2.resize(pixels, (60, 44), interpolation=cv2.INTER_NEAREST))
    assert np.abs(large.scores - expected).max() < 2  # another size is resized, and is no other image
    grey = run.predict(pixels[..., 0])
    np.testing.assert_array_equal(grey.scores, run.predict(np.repeat(pixels[..., :1], 3, -1)).scores)


def test_predictions_as_probabilities_and_names(run):
    pixels = np.full((3, 9, 9, 3), 120, np.uint8)  # of one colour
    pixels[1, 2:7, 2:7] = (220, 40, 40)
    found = run.predict(pixels)
    np.testing.assert_allclose(found.probabilities, 1 / (1 + np.exp(-found.scores)), rtol=1e-5)
    for names, row in zip(found.labels, found.scores, strict=True):
        assert names == [run.class_names[i] for i in np.argsort(-row) if row[i] >= 0]
    low = run.predict(pixels, threshold=1e-9)
    assert all(len(names) == 3 for names in low.labels) and low.threshold == pytest.approx(np.log(1e-9), rel=1e-6)
    each = run.predict(pixels, threshold=np.array([1e-9, 1 - 1e-9, 1e-9]))
    np.testing.assert_array_equal(each.chosen, np.array([[True, False, True]] * 3))
    np.testing.assert_array_equal(run.predict(pixels, logit=1.5).chosen, found.scores >= 1.5)
    assert len(repr(found).splitlines()) == 4


def test_no_images_are_no_predictions(run):
    found = run.predict([])
    assert found.scores.shape == (0, 3) and found.labels == [] and len(found) == 0 and repr(found) == "0 images"


PIXELS = np.tile(np.arange(12, dtype=np.uint8)[:, None, None] * 20, (1, 12, 3))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS.astype(np.float32), r"float32 from 0 to 220, and floats are read as 0\.\.1: divide by 255"),
        ((PIXELS / 255 - 0.45) / 0.22, "pixels as they were"),
        (PIXELS / 255 / 255, "divided by 255 twice"),
        ((PIXELS / 255 > 0.5).astype(np.uint8), "0 and 1 alone"),
        (PIXELS > 9, "bool"),
        (PIXELS.astype(np.uint16) * 257, "divide 16 bits by 257"),
        (PIXELS.transpose(2, 0, 1), "move its channels to the last axis"),
        (np.full((4, 4, 3), np.nan), "no numbers"),
        (np.zeros((0, 4, 3)), r"the shape \[0, 4, 3\]"),
        ([PIXELS, None], "image 1 is a NoneType"),
        ("nowhere.jpg", "nowhere.jpg does not exist"),
    ],
)
def test_arrays_that_are_no_pixels(run, images, message):
    with pytest.raises(UserError, match=message):
        run.predict(images)


def test_thresholds_that_are_none(run):
    for given, message in (({"threshold": 0.0}, "the logit 0"), ({"threshold": 0.5, "logit": 0.0}, "in two units")):
        with pytest.raises(UserError, match=message):
            run.predict(PIXELS, **given)
    with pytest.raises(UserError, match="thresholds for 3 classes"):
        run.predict(PIXELS, threshold=[0.5, 0.5])


def test_a_folder_of_other_files(run, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="holds no images"):
        run.predict(tmp_path)
    with pytest.raises(UserError, match=r"notes\.txt \(not an image that can be read"):
        run.predict(tmp_path / "notes.txt")


def test_pil_images_are_turned_and_put_over_white(run):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "jpeg", quality=95, exif=exif)
    turned = run.predict(Image.open(io.BytesIO(stream.getvalue())))
    np.testing.assert_allclose(turned.scores, run.predict(stream.getvalue()).scores, atol=0.05)
    clear = np.dstack([PIXELS, np.zeros((12, 12), np.uint8)])
    white = run.predict(np.full((12, 12, 3), 255, np.uint8)).scores
    for image in (Image.fromarray(clear), clear):
        np.testing.assert_array_equal(run.predict(image).scores, white)
    sixteen = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 256)
    np.testing.assert_array_equal(run.predict(sixteen).scores, run.predict(PIXELS).scores)


def test_scores_are_read_where_they_are_stored(run, finished_run, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "run")
    runs.evaluate(copy)
    found = jaxmlic.load(copy)
    stored = score_file.load(copy / "scores" / "test.npz")
    marked = dataclasses.replace(stored, scores=stored.scores + 1)
    score_file.save(copy / "scores" / "test.npz", marked)
    np.testing.assert_array_equal(found.scores().scores, marked.scores)
    score_file.save(copy / "scores" / "test.npz", dataclasses.replace(marked, extra={"step": 1}))  # another checkpoint
    np.testing.assert_array_equal(found.scores("test").scores, stored.scores)
    assert len(found.scores("val").ids) == 18


def test_labels_and_images_as_vectors(run, data_dir):
    table = run.label_embeddings()["classifier"].astype(np.float64)
    length = np.linalg.norm(table, axis=1)
    cosines = table @ table[0] / length / length[0]
    expected = sorted(((run.class_names[i], cosines[i]) for i in (1, 2)), key=lambda pair: -pair[1])
    found = run.nearest("red")
    assert [name for name, _ in found] == [name for name, _ in expected]
    np.testing.assert_allclose([value for _, value in found], [value for _, value in expected])
    with pytest.raises(UserError, match="did you mean 'green'"):
        run.nearest("gren")
    with pytest.raises(UserError, match=r"table 'words' is unknown.*classifier"):
        run.nearest("red", table="words")
    pixels = np.stack([PIXELS, PIXELS[::-1]])
    vectors = run.image_embeddings(pixels)
    classifier = run._restored.variables["params"]["classifier"]
    np.testing.assert_allclose(
        vectors @ np.asarray(classifier["kernel"]) + np.asarray(classifier["bias"])[None],
        run.predict(pixels).scores,
        atol=1e-4,
    )
    with pytest.raises(UserError, match="no space that images and labels share"):
        run.nearest_to(PIXELS)


def test_attention_of_a_head_without_attention_is_grad_cam(run):
    found = run.attention(PIXELS, labels=["red", "blue"])
    assert found.form == "grad_cam" and list(found.maps) == ["red", "blue"] and found.pixels.shape == (16, 16, 3)
    assert (found.maps["red"] >= 0).all()
    gradient = run.attention(PIXELS, "gradient")
    assert all(values.shape == (16, 16) for values in gradient.maps.values()) and gradient.maps
    with pytest.raises(UserError, match="one image is looked at, and 2 are given"):
        run.attention([PIXELS, PIXELS])
    with pytest.raises(UserError, match="labels images in one step"):
        run.trace(PIXELS)
    with pytest.raises(UserError, match="no attention maps"):
        run.attention(PIXELS, "weights")


def test_a_run_without_checkpoints(finished_run, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match="holds no checkpoints; train there first"):
        jaxmlic.load(copy)
    (copy / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no finished checkpoint yet"):
        jaxmlic.load(copy)


def test_what_a_run_knows(run, finished_run):
    assert run.class_names == ["red", "green", "blue"] and run.config.head == "linear"
    assert run.history()[-1]["step"] == 16 and "linear, 3 classes" in repr(run)
    tables = run.label_embeddings()
    assert tables["classifier"].shape == (3, 192) and tables["classifier"].dtype == np.float32
    stored = json.loads((finished_run / "config.json").read_text())
    assert stored["trained_classes"] == ["red", "green", "blue"]


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist: the run must be the folder"):
        jaxmlic.load(tmp_path)


def test_training_and_sweeps_from_python(data_dir, tmp_path):
    (tmp_path / "experiment.py").write_text(
        "from jaxmlic.configs import quickstart\n"
        "def get_config(arg=None):\n    return quickstart.get_config('smoke')\n"
        "def sweep():\n    return [('a', {}), ('b', {'optim.lr': 0.01})]\n"
    )
    fields = {"data.name": "tiny", "data.dir": str(data_dir), "data.image_size": 16, "train.duration": "2 steps"}
    spec = str(tmp_path / "experiment.py")
    run = jaxmlic.train(spec, tmp_path / "run", fields)
    assert run.step == 2 and run.config.data.name == "tiny" and run.workdir == tmp_path / "run"
    assert jaxmlic.train(spec, tmp_path / "run", fields).step == 2  # complete: only loaded
    with pytest.raises(UserError, match=r"config\.train\.duratio is unknown \(did you mean 'train\.duration'"):
        jaxmlic.train(spec, tmp_path / "run", {"train.duratio": "1 steps"})
    found = jaxmlic.sweep(spec, tmp_path / "sweep", fields, only=["b"])
    assert [row["entry"] for row in found.rows] == ["b"] and found.failures == []
    assert jaxmlic.load(tmp_path / "sweep" / "b" / "seed0").config.optim.lr == 0.01


def test_importing_the_package_starts_nothing():
    """Not even numpy: what takes time is imported by the functions that need it."""
    code = "import jaxmlic, sys; print(jaxmlic.__version__, sorted({'jax', 'flax', 'numpy', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == f"{jaxmlic.__version__} []", done.stderr
