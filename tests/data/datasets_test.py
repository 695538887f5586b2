"""Writing and reading prepared data sets: against tfds itself, and with damaged folders."""

import functools
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxmlic.data import datasets, named_splits
from jaxmlic.data.prepare import writer
from jaxmlic.data.prepare.tables.sheets import Problem
from jaxmlic.data.records import RecordSource, parse_example, serialize_example
from jaxmlic.errors import UserError

CLASSES = ["cat", "dog", "bird"]


def encoded(seed, form="PNG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def make(count, num_labels=3, seed=0, boxes=False):
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        labels = rng.integers(-1, 2, num_labels).astype(np.int8)
        example = {"id": f"{seed}/bild-ä{i}.png", "image": encoded(100 * seed + i), "labels": labels}
        if boxes:
            corners = np.sort(rng.random((rng.integers(0, 4), 2, 2)), axis=1).reshape(-1, 4)
            example["boxes"] = [
                {"bbox": box.tolist(), "label": int(rng.integers(0, 500)), "difficult": bool(rng.integers(2))}
                for box in corners
            ]
        examples.append(example)
    return examples


def write(folder, name="small", splits=None, has_boxes=False, classes=CLASSES, **options):
    splits = splits or {"train": make(20), "test": make(5, seed=1)}
    return writer.write(name, folder, classes, splits, {"source": "a test"}, has_boxes, **options)


@pytest.mark.parametrize("boxes", [False, True])
def test_what_goes_in_comes_out(tmp_path, boxes):
    splits = {"train": make(20, boxes=boxes), "test": make(5, seed=1, boxes=boxes)}
    path = write(tmp_path, splits=splits, has_boxes=boxes)
    assert path == tmp_path / "small" / "1.0.0"
    dataset = datasets.load("small", tmp_path)
    assert dataset.class_names == tuple(CLASSES) and dataset.splits == {"train": 20, "test": 5}
    assert dataset.info["source"] == "a test" and dataset.has_boxes == boxes and dataset.path == path
    for split, examples in splits.items():
        source = dataset.source(split, boxes=boxes)
        assert len(source) == len(examples)
        labels, ids = dataset.labels(split), dataset.ids(split)
        assert labels.dtype == np.int8 and labels.shape == (len(examples), 3)
        for i, example in enumerate(examples):
            record = source[i]
            assert record["image"] == example["image"] and type(record["image"]) is bytes
            assert record["id"] == example["id"] == ids[i] and type(record["id"]) is str
            assert record["labels"].dtype == np.int8
            np.testing.assert_array_equal(record["labels"], example["labels"])
            np.testing.assert_array_equal(labels[i], example["labels"])
            if boxes:
                wanted = np.array([box["bbox"] for box in example["boxes"]], np.float32).reshape(-1, 4)
                np.testing.assert_array_equal(record["boxes"]["bbox"], wanted)
                np.testing.assert_array_equal(record["boxes"]["label"], [box["label"] for box in example["boxes"]])
                np.testing.assert_array_equal(
                    record["boxes"]["difficult"], [box["difficult"] for box in example["boxes"]]
                )
                assert record["boxes"]["difficult"].dtype == bool and record["boxes"]["bbox"].dtype == np.float32
    assert [record["id"] for record in source.__getitems__([3, 0])] == [examples[3]["id"], examples[0]["id"]]
    with pytest.raises(IndexError):
        source[5]


def test_tfds_reads_it_too(tmp_path):
    examples = make(12, boxes=True)
    path = write(tmp_path, splits={"train": examples}, has_boxes=True)
    builder = tfds.builder_from_directory(path)
    assert builder.info.splits["train"].num_examples == 12
    raw = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    decoded = builder.as_data_source("train")
    for i, example in enumerate(examples):
        assert raw[i]["image"] == example["image"]
        assert raw[i]["id"].decode() == example["id"]
        np.testing.assert_array_equal(raw[i]["labels"], example["labels"])
        assert raw[i]["labels"].dtype == np.int8
        boxes = raw[i]["boxes"]
        assert [int(x) for x in boxes["label"]] == [box["label"] for box in example["boxes"]]
        assert [bool(x) for x in boxes["difficult"]] == [box["difficult"] for box in example["boxes"]]
        np.testing.assert_allclose(
            np.reshape(boxes["bbox"], (-1, 4)),
            np.reshape([box["bbox"] for box in example["boxes"]], (-1, 4)),
            rtol=1e-6,
        )
        with Image.open(io.BytesIO(example["image"])) as image:
            np.testing.assert_array_equal(decoded[i]["image"], np.asarray(image))


def tfds_record(example, num_labels, has_boxes):
    """The record as tfds itself serialises it."""
    fields = dict(example) | {"image": io.BytesIO(example["image"])}
    if has_boxes:
        fields["boxes"] = [box | {"bbox": tfds.features.BBox(*box["bbox"])} for box in example["boxes"]]
    return writer.record_fields(num_labels, has_boxes).serialize_example(fields)


@pytest.mark.parametrize("num_labels", [1, 3, 130, 20_000])
@pytest.mark.parametrize("has_boxes", [False, True])
def test_records_equal_those_of_tfds(num_labels, has_boxes):
    """Both ways: tfds's records parsed here, records of here parsed by tfds's protobuf."""
    from tensorflow_datasets.proto import tf_example_pb2

    examples = make(4, num_labels, boxes=has_boxes)
    examples[0]["labels"][:] = -1
    examples[1]["labels"][:] = 0
    examples[2] |= {"id": "", "image": bytes(range(256)) * 300}  # 76,800 bytes: a three-byte length
    source = RecordSource.__new__(RecordSource)
    source._num_labels, source._boxes = num_labels, has_boxes
    for example in examples:
        ours, theirs = serialize_example(example), tfds_record(example, num_labels, has_boxes)
        assert tf_example_pb2.Example.FromString(ours) == tf_example_pb2.Example.FromString(theirs)
        for record in (ours, theirs):
            parsed = source.parse(record)
            assert parsed["image"] == example["image"] and parsed["id"] == example["id"]
            np.testing.assert_array_equal(parsed["labels"], example["labels"])
            if has_boxes:
                assert parsed["boxes"]["label"].tolist() == [box["label"] for box in example["boxes"]]
                assert parsed["boxes"]["bbox"].shape == (len(example["boxes"]), 4)


def test_bad_records_are_refused():
    record = serialize_example(make(1)[0])
    for bad in (b"", b"hello", record[: len(record) // 2], record[:-1]):
        with pytest.raises(ValueError, match=r"tf\.train\.Example|damaged"):
            source = RecordSource.__new__(RecordSource)
            source._num_labels, source._boxes = 3, False
            source.parse(bad)
    assert set(parse_example(record)) == {"image", "labels", "id"}
    for labels in ([2, 0, 0], [[1, 0, 0]]):
        with pytest.raises(ValueError, match="labels"):
            serialize_example(make(1)[0] | {"labels": np.array(labels, np.int8)})
    for bbox in ([0.5, 0, 0.4, 1], [0, 0, 1, 1.01], [-0.1, 0, 1, 1]):
        with pytest.raises(ValueError, match="box"):
            serialize_example(make(1)[0] | {"boxes": [{"bbox": bbox, "label": 0, "difficult": False}]})


def test_one_example_and_one_class(tmp_path):
    write(tmp_path, splits={"train": make(1, 1)}, classes=["cat"])
    dataset = datasets.load("small", tmp_path)
    assert dataset.labels("train").shape == (1, 1) and dataset.source("train")[0]["labels"].shape == (1,)


def test_source_pickles_and_is_shared_by_threads(tmp_path):
    write(tmp_path)
    source = datasets.load("small", tmp_path).source("train")
    alone = [source[i]["image"] for i in range(20)]
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i]["image"] for i in range(20)] == alone
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: source[i % 20]["image"], range(400)))
    assert together == alone * 20
    assert str(tmp_path) not in repr(source)  # grain compares it after the folder has moved


def test_several_shards_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD_BYTES", 2000)
    path = write(tmp_path, splits={"train": make(40)})
    assert len(list(path.glob("small-train.array_record-*"))) > 5
    dataset = datasets.load("small", tmp_path)
    source = dataset.source("train")
    assert [source[i]["id"] for i in range(40)] == [example["id"] for example in make(40)] == list(dataset.ids("train"))
    raw = tfds.builder_from_directory(path).as_data_source("train")
    assert [raw[i]["id"].decode() for i in range(40)] == list(dataset.ids("train"))


def test_examples_are_streamed(tmp_path):
    """64 MB of images pass through without ever being held together."""

    def stream():
        for i in range(64):
            yield {"id": str(i), "image": os.urandom(1 << 20), "labels": np.array([1], np.int8)}

    tracemalloc.start()
    write(tmp_path, splits={"train": stream()}, classes=["cat"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_preparing_through_tfds_names_the_command(tmp_path):
    with pytest.raises(UserError, match="jaxmlic data prepare small"):
        writer.builder("small", tmp_path, 3, False).download_and_prepare()


def test_no_temporary_folders_are_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    write(tmp_path)
    datasets.load("small", tmp_path).source("train")[0]
    assert os.listdir(tmp_path / "temporary") == []


def test_rows_left_out_at_the_end_of_a_split_are_listed_once(tmp_path):
    """A run stopped in the second split meets the last problems of the first again when it continues."""
    first = Problem("train.csv", 4, "in the middle")
    last = Problem("train.csv", 22, "behind the last example")
    examples = {"train": make(20), "test": make(5, seed=1)}
    stop = True

    def train(stored):
        assert stored in (None, examples["train"][-1]["id"])
        if stored is None:
            yield from [*examples["train"][:2], first, *examples["train"][2:]]
        yield last

    def test(stored):
        if stop:
            raise KeyboardInterrupt
        yield from examples["test"]

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, splits={"train": train, "test": test}, resume="key")
    stop = False
    path = write(tmp_path, splits={"train": train, "test": test}, resume="key")
    info = json.loads((path / "jaxmlic.json").read_text(encoding="utf-8"))
    assert info["splits"] == {"train": 20, "test": 5} and info["skipped"] == 2
    assert info["skipped_rows"] == [list(astuple(first)), list(astuple(last))]


def test_without_tensorflow(tmp_path):
    """The whole way never imports TensorFlow, installed or not."""
    code = f"""
import sys
import numpy as np
from jaxmlic.data import datasets
from jaxmlic.data.prepare import writer
from jaxmlic.data.prepare.tables.sheets import Problem
example = {{"id": "a", "image": b"x", "labels": np.array([1], np.int8)}}
writer.write("small", {str(tmp_path)!r}, ["cat"], {{"train": [example]}}, {{}})
print(datasets.load("small", {str(tmp_path)!r}).source("train")[0]["id"], "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "a False\n"), done.stderr


def test_existing_sets_are_kept_until_the_new_one_is_complete(tmp_path):
    write(tmp_path)

    def breaks():
        yield from make(3)
        raise RuntimeError("the stream broke")

    with pytest.raises(UserError, match=r"already prepared.*--overwrite"):
        write(tmp_path)
    with pytest.raises(RuntimeError, match="the stream broke"):
        write(tmp_path, splits={"train": breaks()}, overwrite=True)
    with pytest.raises(UserError, match="no examples"):
        write(tmp_path, splits={"train": make(3), "test": []}, overwrite=True)
    with pytest.raises(ValueError, match="does not fit"):
        write(tmp_path, splits={"train": make(3, num_labels=4)}, overwrite=True)
    assert datasets.load("small", tmp_path).splits == {"train": 20, "test": 5}
    assert os.listdir(tmp_path) == ["small"]
    write(tmp_path, splits={"train": make(3)}, overwrite=True)
    assert datasets.load("small", tmp_path).splits == {"train": 3}
    assert os.listdir(tmp_path) == ["small"] and os.listdir(tmp_path / "small") == ["1.0.0"]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def write(self, record):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(writer.array_record_module, "ArrayRecordWriter", Full)
    with pytest.raises(UserError, match="no space left on device") as caught:
        write(tmp_path)
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full_when_the_shard_is_flushed(tmp_path, monkeypatch):
    """With the real ArrayRecord writer, on a device that takes nothing."""
    real = writer.array_record_module.ArrayRecordWriter
    monkeypatch.setattr(
        writer.array_record_module, "ArrayRecordWriter", lambda path, options: real("/dev/full", options)
    )
    with pytest.raises(UserError, match="cannot write the data set"):
        write(tmp_path)
    assert os.listdir(tmp_path) == []


def test_leftovers_of_killed_runs_are_removed(tmp_path):
    dead = tmp_path / f".small.partial-{socket.gethostname()}-999999999"
    alive = tmp_path / f".small.partial-{socket.gethostname()}-{os.getppid()}"
    elsewhere = tmp_path / ".small.partial-another_machine-999999999"
    for folder in (dead, alive, elsewhere):
        folder.mkdir()
    write(tmp_path)
    assert not dead.exists() and alive.exists() and elsewhere.exists()
    assert datasets.prepared(tmp_path) == ["small"]


def test_a_run_killed_between_two_renames_loses_nothing(tmp_path):
    write(tmp_path)
    (tmp_path / "small").rename(tmp_path / f".small.partial-{socket.gethostname()}-999999999.replaced")
    with pytest.raises(UserError, match="already prepared"):
        write(tmp_path, splits={"train": make(3)})
    assert datasets.load("small", tmp_path).splits == {"train": 20, "test": 5}


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not a prepared data set"):
        write(tmp_path, overwrite=True)
    assert (tmp_path / "small" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["", "../x", "my-set", "a b", "1st", "_x", "a/b", "ä"])
def test_bad_names(tmp_path, name):
    with pytest.raises(UserError, match="cannot name a data set"):
        write(tmp_path, name=name)
    assert os.listdir(tmp_path) == []


def test_unknown_names_and_splits(tmp_path):
    with pytest.raises(UserError, match=r"no data set 'smal' .*it holds none.*jaxmlic data prepare smal"):
        datasets.load("smal", tmp_path)
    write(tmp_path)
    with pytest.raises(UserError, match=r"no data set 'smal' .*did you mean 'small'.*it holds small"):
        datasets.load("smal", tmp_path)
    dataset = datasets.load("small", tmp_path)
    for call in (dataset.labels, dataset.ids, dataset.source):
        with pytest.raises(UserError, match=r"no split 'tset' \(did you mean 'test'\?\)"):
            call("tset")
    with pytest.raises(UserError, match="no boxes"):
        dataset.source("train", boxes=True)


@pytest.mark.parametrize(
    "victim", ["jaxmlic.json", "dataset_info.json", "features.json", "labels-train.npz", "small-train.array_record-*"]
)
@pytest.mark.parametrize("how", ["missing", "emptied", "garbage"])
def test_damaged_folders_are_one_line(tmp_path, victim, how):
    path = write(tmp_path)
    (file,) = path.glob(victim)
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(b"" if how == "emptied" else b"garbage" * 100)
    with pytest.raises(UserError) as caught:
        dataset = datasets.load("small", tmp_path)
        dataset.labels("train")
        dataset.source("train")
    assert "damaged" in str(caught.value) and "--overwrite" in str(caught.value) and "\n" not in str(caught.value)


def test_a_stored_label_that_is_none(tmp_path):
    path = write(tmp_path)
    with np.load(path / "labels-train.npz") as file:
        arrays = dict(file)
    arrays["labels"][1, 0] = 2
    np.savez(path / "labels-train.npz", **arrays)
    with pytest.raises(UserError, match=r"damaged \(labels-train.npz: '.*' has the label 2 for '.*', which is none of"):
        datasets.load("small", tmp_path).labels("train")


def test_a_shard_that_is_cut_or_altered(tmp_path):
    path = write(tmp_path, splits={"train": make(200)})
    (file,) = path.glob("small-train.array_record-*")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        datasets.load("small", tmp_path).source("train")
    file.write_bytes(whole[:5000] + bytes(1000) + whole[6000:])
    source = datasets.load("small", tmp_path).source("train")
    with pytest.raises(UserError, match=r"small/train: record \d+ cannot be read"):
        for i in range(200):
            source[i]


def test_counts_that_disagree(tmp_path):
    path = write(tmp_path) / "jaxmlic.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"splits": {"train": 19, "test": 5}}))
    with pytest.raises(UserError, match="damaged"):
        datasets.load("small", tmp_path)
    path.write_text(json.dumps(info | {"class_names": ["cat", "dog"]}))
    with pytest.raises(UserError, match="damaged"):
        datasets.load("small", tmp_path).labels("train")


def test_files_beside_the_records(tmp_path):
    left_out = [Problem("train.csv", 3, "a, with a comma"), Problem("train.csv", 9, "b")]
    path = write(tmp_path, left_out=left_out)
    info = json.loads((path / "jaxmlic.json").read_text(encoding="utf-8"))
    assert info["skipped"] == 2 and info["name"] == "small" and info["has_boxes"] is False
    assert info["splits"] == {"train": 20, "test": 5} and info["class_names"] == CLASSES
    text = (path / "skipped.csv").read_text()
    assert text.splitlines() == ["file,line,why", 'train.csv,3,"a, with a comma"', "train.csv,9,b"]
    with np.load(path / "labels-test.npz", allow_pickle=False) as arrays:
        assert arrays["labels"].dtype == np.int8 and arrays["ids"].dtype.kind == "U"


def test_default_data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXMLIC_DATA", str(tmp_path))
    write(tmp_path)
    assert datasets.default_data_dir() == tmp_path and datasets.load("small").name == "small"
    monkeypatch.delenv("JAXMLIC_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert datasets.default_data_dir() == tmp_path / "home" / ".cache" / "jaxmlic" / "data"


NAMED = {"train0": [24, 3, 0], "test0": [1, 20], "val": [3]}


def test_named_splits_reach_across_the_stored_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD_BYTES", 2000)
    splits = {"train": make(20, boxes=True), "test": make(5, seed=1, boxes=True)}
    folder = write(tmp_path, splits=splits, has_boxes=True)
    path = datasets.write_named_split(folder, "folds-1", NAMED, {"seed": 3})
    assert path == folder / "splits" / "folds-1.npz" and os.listdir(path.parent) == ["folds-1.npz"]
    dataset = datasets.load("small", tmp_path)
    assert dataset.split_names() == ["train", "test", "folds-1/train0", "folds-1/test0", "folds-1/val"]
    assert dataset.splits == {"train": 20, "test": 5}
    assert [dataset.count(split) for split in dataset.split_names()] == [20, 5, 3, 2, 1]
    assert named_splits.info(folder, "folds-1") == {"seed": 3}
    everything = [*splits["train"], *splits["test"]]
    for part, rows in NAMED.items():
        split = f"folds-1/{part}"
        source = dataset.source(split, boxes=True)
        assert len(source) == len(rows) and dataset.rows(split).tolist() == rows
        for i, row in enumerate(rows):
            wanted, record = everything[row], source[i]
            assert record["id"] == dataset.ids(split)[i] == wanted["id"] and record["image"] == wanted["image"]
            np.testing.assert_array_equal(dataset.labels(split)[i], wanted["labels"])
            assert len(record["boxes"]["label"]) == len(wanted["boxes"])
        assert [record["id"] for record in source.__getitems__(range(len(rows)))] == dataset.ids(split).tolist()
        with pytest.raises(IndexError):
            source[len(rows)]
    assert [record["id"] for record in pickle.loads(pickle.dumps(source))] == [everything[3]["id"]]
    with pytest.raises(ValueError, match="read-only"):
        dataset.rows("train")[0] = 5


def test_the_text_of_a_source_tells_the_rows_and_not_the_folder(tmp_path):
    dataset = datasets.load("small", write(tmp_path).parent.parent)
    texts = set()
    for rows in ([1, 2], [2, 1], [1, 3]):
        datasets.write_named_split(dataset, "a", {"train": rows}, {}, overwrite=True)
        texts.add(repr(datasets.load("small", tmp_path).source("a/train")))
    assert len(texts) == 3 and all("small/a/train" in text and str(tmp_path) not in text for text in texts)


def test_named_splits_of_another_preparation_are_refused(tmp_path):
    datasets.write_named_split(write(tmp_path), "a", {"train": [0]}, {})
    kept = (tmp_path / "small" / "1.0.0" / "splits" / "a.npz").read_bytes()
    folder = write(tmp_path, splits={"train": make(20, seed=2), "test": make(5, seed=1)}, overwrite=True)
    (folder / "splits").mkdir()
    (folder / "splits" / "a.npz").write_bytes(kept)
    dataset = datasets.load("small", tmp_path)
    for call in (dataset.labels, dataset.ids, dataset.source, dataset.count):
        with pytest.raises(UserError, match=r"a\.npz: made for another preparation.*jaxmlic data split small --as=a"):
            call("a/train")
    for damage in (b"", b"garbage" * 9, kept[: len(kept) // 2]):
        (folder / "splits" / "a.npz").write_bytes(damage)
        with pytest.raises(UserError, match=r"a\.npz: cannot be read as a named split.*or delete it"):
            dataset.labels("a/train")
    dataset.labels("train")


def test_mistakes_in_named_splits(tmp_path):
    dataset = datasets.load("small", write(tmp_path).parent.parent)
    add = functools.partial(datasets.write_named_split, dataset)
    for name, part in (("a b", "train"), ("../a", "train"), ("a/b", "train"), ("", "train"), ("a", ".x"), ("a", "b/c")):
        with pytest.raises(UserError, match="cannot name a split"):
            add(name, {part: [0]}, {})
    with pytest.raises(UserError, match="a/test would hold no images"):
        add("a", {"train": [0], "test": []}, {})
    for rows in ([0, 0], [25], [-1], [[0]]):
        with pytest.raises(ValueError, match="rows of a/train"):
            add("a", {"train": rows}, {})
    with pytest.raises(UserError, match="a/trainval and a/test share 1 images"):
        add("a", {"trainval": [0, 1], "test": [1, 2]}, {})
    with pytest.raises(UserError, match="a/train0 and a/test1 share 1 images"):
        add("a", {"train0": [0, 1], "test1": [1]}, {})
    with pytest.raises(UserError, match="a/train1 and a/test1 share 2 images"):
        add("a", {"train1": [0, 1], "test1": [1, 0]}, {}, folds=True)
    add("a", {"train0": [0, 1], "test1": [1]}, {}, folds=True)
    with pytest.raises(UserError, match=r"a\.npz is there already: add --overwrite"):
        add("a", {"train": [0]}, {})
    add("a", {"train": [5], "val": [5]}, {}, overwrite=True)
    assert dataset.split_names() == ["train", "test", "a/train", "a/val"]
    for name in ("a/trian", "a", "a/train/x", "../a/train", "/", "a/"):
        with pytest.raises(UserError, match="has no split"):
            dataset.labels(name)
    add("many", {f"part{i}": [i] for i in range(20)}, {})
    with pytest.raises(UserError, match=r"it has train, test, a/train.*\(`jaxmlic data split small --list`\)$"):
        dataset.labels("x")
