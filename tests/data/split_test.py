"""`jaxmlic data split` from the outside: every mode on a small data set, and every mistake in one line, status 2."""

import re

import numpy as np
import pytest

from jaxmlic.cli import main as cli
from jaxmlic.data import datasets, named_splits
from jaxmlic.data.prepare import writer

CLASSES = ["cat", "dog", "bird", "fish"]


def examples(split, count, seed):
    rng = np.random.default_rng(seed)
    for i in range(count):
        labels = (rng.random(4) < [0.6, 0.3, 0.2, 0.05]).astype(np.int8)
        labels[(rng.random(4) < 0.1) & (labels == 0)] = -1
        yield {"id": f"{split}/{split}_{i:03d}.jpg", "image": b"x", "labels": labels}


@pytest.fixture
def dataset(tmp_path):
    """`mine`: 80 training and 40 test images, 4 classes; about a fifth have no positive label."""
    splits = {"train": examples("train", 80, 0), "test": examples("test", 40, 1)}
    writer.write("mine", tmp_path, CLASSES, splits, {})
    return datasets.load("mine", tmp_path)


@pytest.fixture
def split(tmp_path, capfd):
    """Runs the command in this process: (status, lines on stdout, lines on stderr)."""

    def call(*argv):
        capfd.readouterr()
        status = cli.run(["data", "split", "mine", f"--data-dir={tmp_path}", *map(str, argv)])
        out, err = capfd.readouterr()
        return status, out.splitlines(), err.splitlines()

    return call


def assert_refused(result, *parts):
    status, out, err = result
    assert (status, out, len(err)) == (2, [], 1), result
    for part in parts:
        assert part in err[0]


def test_folds(dataset, split):
    status, out, _ = split("--folds=4")
    assert status == 0
    assert out[-1] == ("use: --config.data.train_split=folds4_seed0/train0 --config.data.test_split=folds4_seed0/test0")
    assert "80 images of train in 8 parts" in out[0] and [line.split()[0] for line in out[2:5]] == [
        "all",
        "train0",
        "test0",
    ]
    tests = [dataset.rows(f"folds4_seed0/test{i}") for i in range(4)]
    assert sorted(np.concatenate(tests)) == list(range(80)) and {len(rows) for rows in tests} == {20}
    positives = np.stack([(dataset.labels(f"folds4_seed0/test{i}") == 1).sum(0) for i in range(4)])
    assert (np.ptp(positives, axis=0) <= 2).all()
    for i in range(4):
        assert dataset.rows(f"folds4_seed0/train{i}").tolist() == sorted(set(range(80)) - set(tests[i].tolist()))


def test_the_same_seed_gives_the_same_bytes(dataset, split):
    files = []
    for seed, name in ((0, "a"), (0, "a"), (1, "a")):
        assert split("--folds=4", f"--seed={seed}", f"--as={name}", "--overwrite")[0] == 0
        files.append((dataset.path / "splits" / "a.npz").read_bytes())
    assert files[0] == files[1] != files[2]


def test_parts_of_several_stored_splits(dataset, split):
    assert split("--parts=train=80%,val=10%,test=0.1")[0] == 0
    assert [dataset.count(f"parts_seed0/{part}") for part in ("train", "val", "test")] == [96, 12, 12]
    rows = np.concatenate([dataset.rows(f"parts_seed0/{part}") for part in ("train", "val", "test")])
    assert sorted(rows) == list(range(120))
    status, out, _ = split("--parts=train=20,test=10", "--from=test,train", "--as=counts")  # 90 are left out
    assert status == 0 and "120 images of test, train in 2 parts" in out[0]
    assert [dataset.count(f"counts/{part}") for part in ("train", "test")] == [20, 10]
    assert split("--folds=2", "--from=counts/train", "--as=nested")[0] == 0
    nested = np.concatenate([dataset.rows(f"nested/test{i}") for i in range(2)])
    assert sorted(nested) == sorted(dataset.rows("counts/train"))


def test_a_labelled_subset(dataset, split):
    for size, name, count in (
        ("10%", "subset10_seed0", 8),
        ("2.5%", "subset2_5_seed0", 2),
        ("7", "subset7images_seed0", 7),
    ):
        status, out, _ = split(f"--subset={size}")
        assert status == 0 and out[-1] == f"use: --config.data.train_split={name}/labelled"
        assert dataset.count(f"{name}/labelled") == count and dataset.count(f"{name}/unlabelled") == 80 - count
        both = np.concatenate([dataset.rows(f"{name}/{part}") for part in ("labelled", "unlabelled")])
        assert sorted(both) == list(range(80))
    assert (dataset.labels("subset10_seed0/labelled") == 1).any(0).all()


def test_independent_draws(dataset, split):
    status, out, _ = split("--draws=3", "--size=24")
    assert status == 0 and out[-1] == "use: --config.data.train_split=draws3_seed0/draw0"
    draws = [dataset.rows(f"draws3_seed0/draw{i}") for i in range(3)]
    assert [len(set(rows.tolist())) for rows in draws] == [24, 24, 24] and max(map(max, draws)) < 80
    # Each is drawn from all images: no two are equal, and they are no parts of one division.
    shared = [len(np.intersect1d(draws[i], draws[j])) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert all(0 < count < 24 for count in shared)
    whole = (dataset.labels("train") == 1).mean(0)
    for i in range(3):
        assert np.abs((dataset.labels(f"draws3_seed0/draw{i}") == 1).mean(0) - whole).max() <= 1 / 24 + 1e-9
    assert named_splits.info(dataset.path, "draws3_seed0")["size"] == "24"
    assert split("--draws=3", "--size=24", "--seed=1")[0] == 0
    assert dataset.rows("draws3_seed1/draw0").tolist() not in [rows.tolist() for rows in draws]


def test_subsets_of_a_named_split_and_a_part_of_everything(dataset, split):
    """Table VIII of MSCNN-LCE-MIC: labelled images drawn from a named split, and one split with all images."""
    assert split("--parts=train=70,test=50", "--as=rmlc")[0] == 0
    assert split("--subset=20", "--from=rmlc/train", "--as=labelled20")[0] == 0
    assert split("--parts=images=100%", "--from=train,test", "--as=all")[0] == 0
    assert dataset.count("labelled20/labelled") == 20
    assert set(dataset.ids("labelled20/labelled")) < set(dataset.ids("rmlc/train"))
    assert sorted(dataset.ids("all/images")) == sorted([*dataset.ids("train"), *dataset.ids("test")])


def test_random_and_without_empty_images(dataset, split):
    empty = ~(dataset.labels("train") == 1).any(1)
    status, out, _ = split("--folds=3", "--random", "--drop-empty")
    assert status == 0 and f"  {empty.sum()} images without a positive label were left out" in out
    rows = np.concatenate([dataset.rows(f"folds3_random_seed0/test{i}") for i in range(3)])
    assert sorted(rows) == np.flatnonzero(~empty).tolist()
    assert named_splits.info(dataset.path, "folds3_random_seed0") == {
        "drop_empty": True, "folds": 3, "from": "train", "seed": 0, "stratified": False
    }  # fmt: skip


def test_lists(dataset, split, tmp_path):
    (tmp_path / "a,1.txt").write_text(
        "test\\test_003.jpg\r\n\n  train/train_000.jpg\ntest_001.jpg\n", encoding="utf-8-sig"
    )
    (tmp_path / "b.txt").write_text("elsewhere/train_007\n")
    lists = f"--lists=train={tmp_path / 'a,1.txt'},test={tmp_path / 'b.txt'}"
    status, out, _ = split(lists)
    assert status == 0 and "  2 listed images were found by their base name alone" in out
    assert dataset.rows("lists/train").tolist() == [83, 0, 81] and dataset.rows("lists/test").tolist() == [7]
    assert named_splits.info(dataset.path, "lists")["lists"] == {"train": "a,1.txt", "test": "b.txt"}

    (tmp_path / "b.txt").write_text("train_007.jpg\ntrain_900.jpg\ntrain_901.jpg\n")
    assert_refused(split(lists, "--overwrite"), "b.txt:2: no image 'train_900.jpg'", "and 1 more", "--allow-missing")
    status, out, _ = split(lists, "--overwrite", "--allow-missing")
    report = dataset.path / "splits" / "lists.missing.csv"
    assert status == 0 and any("2 listed images are not there" in line for line in out)
    assert [row.split(",")[1] for row in report.read_text().splitlines()] == ["line", "2", "3"]
    (tmp_path / "b.txt").write_text("train_007.jpg\n")
    assert split(lists, "--overwrite")[0] == 0 and not report.exists()

    kept = (dataset.labels("train") == 1).any(1)
    (tmp_path / "b.txt").write_text("\n".join(dataset.ids("train")[1:]))
    assert split(lists, "--drop-empty", "--as=full")[0] == 0
    assert dataset.rows("full/test").tolist() == (np.flatnonzero(kept[1:]) + 1).tolist()


def test_mistakes_in_lists(dataset, split, tmp_path):
    file = tmp_path / "a.txt"
    lists = f"--lists=train={file}"
    assert_refused(split(lists), "a.txt: cannot be read")
    file.write_bytes(b"\xff\xfe\x00")
    assert_refused(split(lists), "a.txt: cannot be read (it is not UTF-8)")
    file.write_text("train_000.jpg\n\ntrain\\train_000.jpg\n")
    assert_refused(split(lists), "a.txt:3: ", "is listed twice, first in line 1")
    file.write_text("x\nx\n")
    assert_refused(split(lists, "--allow-missing"), "a.txt:2: 'x' is listed twice")
    file.write_text("x\n")
    assert_refused(split(lists, "--allow-missing"), "lists/train would hold no images")
    file.write_text("train_000.jpg\n")
    assert_refused(split(f"{lists},test={file}"), "lists/train and lists/test share 1 images")
    assert_refused(split(lists, "--seed=1"), "--seed means nothing with --lists")
    assert_refused(split(lists, "--random"), "--random means nothing with --lists")
    twins = [{"id": f"{folder}/1.jpg", "image": b"x", "labels": np.ones(1, np.int8)} for folder in "ab"]
    writer.write("mine", tmp_path, ["cat"], {"train": twins}, {}, overwrite=True)
    file.write_text("1.jpg\n")
    assert_refused(split(lists), "a.txt:1: '1.jpg' may be 'a/1.jpg' or 'b/1.jpg'")
    assert not (tmp_path / "mine" / "1.0.0" / "splits").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", "one of the arguments --folds"),
        ("--folds=3 --subset=10%", "not allowed with"),
        ("--folds=0", "--folds=0: from 2 to"),
        ("--folds=1", "--folds=1: from 2 to"),
        ("--folds=81", "--folds=81: from 2 to the number of images, 80"),
        ("--folds=three", "invalid int value"),
        ("--folds=3 --from=trian", "did you mean 'train'?"),
        ("--folds=3 --from=train,train", "these splits share images"),
        ("--folds=3 --as=a/b", "cannot name a split"),
        ("--folds=3 --seed=-1", "--seed=-1: 0 or more"),
        ("--folds=3 --allow-missing", "--allow-missing means nothing with --folds"),
        ("--parts=train=80%,test=30%", "more than all 120 images"),
        ("--parts=train=80%,train=20%", "'train' is named twice"),
        ("--parts=train", "'train' is not PART=VALUE"),
        ("--parts=train=many", "--parts=train=many: give a count up to 120"),
        ("--parts=train=99.9%,test=0.1%", "parts_seed0/test would hold no images"),
        ("--subset=100%", "unlabelled would hold no images"),
        ("--subset=81", "--subset=81: give a count up to 80"),
        ("--subset=0", "--subset=0: give a count"),
        ("--subset=nan", "--subset=nan: give a count"),
        ("--draws=3", "--draws needs --size=N"),
        ("--draws=0 --size=4", "--draws=0: at least 1"),
        ("--draws=3 --size=81", "--size=81: give a count up to 80"),
        ("--folds=3 --size=4", "--size means nothing with --folds"),
        ("--list --seed=0", "--seed means nothing with --list"),
        ("--list --from=train", "--from means nothing with --list"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(dataset, split, options, told):
    assert_refused(split(*options.split()), told)
    assert dataset.split_names() == ["train", "test"]


def test_nothing_is_replaced_unasked(dataset, split):
    assert split("--folds=3")[0] == 0
    before = (dataset.path / "splits" / "folds3_seed0.npz").read_bytes()
    assert_refused(split("--folds=3", "--random", "--as=folds3_seed0"), "folds3_seed0.npz is there already")
    assert (dataset.path / "splits" / "folds3_seed0.npz").read_bytes() == before


def test_images_without_labels_only(split, tmp_path):
    blank = [{"id": str(i), "image": b"x", "labels": np.full(2, i % 2 - 1, np.int8)} for i in range(10)]
    writer.write("mine", tmp_path, ["cat", "dog"], {"train": blank}, {})
    assert_refused(split("--folds=2", "--drop-empty"), "no image of train has a positive label")
    status, out, _ = split("--folds=2")
    assert status == 0 and out[2].split() == ["all", "10", "0.000", "2", "-"]
    assert np.sum(datasets.load("mine", tmp_path).labels("folds2_seed0/test0")[:, 0] == -1) in (2, 3)


def test_the_list_of_named_splits(dataset, split):
    assert split("--list") == (0, ["mine: stored train 80, test 40; no named splits"], [])
    split("--subset=10%")
    status, out, _ = split("--list")
    assert status == 0 and out[0].endswith("; 1 named splits")
    assert out[1:] == [
        "  subset10_seed0: labelled 8, unlabelled 72",
        "    (drop_empty=False, from=train, seed=0, stratified=True, subset=10%)",
    ]


def test_the_table_by_hand(split, tmp_path):
    labels = np.zeros((100, 2), np.int8)
    labels[:40, 0] = labels[:1, 1] = 1
    rows = [{"id": f"{i}", "image": b"x", "labels": row} for i, row in enumerate(labels)]
    writer.write("mine", tmp_path, ["cat", "dog"], {"train": rows}, {})
    (tmp_path / "a.txt").write_text("\n".join(map(str, range(24, 74))))  # 16 cats of the 20 that 50 images should hold
    _, out, _ = split(f"--lists=train={tmp_path / 'a.txt'}")
    assert [re.split(r"\s{2,}", line.strip()) for line in out[1:4]] == [
        ["part", "images", "labels/image", "classes without", "largest deviation*"],
        ["all", "100", "0.410", "0", "-"],
        ["train", "50", "0.320", "1", "20.0% (cat)"],
    ]
