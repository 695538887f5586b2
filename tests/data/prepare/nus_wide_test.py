"""NUS-WIDE from files of the owner's layout with fewer images, concepts and tags."""

import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from jaxmlic.data.prepare import benchmarks, nus_wide, paper_splits
from jaxmlic.data.prepare.sources.files import Files
from jaxmlic.errors import UserError

TRAIN, TEST, TAGS = 30, 20, 12
CONCEPTS = ["sky", "person", "lake"]


def column(values):
    return "".join(f"{value}\r\n" for value in values).encode()


def matrix(values):
    return b"".join(b"\t".join(b"%d" % v for v in row) + b"\t\r\n" for row in values)


@pytest.fixture
def nus(monkeypatch):
    """Everything of a small NUS-WIDE: names, labels [50, 3] and tags [50, 12] in Imagelist's order, and the files."""
    monkeypatch.setattr(nus_wide, "CONCEPTS", len(CONCEPTS))
    monkeypatch.setattr(nus_wide, "TAGS", TAGS)
    rng = np.random.default_rng(0)
    images = [f"{('actor', 'zoo', 'big sky')[i % 3]}\\{i:04d}_{1000 + i}.jpg" for i in range(TRAIN + TEST)]
    train = np.sort(rng.permutation(TRAIN + TEST)[:TRAIN])
    rows = {"train": train, "test": np.setdiff1d(np.arange(TRAIN + TEST), train)}
    labels = rng.integers(0, 2, (TRAIN + TEST, 3)) * rng.integers(0, 2, (TRAIN + TEST, 1))
    tags = rng.integers(0, 2, (TRAIN + TEST, TAGS))
    files = {
        "ConceptsList/Concepts81.txt": "\r\n".join(CONCEPTS).encode() + b"\r\n",
        "ImageList/Imagelist.txt": column(images),
        "ImageList/TrainImagelist.txt": column(images[i] for i in rows["train"]),
        "ImageList/TestImagelist.txt": column(images[i] for i in rows["test"]),
        "NUS_WID_Tags/TagList1k.txt": column(f"tag{i}" for i in range(TAGS)),
        "NUS_WID_Tags/AllTags1k.txt": matrix(tags),
        "NUS_WID_Tags/Train_Tags1k.dat": matrix(tags[rows["train"]]),
        "NUS_WID_Tags/Test_Tags1k.dat": matrix(tags[rows["test"]]),
    }
    for c, concept in enumerate(CONCEPTS):
        files[f"Groundtruth/AllLabels/Labels_{concept}.txt"] = column(labels[:, c])
        for split in ("train", "test"):
            name = f"Groundtruth/TrainTestLabels/Labels_{concept}_{split.title()}.txt"
            files[name] = column(labels[rows[split], c])
    ids = [image.replace("\\", "/") for image in images]
    for image in ids:
        files[f"Flickr/{image}"] = image.encode()
    return SimpleNamespace(ids=ids, rows=rows, labels=labels, tags=tags, files=files)


def folder(path, members):
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def without(files, part):
    return {name: data for name, data in files.items() if part not in name}


def read(path, members, labels="concepts81"):
    with Files([folder(path, members)]) as files:
        return benchmarks.read("nus_wide" if labels == "concepts81" else "nus_wide_tags", files)


def refused(path, members, *parts, labels="concepts81"):
    with pytest.raises(UserError) as caught:
        read(path, members, labels)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def assert_table(table, nus, values):
    assert not table.problems and not table.has_boxes and list(table.splits) == ["train", "test"]
    for split, rows in table.splits.items():
        assert [row.id for row in rows] == [nus.ids[i] for i in nus.rows[split]]
        np.testing.assert_array_equal([row.labels for row in rows], values[nus.rows[split]])
        assert all(row.labels.dtype == np.int8 for row in rows)
        assert [row.where[1] for row in rows] == list(range(1, len(rows) + 1))


def test_official_numbers():
    assert (nus_wide.CONCEPTS, nus_wide.TAGS) == (81, 1000)
    assert sum(nus_wide.IMAGES.values()) == 269_648 and sum(nus_wide.LABELLED.values()) == 209_347
    assert nus_wide.IMAGES["test"] == paper_splits.NUS_TEST
    assert sum(nus_wide.LABELLED.values()) == paper_splits.NUS_LABELLED
    images = [str(i) for i in range(209_347)]
    draw = np.random.RandomState(paper_splits.SEED).permutation
    train, test = paper_splits.divide_at_random(images, paper_splits.NUS_RANDOM_TRAIN / 209_347, draw)
    assert (len(train), len(test)) == (150_000, 59_347)
    assert sorted(train + test) == sorted(images)
    sample, _ = paper_splits.divide_at_random(images[:107_859], paper_splits.NUS_RMLC_TEST / 107_859, draw)
    assert len(sample) == 40_500


@pytest.mark.parametrize("left_out", ["AllLabels", "TrainTestLabels", "neither"])
def test_concepts(tmp_path, nus, left_out):
    table = read(tmp_path, without(nus.files, left_out))
    assert table.class_names == CONCEPTS
    assert_table(table, nus, nus.labels)
    assert table.splits["train"][0].image.read() == table.splits["train"][0].id.encode()
    assert any("30 images in the list, 161,789 in the official one" in note for note in table.notes)


@pytest.mark.parametrize("left_out", ["AllTags1k", "_Tags1k.dat", "Groundtruth"])
def test_tags(tmp_path, nus, left_out):
    table = read(tmp_path, without(nus.files, left_out) if left_out != "Groundtruth" else nus.files, "tags1k")
    assert table.class_names == [f"tag{i}" for i in range(TAGS)]
    assert_table(table, nus, nus.tags)
    assert set(table.named_splits) == {"labelled", "random150k", "rmlc"}
    table = read(tmp_path / "b", without(without(nus.files, "Groundtruth"), "Concepts81"), "tags1k")
    assert_table(table, nus, nus.tags)
    assert set(table.named_splits) == {"rmlc"}


def test_the_owners_zip_files_and_flat_images(tmp_path, nus):
    for archive in ("Groundtruth", "ImageList", "NUS_WID_Tags", "ConceptsList"):
        with zipfile.ZipFile(tmp_path / f"{archive}.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for name, data in nus.files.items():
                if name.startswith(archive + "/"):
                    packed.writestr(name, data)
    for image in nus.ids:
        folder(tmp_path / "images", {image.split("/")[-1]: image.encode()})
    with Files([tmp_path]) as files:
        table = nus_wide.read(files)
        assert_table(table, nus, nus.labels)
        for rows in table.splits.values():
            assert all(row.image.read() == row.id.encode() for row in rows)


def test_named_splits(tmp_path, nus):
    table = read(tmp_path, nus.files)
    named = table.named_splits
    labelled = {split: [nus.ids[i] for i in rows if nus.labels[i].any()] for split, rows in nus.rows.items()}
    assert named["labelled"] == labelled and 0 < len(labelled["test"]) < TEST
    everyone = labelled["train"] + labelled["test"]
    assert sorted(named["random150k"]["train"] + named["random150k"]["test"]) == sorted(everyone)
    assert len(named["random150k"]["train"]) == round(len(everyone) * 150_000 / 209_347)
    test = [row.id for row in table.splits["test"]]
    assert named["rmlc"]["train"] == [row.id for row in table.splits["train"]]
    assert len(named["rmlc"]["test"]) == round(TEST * 40_500 / 107_859)
    assert named["rmlc"]["test"] == [id for id in test if id in set(named["rmlc"]["test"])]  # in the list's order


def test_missing_images_are_left_out_and_move_nobody(tmp_path, nus):
    whole = read(tmp_path / "a", nus.files).named_splits
    gone = {nus.ids[i] for i in (3, 4, 20, 41)}
    table = read(tmp_path / "b", {name: data for name, data in nus.files.items() if name[7:] not in gone})
    assert not table.problems and sum(map(len, table.splits.values())) == 46
    assert {problem.why.split(":")[0] for problem in table.left_out} == gone
    lines = (tmp_path / "b" / "ImageList" / table.left_out[0].file).read_text().splitlines()
    assert lines[table.left_out[0].line - 1].replace("\\", "/") in table.left_out[0].why
    for split, rows in nus.rows.items():
        lost = sum(nus.ids[i] in gone for i in rows)
        assert lost == 0 or f"{split}: {lost} of {len(rows)} images are not there any more" in table.notes
    for name, parts in table.named_splits.items():
        assert parts == {part: [id for id in ids if id not in gone] for part, ids in whole[name].items()}
    refused(tmp_path / "c", without(nus.files, "Flickr/"), "not one of the images is there", "images/NAME.jpg")


def test_images_that_cannot_be_told(tmp_path, nus):
    image = nus.ids[0]
    table = read(tmp_path, nus.files | {f"copy/{image}": b"other"})
    assert [str(problem).split(": ", 1)[1] for problem in table.problems] == [
        f"{image} may be Flickr/{image} or copy/{image}: remove one"
    ]


def test_repeated_lines(tmp_path, nus):
    """The same image twice counts once; with two labels, or in both splits, it is a mistake."""
    files = without(nus.files, "AllLabels")
    first = files["ImageList/TrainImagelist.txt"].split(b"\r\n")[0]
    for concept in CONCEPTS:
        name = f"Groundtruth/TrainTestLabels/Labels_{concept}_Train.txt"
        files[name] += files[name].split(b"\r\n")[0] + b"\r\n"
    files["ImageList/TrainImagelist.txt"] += first + b"\r\n"
    table = read(tmp_path / "a", files)
    assert len(table.splits["train"]) == TRAIN and not table.problems
    assert "train: 1 repeated lines of TrainImagelist.txt count once" in table.notes
    assert all(len(set(ids)) == len(ids) for parts in table.named_splits.values() for ids in parts.values())

    files[name] = files[name][:-3] + (b"0" if files[name][-3:-2] == b"1" else b"1") + b"\r\n"
    table = read(tmp_path / "b", files)
    assert [str(problem).split(" ", 1)[0] for problem in table.problems] == [f"TrainImagelist.txt:{TRAIN + 1}:"]
    assert "is on line 1 too, with other labels" in str(table.problems[0])

    files = without(nus.files, "AllLabels")
    lines = files["ImageList/TestImagelist.txt"].split(b"\r\n")
    files["ImageList/TestImagelist.txt"] = b"\r\n".join([first, *lines[1:]])
    table = read(tmp_path / "c", files)
    assert [problem.line for problem in table.problems] == [1] and "TrainImagelist.txt:1 too" in str(table.problems[0])


def test_the_owners_slip(tmp_path, nus):
    """Labels_lake_Train.txt reads -1130179 in one line."""
    name = "Groundtruth/TrainTestLabels/Labels_lake_Train.txt"
    lines = nus.files[name].split(b"\r\n")
    lines[6] = b"-1130179"
    files = nus.files | {name: b"\r\n".join(lines)}
    assert_table(table := read(tmp_path / "a", files), nus, nus.labels)
    assert f"{name}:7: '-1130179' is neither 0 nor 1: not used" in table.notes
    table = read(tmp_path / "b", without(files, "AllLabels"))
    assert table.splits["train"][6].labels[2] == -1
    assert sum(int((row.labels == -1).sum()) for rows in table.splits.values() for row in rows) == 1
    lines[8] = b"x"
    refused(tmp_path / "c", nus.files | {name: b"\r\n".join(lines)}, f"{name}:7:", "'-1130179'", "line 9")


def test_label_files_that_do_not_fit(tmp_path, nus):
    name = "Groundtruth/TrainTestLabels/Labels_sky_Test.txt"
    short = nus.files | {name: nus.files[name][:-3]}
    refused(tmp_path / "a", short, name, f"{TEST - 1} labels for {TEST} images")
    everywhere = "Groundtruth/AllLabels/Labels_sky.txt"
    short = nus.files | {everywhere: nus.files[everywhere] + b"0\r\n"}
    refused(tmp_path / "b", short, everywhere, "51 labels for 50 images")
    data = nus.files[name]
    flipped = (b"0" if data[:1] == b"1" else b"1") + data[1:]
    refused(tmp_path / "c", nus.files | {name: flipped}, f"{name}:1: ", "Labels_sky.txt says", "one release")
    refused(tmp_path / "d", without(nus.files, "Labels_sky_Test"), "no Labels_sky_Test.txt there")
    refused(tmp_path / "e", without(nus.files, "Groundtruth"), "add Groundtruth.zip")
    refused(tmp_path / "f", without(nus.files, "ConceptsList"), "no Concepts81.txt there")
    refused(tmp_path / "g", without(nus.files, "TestImagelist"), "no TestImagelist.txt there")
    lists = nus.files | {"ImageList/TrainImagelist.txt": b"a\\1.jpg\r\n\r\nb\\2.jpg\r\n"}
    refused(tmp_path / "h", lists, "TrainImagelist.txt:2: empty line")
    lists = nus.files | {"ImageList/Imagelist.txt": b"a\\1.jpg\r\n"}
    refused(tmp_path / "i", lists, "TrainImagelist.txt:1: ", "is not in Imagelist.txt")
    twice = nus.files | {"ConceptsList/Concepts81.txt": b"sky\r\nlake\r\nsky\r\n"}
    refused(tmp_path / "j", twice, "Concepts81.txt", "'sky' is there twice")
    cut = nus.files | {"ConceptsList/Concepts81.txt": b"sky\r\nlake\r\n"}
    refused(tmp_path / "l", cut, "Concepts81.txt: 2 concepts, its owner's file has 3")
    with Files([folder(tmp_path / "k", nus.files)]) as files, pytest.raises(UserError, match="did you mean 'tags1k'"):
        nus_wide.read(files, "tags")


@pytest.mark.parametrize("damage", ["2", "x", "11", "", "1\t1", "0.", "-1"])
def test_tags_that_are_damaged(tmp_path, nus, damage):
    name = "NUS_WID_Tags/AllTags1k.txt"
    lines = without(nus.files, "_Tags1k.dat")[name].split(b"\r\n")
    lines[17] = damage.encode() + lines[17][1:]
    files = without(nus.files, "_Tags1k.dat") | {name: b"\r\n".join(lines)}
    refused(tmp_path, files, f"{name}:18: not {TAGS} values 0 or 1", labels="tags1k")


def test_tags_that_are_cut_off(tmp_path, nus):
    name = "NUS_WID_Tags/AllTags1k.txt"
    files = without(nus.files, "_Tags1k.dat")
    refused(tmp_path / "a", files | {name: files[name][:-40]}, f"{name}:49: not {TAGS}", labels="tags1k")
    lines = files[name].split(b"\r\n")
    refused(tmp_path / "b", files | {name: b"\r\n".join(lines[:40])}, "40 lines for 50 images", labels="tags1k")
    refused(tmp_path / "c", files | {name: files[name] * 2}, "100 lines for 50 images", labels="tags1k")


@pytest.mark.parametrize("separator, end", [("\t", "\t\r\n"), ("\t", "\n"), (" ", " \n"), (" ", "\r\n")])
@pytest.mark.parametrize("block", [1, 50, 1 << 16])
def test_tags_in_blocks_and_spellings(tmp_path, monkeypatch, separator, end, block):
    monkeypatch.setattr(nus_wide, "_BLOCK", block)
    values = np.random.default_rng(3).integers(0, 2, (40, 7))
    text = end.join(separator.join(map(str, row)) for row in values)
    for tail in ("", end):
        (tmp_path / "AllTags1k.txt").write_bytes((text + tail).encode())
        with Files([tmp_path]) as files:
            found = nus_wide._matrix(files, "AllTags1k.txt", 40, 7)
        np.testing.assert_array_equal(found, values)
        assert found.dtype == np.int8
