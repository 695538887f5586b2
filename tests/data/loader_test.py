"""The host pipeline: coverage, order, sharding, padding, saved positions, and its mistakes."""

import dataclasses
import shutil

import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic.data import datasets, loader
from jaxmlic.errors import UserError
from jaxmlic.inputs.images import ImageReader


@pytest.fixture(scope="module")
def dataset(data_dir):
    return datasets.load("tiny", data_dir)


@pytest.fixture(scope="module")
def reader(dataset, data_dir):
    return ImageReader(loader.select(tiny_config(data_dir).data, dataset, "train"), 16)


@pytest.fixture(scope="module")
def key_of(reader):
    """Row of an image, by its pixels (all different)."""
    rows = {reader(np.array([i]))["image"].tobytes(): i for i in range(len(reader))}
    assert len(rows) == len(reader) == 72
    return rows


def rows_of(batch, key_of):
    return [key_of[image.tobytes()] for image in batch["image"]]


def epoch(iterator, batches, key_of):
    return [row for _ in range(batches) for row in rows_of(next(iterator), key_of)]


def test_an_epoch_holds_every_example_once_and_the_next_another_order(reader, key_of):
    iterator = loader.train_iterator(reader, 8, seed=0)
    first, second = epoch(iterator, 9, key_of), epoch(iterator, 9, key_of)
    assert sorted(first) == sorted(second) == list(range(72))
    assert first != second and first != sorted(first)


def test_seed_decides_the_order_and_threads_do_not(reader, key_of):
    orders = [
        epoch(loader.train_iterator(reader, 8, seed=seed, threads=threads), 9, key_of)
        for seed, threads in ((0, 1), (0, 4), (1, 1))
    ]
    assert orders[0] == orders[1] != orders[2]


def test_hosts_share_an_epoch_without_overlap(reader, key_of):
    hosts = [loader.train_iterator(reader, 8, seed=3, process_index=i, process_count=2) for i in range(2)]
    assert len(next(loader.train_iterator(reader, 8, seed=3, process_count=2))["image"]) == 4
    seen = [epoch(host, 9, key_of) for host in hosts]
    assert sorted(seen[0] + seen[1]) == list(range(72))
    # The global batch is that of one host: its first half on the first, its second half on the second.
    alone = epoch(loader.train_iterator(reader, 8, seed=3), 9, key_of)
    for step in range(9):
        batch = [row for host in seen for row in host[4 * step : 4 * step + 4]]
        assert batch == alone[8 * step : 8 * step + 8]


def test_the_position_can_be_saved_and_restored(reader, key_of):
    one = loader.train_iterator(reader, 8, seed=0)
    epoch(one, 5, key_of)
    state = one.get_state()
    expected = epoch(one, 7, key_of)
    other = loader.train_iterator(reader, 8, seed=0)
    other.set_state(state)
    assert epoch(other, 7, key_of) == expected


@pytest.mark.parametrize("process_count", [1, 2])
def test_batches_gathered_from_memory_are_those_read_one_at_a_time(reader, process_count, monkeypatch):
    """Bit for bit over more chunks than one and the ends of epochs, from a position that the other iterator saved."""
    held = ImageReader(reader.view, 16, cache=True)
    assert held.hold() and not reader.hold()
    monkeypatch.setattr(loader, "_CHUNK_STEPS", 5)

    def iterator(one):
        return loader.train_iterator(
            one, 16, seed=2, difficult="positive", process_index=process_count - 1, process_count=process_count
        )

    plain, gathered = iterator(reader), iterator(held)
    for step in range(23):
        if step == 12:  # each goes on where the other was
            state, plain, gathered = (plain.get_state(), gathered.get_state()), iterator(reader), iterator(held)
            assert state[0] == state[1]
            plain.set_state(state[1])
            next(gathered)
            gathered.set_state(state[0])
        expected, found = next(plain), next(gathered)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype


def test_images_and_labels_stay_together(reader, dataset, key_of):
    batch = next(loader.train_iterator(reader, 8, seed=0))
    np.testing.assert_array_equal(batch["labels"], dataset.labels("train")[rows_of(batch, key_of)])
    assert batch["image"].dtype == np.uint8 and batch["image"].shape == (8, 16, 16, 3)
    assert batch["labels"].dtype == np.int8 and batch["mask"].all()


@pytest.mark.parametrize(("difficult", "value"), [("ignore", -1), ("positive", 1), ("negative", 0)])
def test_difficult_labels_in_training(reader, dataset, key_of, difficult, value):
    batch = next(loader.train_iterator(reader, 64, seed=0, difficult=difficult))
    true = dataset.labels("train")[rows_of(batch, key_of)]
    assert (true == -1).sum() > 10
    np.testing.assert_array_equal(batch["labels"], np.where(true == -1, value, true))
    assert batch["labels"].dtype == np.int8


def test_cached_pixels_equal_decoded_ones(reader, dataset, data_dir):
    cached = ImageReader(reader.view, 16, cache=True)
    rows = np.array([5, 0, 71, 5])
    for name, value in reader(rows).items():
        np.testing.assert_array_equal(cached(rows)[name], value)


@pytest.mark.parametrize("process_count", [1, 3])
def test_evaluation_pads_and_masks_and_misses_nothing(dataset, data_dir, process_count):
    reader = ImageReader(loader.select(tiny_config(data_dir).data, dataset, "test"), 16)
    hosts = [
        list(loader.eval_batches(reader, 12, process_index=i, process_count=process_count))
        for i in range(process_count)
    ]
    assert len({len(batches) for batches in hosts}) == 1
    assert {len(batch["mask"]) for batches in hosts for batch in batches} == {12 // process_count}
    kept = [
        name
        for step in range(len(hosts[0]))
        for batches in hosts
        for name in batches[step]["id"][batches[step]["mask"]]
    ]
    assert kept == dataset.ids("test").tolist()  # 29 = 12 + 12 + 5, in order


def test_validation_is_carved_by_seed_and_disjoint(dataset, data_dir):
    config = tiny_config(data_dir)
    train, val = loader.train_and_val(config.data, dataset, 0)
    assert len(train) == 54 and len(val) == 18
    assert sorted([*train.ids, *val.ids]) == sorted(dataset.ids("train"))
    again, other = (loader.train_and_val(config.data, dataset, seed)[1] for seed in (0, 1))
    assert val.ids.tolist() == again.ids.tolist() != other.ids.tolist()
    share = (val.labels == 1).mean(0) - (train.labels == 1).mean(0)
    assert np.abs(share).max() < 0.08
    assert loader.find_view(config.data, dataset, 0, "val").ids.tolist() == val.ids.tolist()


def test_limit_and_named_validation_split(dataset, data_dir):
    config = tiny_config(data_dir, **{"data.limit": 10, "data.val_split": "test"})
    train, val = loader.train_and_val(config.data, dataset, 0)
    assert train.ids.tolist() == dataset.ids("train")[:10].tolist()
    assert (val.split, len(val)) == ("test", 10)


def test_no_validation(dataset, data_dir):
    config = tiny_config(data_dir, **{"data.val_fraction": 0.0})
    train, val = loader.train_and_val(config.data, dataset, 0)
    assert len(train) == 72 and val is None
    with pytest.raises(UserError, match="no validation part"):
        loader.find_view(config.data, dataset, 0, "val")


def test_mistakes(reader, dataset, data_dir):
    config = tiny_config(data_dir)
    with pytest.raises(UserError, match=r"72 training examples, fewer than config\.train\.batch_size = 80"):
        loader.train_iterator(reader, 80, seed=0)
    with pytest.raises(UserError, match="cannot be divided over 3 hosts"):
        loader.train_iterator(reader, 8, seed=0, process_count=3)
    with pytest.raises(UserError, match=r"config\.data\.difficult = 'drop'"):
        loader.train_iterator(reader, 8, seed=0, difficult="drop")
    with pytest.raises(UserError, match=r"no split 'tset' \(did you mean 'test'"):
        loader.select(config.data, dataset, "tset")
    for fraction in (-0.1, 1.0, 0.001):
        with pytest.raises(UserError, match="val_fraction"):
            loader.train_and_val(tiny_config(data_dir, **{"data.val_fraction": fraction}).data, dataset, 0)


def test_an_image_that_cannot_be_read_is_named(reader):
    class Broken:
        def __getitem__(self, row):
            return {"image": b"", "id": "train-007"}

    damaged = ImageReader(reader.view, 16)
    damaged.source = Broken()
    with pytest.raises(UserError, match="image 'train-007' in split 'train' of data set 'tiny' cannot be read"):
        next(loader.train_iterator(damaged, 8, seed=0))


def test_cache_larger_than_memory_is_refused(reader):
    huge = dataclasses.replace(reader.view, indices=np.arange(72).repeat(10_000))
    with pytest.raises(UserError, match=r"set config\.data\.cache=False"):
        ImageReader(huge, 4096, cache=True)


def test_images_without_a_label_can_be_left_out(data_dir):
    dataset = datasets.load("tiny", data_dir)
    labels = dataset.labels("train")
    present = np.flatnonzero((labels == 1).any(axis=1))
    assert 0 < len(present) < len(labels)
    config = tiny_config(data_dir, **{"data.drop_empty": True})
    view = loader.select(config.data, dataset, "train")
    np.testing.assert_array_equal(view.indices, present)
    np.testing.assert_array_equal(view.labels, labels[present])
    train, val = loader.train_and_val(config.data, dataset, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([train.indices, val.indices])), present)
    limited = tiny_config(data_dir, **{"data.drop_empty": True, "data.limit": 5})
    np.testing.assert_array_equal(loader.select(limited.data, dataset, "train").indices, present[:5])


def test_named_splits_from_selection_to_batches(data_dir, tmp_path, key_of):
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    dataset = datasets.load("tiny", tmp_path)
    parts = {"train": np.array([80, 3, 100, *range(10, 40)]), "test": np.array([0, 72, 5]), "val": np.array([1, 99])}
    datasets.write_named_split(dataset, "mine", parts, {})
    config = tiny_config(tmp_path, **{"data.train_split": "mine/train", "data.val_split": "mine/val"}).data
    ids, labels = (np.concatenate([of(split) for split in ("train", "test")]) for of in (dataset.ids, dataset.labels))
    train, val = loader.train_and_val(config, dataset, 0)
    test = loader.find_view(config, dataset, 0, "mine/test")
    for view, rows in ((train, parts["train"]), (val, parts["val"]), (test, parts["test"])):
        assert view.ids.tolist() == ids[rows].tolist() and len(view) == len(rows)
        np.testing.assert_array_equal(view.labels, labels[rows])
    (batch,) = loader.eval_batches(ImageReader(test, 16), 4)
    assert batch["id"][:3].tolist() == ids[parts["test"]].tolist() and batch["mask"].tolist() == [True] * 3 + [False]
    assert key_of[batch["image"][0].tobytes()] == 0 and key_of[batch["image"][2].tobytes()] == 5

    reader = ImageReader(train, 16)
    iterator = loader.train_iterator(reader, 8, seed=0)
    next(iterator)
    state = iterator.get_state()
    expected = [next(iterator)["image"] for _ in range(6)]
    again = loader.train_iterator(reader, 8, seed=0)
    again.set_state(state)
    np.testing.assert_array_equal([next(again)["image"] for _ in range(6)], expected)

    carved = tiny_config(tmp_path, **{"data.train_split": "mine/train", "data.val_split": ""}).data
    rest, part = loader.train_and_val(carved, dataset, 0)
    assert sorted([*rest.ids, *part.ids]) == sorted(ids[parts["train"]])
    with pytest.raises(UserError, match=r"no split 'mine/trian' \(did you mean 'mine/train'"):
        loader.select(config, dataset, "mine/trian")
