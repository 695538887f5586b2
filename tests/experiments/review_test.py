"""`jaxmlic data review`: scores that are out of fold, folds that are not trained twice, what the command leaves."""

import cv2
import numpy as np
import pytest
from conftest import table_of

from jaxmlic import config as config_lib
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets, label_noise
from jaxmlic.data.prepare import writer
from jaxmlic.errors import UserError
from jaxmlic.evaluation import review, score_file
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.experiments import runs
from jaxmlic.experiments.review import fold_scores
from jaxmlic.propagation import label_file
from jaxmlic.training import run_folder

CLASSES = ["cat", "dog", "bird"]
COUNT = 48


def examples(split, count, seed):
    """Labels drawn at random; the last two training images have unknown ones."""
    rng = np.random.default_rng(seed)
    image = cv2.imencode(".png", np.full((9, 12, 3), 90, np.uint8))[1].tobytes()
    for i in range(count):
        labels = (rng.random(3) < 0.5).astype(np.int8)
        if split == "train" and i >= count - 2:
            labels[i % 2 :] = -1
        yield {"id": f"{split}-{i:02d}", "image": image, "labels": labels}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data/random and a file of features: each image has a vector of its own, orthogonal to all others.

    A linear model of them learns the labels of the images that it sees, whatever they are, and nothing of any other.
    """
    folder = tmp_path_factory.mktemp("review")
    splits = {"train": examples("train", COUNT, 0), "test": examples("test", 8, 1)}
    writer.write("random", folder / "data", CLASSES, splits, {})
    dataset = datasets.load("random", folder / "data")
    ids = np.concatenate([dataset.ids("train"), dataset.ids("test")])
    np.savez(folder / "features.npz", features=4 * np.eye(len(ids), dtype=np.float32), ids=ids)
    return folder


def config_of(place, **more):
    config = config_lib.load("cnn_lstm_rmlc:dataset=random,row=binary_relevance")
    values = {
        "data.dir": str(place / "data"),
        "data.source": "file",
        "data.features_file": str(place / "features.npz"),
        "data.val_fraction": 0.0,
        "data.drop_empty": False,
        "model.dropout": 0.0,
        "optim.lr": 0.3,
        "optim.weight_decay": 0.0,
        "train.batch_size": 8,
        "train.duration": "60 steps",
        "train.log_every": "60 steps",
        "eval.protocol": "all_point",
    }
    return config_lib.override(config, values | more)


@pytest.fixture(scope="module")
def reviewed(place):
    return fold_scores(config_of(place), place / "folds", 3)


def follows(scores, labels):
    """How much higher scores are where the label is 1 than where it is 0, in standard deviations."""
    return (scores[labels == 1].mean() - scores[labels == 0].mean()) / scores.std()


def test_no_image_is_scored_by_a_model_that_saw_its_labels(place, reviewed):
    dataset = datasets.load("random", place / "data")
    scores = reviewed.scores
    assert scores.ids.tolist() == dataset.ids("train").tolist() and reviewed.truth is None
    np.testing.assert_array_equal(scores.labels, dataset.labels("train"))
    assert follows(scores.scores, scores.labels) < 0.3
    # The same model on the images that it saw: what a leak of labels would look like.
    run = runs.train(config_of(place), place / "leak")
    leaked = run.evaluate("train").scores
    assert follows(leaked.scores, leaked.labels) > 1.5


def test_each_image_has_the_score_of_its_fold(place, reviewed):
    dataset, seen = datasets.load("random", place / "data"), []
    for fold in range(3):
        config = run_folder.load(place / "folds" / f"fold{fold}").config
        trained, held_out = (dataset.ids(config.data[f"{role}_split"]) for role in ("train", "test"))
        assert not set(trained) & set(held_out) and len(trained) + len(held_out) == COUNT
        own = score_file.load(place / "folds" / f"fold{fold}" / "scores" / f"{config.data.test_split}.npz")
        assert sorted(own.ids) == sorted(held_out)
        for image, row in zip(own.ids, own.scores, strict=True):
            at = reviewed.scores.ids.tolist().index(image)
            np.testing.assert_array_equal(reviewed.scores.scores[at], row)
        seen += held_out.tolist()
    assert sorted(seen) == sorted(dataset.ids("train"))
    kept = score_file.load(place / "folds" / "out_of_fold.npz")
    np.testing.assert_array_equal(kept.scores, reviewed.scores.scores)


def test_folds_that_are_complete_are_not_trained_again(place, reviewed, monkeypatch):
    trained = []
    train = runs.loop.run
    monkeypatch.setattr(runs.loop, "run", lambda config, *rest: trained.append(rest[0]) or train(config, *rest))
    again = fold_scores(config_of(place), place / "folds", 3)
    assert trained == []
    np.testing.assert_array_equal(again.scores.scores, reviewed.scores.scores)
    (place / "folds" / "fold1" / "result.json").unlink()  # as if it had been stopped
    fold_scores(config_of(place), place / "folds", 3)
    assert trained == [str(place / "folds" / "fold1")]


def test_a_folder_of_other_labels_is_refused(place, reviewed):
    noisy = config_of(place, **{"data.noise_rate": 0.3, "data.noise": "flip"})
    with pytest.raises(UserError, match="another config"):
        fold_scores(noisy, place / "folds", 3)


def test_noise_is_in_the_labels_given(place):
    noise = {"data.noise_rate": 0.25, "data.noise": "flip", "data.noise_seed": 4, "train.duration": "2 steps"}
    found = fold_scores(config_of(place, **noise), place / "noisy", 2)
    clean = datasets.load("random", place / "data").labels("train")
    np.testing.assert_array_equal(found.truth, clean)
    np.testing.assert_array_equal(found.scores.labels, label_noise.corrupt(clean, "flip", 0.25, 4))
    changed = found.scores.labels != clean
    wrong = list(zip(*(at.tolist() for at in np.nonzero(changed)), strict=True))
    assert review.hits(wrong, found.scores.labels, clean) == (1.0, changed.sum() / (clean >= 0).sum())
    for fold in range(2):  # the models were trained on them too
        folder = place / "noisy" / f"fold{fold}"
        kept = label_file.load(folder / "pseudo_labels.npz")
        np.testing.assert_array_equal(kept.labels, found.scores.labels)
        assert run_folder.load(folder).config.data.noise_rate == 0  # it is in them already


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"start_from": "runs/a"}, "config.start_from"),
        ({"data.pseudo_labels": "labels.npz"}, "config.data.pseudo_labels"),
        ({"data.noise_rate": 0.1, "data.val_fraction": 0.1}, "val_fraction=0"),
    ],
)
def test_recipes_that_may_know_the_labels(place, tmp_path, fields, part):
    with pytest.raises(UserError, match=part):
        fold_scores(config_of(place, **fields), tmp_path, 2)


def stored_scores(place, path, split="test", flip=(), **config):
    """A score file that agrees with the labels, but for the (row, column) pairs of `flip`."""
    dataset = datasets.load("random", place / "data")
    labels = dataset.labels(split)
    logits = np.where(labels == 1, 3.0, np.where(labels == 0, -3.0, 0.1)).astype(np.float32)
    for row, column in flip:
        logits[row, column] *= -1.5
    data = {"data": {"name": "random", "train_split": "train"} | config}
    score_file.save(path, ScoreFile(logits, labels, dataset.ids(split), CLASSES, data, split=split))
    return labels


@pytest.fixture
def command(place, capfd):
    def call(*argv):
        capfd.readouterr()
        status = cli.run(["data", "review", *map(str, argv), f"--data-dir={place / 'data'}"])
        out, err = capfd.readouterr()
        return status, out, err.splitlines()

    return call


@pytest.mark.parametrize("ranking", ["confident", "loss"])
def test_the_command_on_a_score_file(place, tmp_path, command, ranking):
    labels = stored_scores(place, tmp_path / "s.npz", flip=[(3, 1), (5, 0)])
    status, out, err = command(
        f"--scores={tmp_path / 's.npz'}", f"--workdir={tmp_path / 'out'}", "--most=5", f"--ranking={ranking}"
    )
    assert (status, err) == (0, []) and "likely errors by" in out and "--as=random_corrected" in out
    rows = table_of(tmp_path / "out" / "review.csv")
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4, 5]
    for row in rows[:2]:
        given = int(row["given"])
        place_of = (int(row["image"][-2:]), CLASSES.index(row["class"]))
        assert place_of in ((3, 1), (5, 0)) and given == labels[place_of] and row["corrected"] == ""
        assert row["kind"] == ("likely absent" if given else "likely present")
        assert float(row["probability"]) == pytest.approx(1 / (1 + np.exp(4.5 if given else -4.5)), abs=1e-4)
    picture = cv2.imread(str(tmp_path / "out" / "review.png"))
    assert picture.shape[1] > 1000 and picture.std() > 5


def test_unknown_labels_are_listed_for_annotation(place, tmp_path, command):
    stored_scores(place, tmp_path / "s.npz", "train", train_split="other")
    status, out, _ = command("random", f"--scores={tmp_path / 's.npz'}", f"--workdir={tmp_path}", "--most=3")
    assert status == 0 and "images to annotate next, the first 2 of 2" in out
    rows = [row for row in table_of(tmp_path / "review.csv") if row["kind"] == "annotate next"]
    assert [(row["rank"], row["image"], row["class"]) for row in rows] == [
        ("1", "train-46", "cat"),
        ("1", "train-46", "dog"),
        ("1", "train-46", "bird"),
        ("2", "train-47", "dog"),
        ("2", "train-47", "bird"),
    ]
    assert {row["given"] for row in rows} == {"-1"}


def test_corrections_are_not_written_over(place, tmp_path, command):
    stored_scores(place, tmp_path / "s.npz")
    argv = (f"--scores={tmp_path / 's.npz'}", f"--workdir={tmp_path}")
    assert command(*argv)[0] == 0 == command(*argv)[0]
    path = tmp_path / "review.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], f"{lines[1]}1", *lines[2:]]))
    status, _, err = command(*argv)
    assert status == 2 and len(err) == 1 and "has 1 corrections" in err[0]


def test_scores_of_folds_go_together(place, reviewed, tmp_path, command):
    files = sorted((place / "folds").glob("fold*/scores/*/*.npz"))
    assert len(files) == 3
    status, out, _ = command(*(f"--scores={file}" for file in files), f"--workdir={tmp_path}")
    assert status == 0 and f": {COUNT} images, {3 * COUNT} labels" in out
    status, _, err = command(*(f"--scores={files[0]}" for _ in range(2)), f"--workdir={tmp_path}")
    assert status == 2 and len(err) == 1 and "is in" in err[0] and "too" in err[0]


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--scores=SCORES"], "--workdir is missing"),
        (["--scores=SCORES", "--workdir=OUT", "--folds=3"], "--folds means nothing with --scores"),
        (["--scores=SCORES", "--workdir=OUT", "--most=0"], "--most=0: at least 1"),
        (["--scores=TRAINED", "--workdir=OUT"], "48 of 48 images are in 'train', which the model was trained on"),
        (["rondom", "--scores=SCORES", "--workdir=OUT"], "did you mean 'random'?"),
        (["--config=quickstart", "--workdir=OUT", "--as=x"], "--as means nothing with --config"),
        (["--config=quickstart", "--workdir=OUT", "--config.sead=1"], "sead"),
        ([], "one of the arguments --config --scores --apply is required"),
    ],
)
def test_mistakes_in_the_command(place, tmp_path, command, argv, part):
    stored_scores(place, tmp_path / "s.npz")
    stored_scores(place, tmp_path / "t.npz", "train")
    names = {"SCORES": "s.npz", "TRAINED": "t.npz", "OUT": "out"}
    filled = [next((a.replace(k, str(tmp_path / v)) for k, v in names.items() if a.endswith(k)), a) for a in argv]
    status, out, err = command(*filled)
    assert (status, out, len(err)) == (2, "", 1) and part in err[0], err
