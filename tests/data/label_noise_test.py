"""Label noise, by counting: frequencies, rates, seeds, what stays untouched, and the run that is trained on it."""

import dataclasses

import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic.data import label_noise, loader
from jaxmlic.errors import UserError
from jaxmlic.experiments import runs
from jaxmlic.training import loop, run_folder, targets


def multi_label(count=400, classes=7, unknown=0.08):
    rng = np.random.default_rng(0)
    labels = (rng.random((count, classes)) < np.linspace(0.03, 0.25, classes)).astype(np.int8)
    labels[rng.random(labels.shape) < unknown] = -1
    return labels


def single_label(count=500, classes=10):
    return np.eye(classes, dtype=np.int8)[np.random.default_rng(0).integers(0, classes, count)]


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("make", [multi_label, single_label])
def test_random_noise_keeps_class_frequencies_and_labels_per_image(make, rate):
    labels = make()
    noisy = label_noise.corrupt(labels, "random", rate, 3)
    np.testing.assert_array_equal((noisy == 1).sum(0), (labels == 1).sum(0))
    np.testing.assert_array_equal((noisy == 1).sum(1), (labels == 1).sum(1))
    np.testing.assert_array_equal(noisy == -1, labels == -1)
    taken = ((labels == 1) & (noisy == 0)).sum(0)
    np.testing.assert_array_equal(taken, np.floor(rate * (labels == 1).sum(0) + 0.5))


def test_random_noise_draws_the_new_classes_by_their_frequency():
    """Of equally frequent classes each is drawn as often: 1/9 of 5,000 changed labels, within five deviations."""
    labels = np.eye(10, dtype=np.int8)[np.arange(10_000) % 10]
    noisy = label_noise.corrupt(labels, "random", 0.5, 0)
    table = np.zeros((10, 10), int)
    changed = (labels != noisy).any(1)
    np.add.at(table, (labels[changed].argmax(1), noisy[changed].argmax(1)), 1)
    assert (table.diagonal() == 0).all() and changed.sum() == 5000
    off = table[~np.eye(10, dtype=bool)]
    assert np.abs(off - 5000 / 90).max() < 5 * np.sqrt(5000 / 90)


@pytest.mark.parametrize("make", [multi_label, single_label])
def test_noise_of_images_relabels_whole_images(make):
    labels = make()
    noisy = label_noise.corrupt(labels, "images", 0.4, 3)
    np.testing.assert_array_equal((noisy == 1).sum(1), (labels == 1).sum(1))
    np.testing.assert_array_equal(noisy == -1, labels == -1)
    # Of 40 % of the images; some draw their own labels again, which is no change.
    assert 0.5 * 0.4 * len(labels) < (noisy != labels).any(1).sum() <= round(0.4 * len(labels))
    everything = label_noise.corrupt(labels, "images", 1.0, 3)
    part = (noisy != labels).any(1)
    np.testing.assert_array_equal(noisy[part], everything[part])  # a higher rate adds images


def test_noise_of_images_draws_every_set_as_often():
    """Two of four known labels, 6,000 times: each of the six pairs within five deviations of 1,000."""
    labels = np.tile(np.array([1, 0, 1, 0, -1], np.int8), (6000, 1))
    noisy = label_noise.corrupt(labels, "images", 1.0, 0)
    found, counts = np.unique(noisy, axis=0, return_counts=True)
    assert len(found) == 6 and (found[:, 4] == -1).all() and (found == 1).sum(1).tolist() == [2] * 6
    assert abs(counts - 1000).max() < 5 * np.sqrt(6000 * 1 / 6 * 5 / 6)


def test_missing_noise_only_drops_flip_noise_only_flips_and_unknown_noise_only_hides():
    labels = multi_label()
    dropped = label_noise.corrupt(labels, "missing", 0.3, 1)
    assert set(labels[dropped != labels]) == {1} and set(dropped[dropped != labels]) == {0}
    np.testing.assert_array_equal((dropped != labels).sum(0), np.floor(0.3 * (labels == 1).sum(0) + 0.5))
    flipped = label_noise.corrupt(labels, "flip", 0.3, 1)
    np.testing.assert_array_equal((flipped != labels).sum(0), np.floor(0.3 * (labels >= 0).sum(0) + 0.5))
    np.testing.assert_array_equal(flipped == -1, labels == -1)
    np.testing.assert_array_equal(label_noise.corrupt(labels, "flip", 1.0, 1)[labels >= 0], 1 - labels[labels >= 0])
    hidden = label_noise.corrupt(labels, "unknown", 0.3, 1)
    assert set(hidden[hidden != labels]) == {-1} and set(labels[hidden != labels]) == {0, 1}
    np.testing.assert_array_equal((hidden != labels).sum(0), np.floor(0.3 * (labels >= 0).sum(0) + 0.5))
    assert (label_noise.corrupt(labels, "unknown", 1.0, 1) == -1).all()


@pytest.mark.parametrize("kind", label_noise.KINDS)
def test_the_seed_decides_and_higher_rates_take_more_of_the_same(kind):
    labels = multi_label()
    low, again, other = (label_noise.corrupt(labels, kind, 0.2, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(low, again)
    assert (low != other).any()

    def lost(noisy):
        return (labels == 1) & (noisy == 0)

    assert (lost(low) <= lost(label_noise.corrupt(labels, kind, 0.4, 5))).all()
    np.testing.assert_array_equal(label_noise.corrupt(labels, kind, 0.0, 5), labels)


@pytest.mark.parametrize("labels", [np.ones((20, 3), np.int8), -np.ones((20, 3), np.int8), np.zeros((0, 3), np.int8)])
def test_random_noise_that_cannot_be_leaves_the_labels(labels):
    np.testing.assert_array_equal(label_noise.corrupt(labels, "random", 0.5, 0), labels)


def test_a_run_is_trained_on_the_noise_and_evaluated_without(data_dir, tmp_path, capsys):
    config = tiny_config(data_dir, **{"data.noise_rate": 0.4, "train.duration": "4 steps"})
    clean = loop.Trainer(tiny_config(data_dir), "unused")
    trainer = loop.Trainer(config, str(tmp_path / "run"))
    np.testing.assert_array_equal(trainer.train_view.stored_labels, clean.train_view.labels)
    np.testing.assert_array_equal(trainer.val_view.labels, clean.val_view.labels)
    reader, val_reader = trainer.readers()
    rows = np.arange(len(reader))
    np.testing.assert_array_equal(reader(rows)["labels"], trainer.train_view.labels)
    np.testing.assert_array_equal(val_reader(np.arange(len(val_reader)))["labels"], clean.val_view.labels)
    changed = (trainer.train_view.labels != clean.train_view.labels).any(1).sum()
    assert changed > 5

    assert loop.run(config, str(tmp_path / "run")).finished
    assert f"in {changed} of {len(clean.train_view)} images" in capsys.readouterr().out
    with np.load(tmp_path / "run" / targets.NOISE) as stored:
        np.testing.assert_array_equal(stored["ids"], clean.train_view.ids)
        np.testing.assert_array_equal(stored["clean"], clean.train_view.labels)
        np.testing.assert_array_equal(stored["noisy"], trainer.train_view.labels)
    # A trainer made anew, as resuming does, sees the same labels; other noise in the same folder is refused.
    again = loop.Trainer(run_folder.load(tmp_path / "run").config, str(tmp_path / "run"))
    np.testing.assert_array_equal(again.train_view.labels, trainer.train_view.labels)
    other = tiny_config(data_dir, **{"data.noise_rate": 0.4, "train.duration": "4 steps", "data.noise_seed": 9})
    with pytest.raises(UserError, match="noise_seed"):
        run_folder.claim(tmp_path / "run", other, loop.Trainer(other, "unused").train_view)
    runs.evaluate(str(tmp_path / "run"))
    with np.load(tmp_path / "run" / "scores" / "test.npz") as scores:
        np.testing.assert_array_equal(scores["labels"], clean.dataset.labels("test"))


def test_noise_does_not_decide_which_classes_count(data_dir):
    """Metrics over the trained classes are over those of the stored labels, in training and in evaluation alike."""
    config = tiny_config(data_dir, **{"eval.trained_classes_only": True})
    view = loop.Trainer(config, "unused").train_view
    nothing = dataclasses.replace(view, targets=loader.Targets(np.zeros_like(view.labels)))
    np.testing.assert_array_equal(targets.trained_classes(nothing), targets.trained_classes(view))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.noise_rate": 1.1}, "noise_rate = 1.1"),
        ({"data.noise_rate": -0.1}, "noise_rate = -0.1"),
        ({"data.noise_rate": float("nan")}, "noise_rate = nan"),
        ({"data.noise": "radnom"}, "did you mean 'random'"),
        ({"data.noise_seed": -2}, "noise_seed = -2"),
    ],
)
def test_mistakes(data_dir, overrides, message):
    with pytest.raises(UserError, match=message):
        loop.Trainer(tiny_config(data_dir, **overrides), "unused")


def test_labels_that_are_no_stored_ones_get_no_noise(data_dir):
    config = tiny_config(data_dir, **{"data.noise_rate": 0.4})
    view = loop.Trainer(tiny_config(data_dir), "unused").train_view
    view = dataclasses.replace(view, targets=loader.Targets(view.labels))
    with pytest.raises(UserError, match="pseudo_labels"):
        label_noise.add(config.data, view, 0)
