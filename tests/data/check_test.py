"""The check of a prepared data set: every finding provoked, none on a clean one, hashes and pairs by brute force."""

import io
import json
import re
import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxmlic.cli.data import commands
from jaxmlic.data import datasets
from jaxmlic.data.check import duplicates
from jaxmlic.data.check.report import check, split_roles
from jaxmlic.data.image import inspect_image
from jaxmlic.data.prepare import writer
from jaxmlic.errors import UserError
from jaxmlic.reports import check_report

CLASSES = ["cat", "dog"]


def photo(seed, height=48, width=64):
    """A smooth picture of its own; uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def example(id, image, labels=(1, 1), boxes=None):
    data = image if isinstance(image, bytes) else encoded(image)
    fields = {"id": str(id), "image": data, "labels": np.array(labels, np.int8)}
    return fields if boxes is None else fields | {"boxes": boxes}


def clean(split, count, seed):
    return [example(f"{split}{i}", photo(seed + i), (1, i % 2)) for i in range(count)]


def parts(train=(), test=(), **more):
    """A clean data set with these examples added."""
    return {"train": [*clean("train", 6, 0), *train], "test": [*clean("test", 4, 100), *test], **more}


def load(folder, splits, classes=CLASSES, has_boxes=False):
    writer.write("small", folder, classes, splits, {}, has_boxes, overwrite=True)
    return datasets.load("small", folder)


def found(folder, splits, **options):
    """{kind: (level, count)} of a data set."""
    report = check(load(folder, splits, **options))
    return {finding["kind"]: (finding["level"], finding["count"]) for finding in report["findings"]}


def command(folder, *options):
    return commands.main(["check", "small", f"--data-dir={folder}", *options])


def test_a_clean_set_has_no_findings(tmp_path, capsys):
    load(tmp_path, parts())
    assert command(tmp_path, "--workers=2") == 0
    out = capsys.readouterr().out
    assert "nothing found" in out and "alphabetical" in out and "error" not in out
    assert len(out.splitlines()) <= 40 and max(map(len, out.splitlines()[:-1])) <= 120
    assert (tmp_path / "small" / "1.0.0" / "check" / "check.json").exists()
    assert datasets.load("small", tmp_path).splits == {"train": 6, "test": 4}  # its folder within is no damage


def test_the_report_is_the_json_and_its_numbers_are_right(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = {split: rng.integers(-1, 2, (count, 3)).astype(np.int8) for split, count in (("train", 30), ("test", 11))}
    splits = {
        split: [example(f"{split}{i}", photo(1000 * len(split) + i), row) for i, row in enumerate(rows)]
        for split, rows in labels.items()
    }
    dataset = load(tmp_path, splits, classes=["b", "a", "c"])
    command(tmp_path, f"--out={tmp_path / 'out'}")
    report = check(dataset, workers=3)
    assert json.loads((tmp_path / "out" / "check.json").read_text()) == report
    everything = np.concatenate(list(labels.values()))
    for split, rows in [*labels.items(), ("all", everything)]:
        sizes = [sum(value == 1 for value in row) for row in rows.tolist()]
        numbers = report["splits"][split]
        assert numbers["images"] == len(rows) and numbers["cardinality"] == pytest.approx(np.mean(sizes))
        assert numbers["density"] == pytest.approx(np.mean(sizes) / 3)
        assert numbers["label_set_sizes"] == {str(k): sizes.count(k) for k in sorted(set(sizes))}
        assert numbers["distinct_label_sets"] == len({tuple(v == 1 for v in row) for row in rows.tolist()})
        assert numbers["empty_rows"] == sizes.count(0) and numbers["unknown"] == (rows == -1).sum()
        assert numbers["height"] == {"min": 48, "median": 48, "max": 48} and numbers["formats"] == {"PNG": len(rows)}
    for c, entry in enumerate(report["classes"]):
        assert entry["name"] == "bac"[c]
        assert entry["present"] == {split: int((rows[:, c] == 1).sum()) for split, rows in labels.items()}
        assert entry["unknown"] == {split: int((rows[:, c] == -1).sum()) for split, rows in labels.items()}
    together = [[int(((everything[:, a] == 1) & (everything[:, b] == 1)).sum()) for b in range(3)] for a in range(3)]
    assert report["cooccurrence"] == together and not report["alphabetical"]
    kinds = {finding["kind"]: finding for finding in report["findings"]}
    assert set(kinds) == {"empty_rows", "unknown"}
    assert kinds["empty_rows"]["count"] == report["splits"]["all"]["empty_rows"]
    assert kinds["unknown"]["count"] == report["splits"]["all"]["unknown"]


def test_overlap_is_an_error_whatever_wraps_the_pixels(tmp_path, capsys):
    image = photo(3)  # train3
    splits = parts(test=[example("again", encoded(image, compress_level=1), (1, 1))])
    assert found(tmp_path, splits) == {"overlap": ("error", 1)}
    splits = parts(test=[example("again", image, (1, 0))])
    assert found(tmp_path, splits) == {"overlap": ("error", 1), "contradiction": ("error", 1)}
    with pytest.raises(UserError, match=r"results on small would be wrong: 1 identical .*train/train3 = test/again"):
        command(tmp_path, f"--out={tmp_path / 'out'}")
    captured = capsys.readouterr()
    assert re.search(r"error +1 identical image", captured.out)
    findings = json.loads((tmp_path / "out" / "check.json").read_text())["findings"]
    assert findings[0]["listed"] == [{"images": ["train/train3", "test/again"], "same_file": True}]
    assert findings[1]["listed"][0]["classes"] == ["dog"]
    splits = parts(test=[example("again", image, (1, -1))])
    assert found(tmp_path, splits) == {"overlap": ("error", 1), "unknown": ("note", 1)}  # unknown contradicts nothing
    splits = parts(unlabelled=[example("u", photo(101), (0, 0))])
    assert found(tmp_path, splits) == {"overlap": ("error", 1)}


def test_duplicates_elsewhere_are_notes(tmp_path):
    twice = [example("one", photo(50), (1, 0)), example("two", photo(50), (1, 0))]
    assert found(tmp_path, parts(train=twice)) == {"duplicates": ("note", 1)}
    twice[1]["labels"] = np.array([1, 1], np.int8)
    both = {"duplicates": ("note", 1), "conflicting_labels": ("note", 1)}
    assert found(tmp_path, parts(train=twice)) == both
    shared = {"shared": ("note", 1)}
    assert found(tmp_path, parts(val=[example("again", photo(2), (1, 0))])) == shared
    # Without a test split the val splits are tested on.
    splits = {"train2014": clean("a", 4, 0), "val2014": clean("b", 4, 3)}
    assert found(tmp_path, splits)["overlap"] == ("error", 1)


@pytest.mark.parametrize(
    "roles",
    [
        {"train": "train", "val": "val", "test": "test"},
        {"trainval": "train", "unlabeled2017": "unlabelled", "Test_A": "test", "test_b": "test"},
        {"train2014": "train", "val2014": "test"},
        {"fold1": "train", "fold2": "train"},
    ],
)
def test_what_splits_are_for(roles):
    assert split_roles(list(roles)) == roles


def test_near_duplicates(tmp_path):
    image = photo(50, 96, 128)
    smaller = encoded(Image.fromarray(image).resize((64, 48)), "JPEG", quality=40)
    splits = parts(train=[example("large", image)], test=[example("small", smaller)])
    assert found(tmp_path, splits) == {"near_overlap": ("note", 1)}
    splits = parts(train=[example("large", image), example("small", smaller)])
    assert found(tmp_path, splits) == {"near_duplicates": ("note", 1)}
    report = check(load(tmp_path, splits))
    (finding,) = report["findings"]
    assert finding["listed"][0]["images"] == ["train/large", "train/small"]
    assert 0 <= finding["listed"][0]["distance"] <= duplicates.NEAR


def test_ids_and_names(tmp_path):
    assert found(tmp_path, parts(train=[example("train0", photo(60))])) == {"duplicate_ids": ("error", 1)}
    assert found(tmp_path, parts(test=[example("train0", photo(60))])) == {"ids_across": ("note", 1)}
    assert found(tmp_path, parts(), classes=["cat", "cat"]) == {"duplicate_names": ("error", 1)}
    assert found(tmp_path, parts(), classes=["wine glass", "Wine_Glass"]) == {"suspicious_names": ("note", 1)}
    assert found(tmp_path, parts(), classes=[" cat", "dog"]) == {"suspicious_names": ("note", 1)}


def test_unreadable_images_are_errors_with_the_reason(tmp_path):
    broken = [example("empty", b""), example("cut", encoded(photo(70), "JPEG")[:-200]), example("text", b"hello")]
    report = check(load(tmp_path, parts(train=broken)))
    (finding,) = report["findings"]
    assert (finding["level"], finding["kind"], finding["count"]) == ("error", "unreadable", 3)
    for line, record in zip(finding["listed"], broken, strict=True):
        assert line == f"train/{record['id']}: {inspect_image(record['image'])[2]}"
    everything = {"train": broken, "test": clean("test", 2, 0)}
    report = check(load(tmp_path, everything))
    assert report["splits"]["train"]["height"] == {} and "1 class" not in check_report.text(report)
    assert check_report.text(report)


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def pil(mode):
    return Image.fromarray(photo(80)).convert(mode)


ODD = {
    "grey jpeg": (encoded(pil("L"), "JPEG"), {"grey"}),
    "grey png": (encoded(pil("L")), {"grey"}),
    "grey and alpha": (encoded(pil("LA")), {"grey", "transparent"}),
    "alpha": (encoded(pil("RGBA")), {"transparent"}),
    "alpha webp": (encoded(Image.merge("RGBA", [*pil("RGB").split(), pil("L")]), "WEBP"), {"transparent"}),
    "plain webp": (encoded(pil("RGB"), "WEBP"), set()),
    "palette": (encoded(pil("P")), {"palette"}),
    "gif": (encoded(pil("RGB"), "GIF"), {"palette"}),
    "bmp": (encoded(pil("RGB"), "BMP"), set()),
    "palette bmp": (encoded(pil("P"), "BMP"), {"palette"}),
    "cmyk": (encoded(pil("CMYK"), "JPEG"), {"CMYK"}),
    "progressive": (encoded(pil("RGB"), "JPEG", progressive=True), set()),
    "16 bit": (cv2.imencode(".png", photo(80).astype(np.uint16) * 257)[1].tobytes(), {"16-bit"}),
    "rotated": (encoded(pil("RGB"), "JPEG", exif=exif(6)), {"rotated by EXIF"}),
    "exif, upright": (encoded(pil("RGB"), "JPEG", exif=exif(1)), set()),
    "exif, broken": (encoded(pil("RGB"), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), set()),
    "wide": (encoded(photo(80, 40, 161)), {"extreme aspect"}),
    "not wide": (encoded(photo(80, 40, 160)), set()),
    "tiny": (encoded(photo(80, 31, 40)), {"tiny"}),
    "not tiny": (encoded(photo(80, 32, 40)), set()),
    "uniform": (encoded(np.full((40, 50, 3), 7, np.uint8)), {"uniform"}),
    "almost uniform": (encoded(np.full((40, 50, 3), 7, np.uint8), "JPEG"), {"uniform"}),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_images_are_notes(tmp_path, case):
    data, kinds = ODD[case]
    assert found(tmp_path, parts(train=[example("odd", data)])) == {kind: ("note", 1) for kind in kinds}


def test_uniform_images_are_not_near_each_other(tmp_path):
    plain = [example(f"plain{value}", np.full((40, 50, 3), value, np.uint8)) for value in (0, 100, 255)]
    assert found(tmp_path, parts(train=plain)) == {"uniform": ("note", 3)}


def test_labels_that_lack(tmp_path):
    bare = {"train": clean("train", 6, 0), "test": [example(i, photo(100 + i), (0, -1)) for i in range(3)]}
    assert found(tmp_path, bare) == {"no_labels": ("error", 1)}
    unlabelled = [example(f"u{i}", photo(300 + i), (-1, -1)) for i in range(3)]
    assert found(tmp_path, parts(unlabelled=unlabelled)) == {}
    assert found(tmp_path, parts(train=[example("bare", photo(90), (0, 0))])) == {"empty_rows": ("note", 1)}

    def second(train, test):
        """Data whose second class has these values."""
        pairs = (("train", train), ("test", test))
        return {s: [example(f"{s}{i}", photo(10 ** len(s) + i), (1, v)) for i, v in enumerate(vs)] for s, vs in pairs}

    assert found(tmp_path, second([0, 0], [1, 1])) == {
        "no_positive_in_train": ("note", 1),
        "only_in_test": ("error", 1),
    }
    one_of_eleven = second([0, 0], [1, *[0] * 9])  # as in Corel-5K
    assert found(tmp_path, one_of_eleven) == {"no_positive_in_train": ("note", 1), "only_in_test": ("note", 1)}
    unknown = {"no_positive_in_train": ("note", 1), "unknown_in_train": ("error", 1), "unknown": ("note", 2)}
    assert found(tmp_path, second([-1, -1], [1, 0])) == unknown
    assert found(tmp_path, second([1, 0], [0, 0])) == {"no_positive_in_test": ("note", 1)}
    nowhere = {"no_positive_in_train": ("note", 1), "no_positive_in_test": ("note", 1)}
    assert found(tmp_path, second([0, 0], [0, 0])) == nowhere


def test_boxes(tmp_path):
    def box(label, difficult=False):
        return {"bbox": [0.1, 0.1, 0.5, 0.5], "label": label, "difficult": difficult}

    def boxed(*boxes, labels=(1, 0)):
        splits = {"train": clean("train", 4, 0), "test": clean("test", 4, 100)}
        examples = {s: [e | {"boxes": [box(0)]} for e in of_split] for s, of_split in splits.items()}
        examples["train"].append(example("more", photo(40), labels, list(boxes)))
        return found(tmp_path, examples, has_boxes=True)

    assert boxed() == boxed(box(0), box(0)) == {}
    assert boxed(box(0, True), box(0, True)) == {"difficult_boxes": ("note", 2)}
    assert boxed(box(1), box(7)) == {"stray_boxes": ("note", 2)}
    assert boxed(box(1), labels=(1, -1)) == {"unknown": ("note", 1)}


@pytest.mark.parametrize("seed", range(3))
def test_hash_outlives_encoding_and_size(seed):
    image = photo(seed, 120, 160)
    hash, thumbnail, uniform = duplicates.perceptual_hash(image)
    assert 0 <= hash < 2**64 and thumbnail.shape == (256,) and thumbnail.dtype == np.uint8 and not uniform
    others = [
        np.asarray(Image.open(io.BytesIO(encoded(image, "JPEG", quality=30)))),
        np.asarray(Image.fromarray(image).resize((70, 50))),
        np.asarray(Image.fromarray(image).resize((400, 300))),
        np.asarray(Image.fromarray(image).convert("L").convert("RGB")),
    ]
    assert all((hash ^ duplicates.perceptual_hash(other)[0]).bit_count() <= duplicates.NEAR for other in others)
    for other in (photo(seed + 50), image[::-1].copy(), image[:, ::-1].copy(), 255 - image):
        assert (hash ^ duplicates.perceptual_hash(other)[0]).bit_count() > 3 * duplicates.NEAR


def test_hash_is_that_of_the_definition():
    """Against the sums of the DCT written out."""
    image = photo(5, 32, 32)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
    basis = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None, :] + 1) / 64)
    basis[0] /= np.sqrt(2)
    low = (basis @ grey @ basis.T).ravel()
    expected = int("".join("01"[int(value > np.median(low))] for value in low), 2)
    assert duplicates.perceptual_hash(image)[0] == expected


@pytest.mark.parametrize("limit", [0, 1, 3, 6, 7, 12])
def test_near_pairs_are_those_of_brute_force(limit, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", 50)  # many blocks
    rng = np.random.default_rng(limit)
    hashes = rng.integers(0, 2**64, 60, dtype=np.uint64)
    for distance in (0, 1, limit, limit + 1):  # neighbours at exactly these distances
        for base in hashes[:6].tolist():
            flips = sum(1 << int(bit) for bit in rng.choice(64, distance, replace=False))
            hashes = np.append(hashes, np.uint64(base ^ flips))
    rng.shuffle(hashes)
    values = hashes.tolist()
    expected = {
        (i, j): (values[i] ^ values[j]).bit_count()
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if (values[i] ^ values[j]).bit_count() <= limit
    }
    blocks = list(duplicates.near_pairs(hashes, limit))
    pairs = [(int(a), int(b), int(d)) for block in blocks for a, b, d in zip(*block, strict=True)]
    assert len(pairs) == len(expected)  # each once
    assert {(a, b): d for a, b, d in pairs} == expected
    assert {0, limit} <= set(expected.values())


def test_near_pairs_of_few_and_of_many():
    assert list(duplicates.near_pairs(np.array([], np.uint64), 6)) == []
    assert list(duplicates.near_pairs(np.array([5], np.uint64), 6)) == []
    same = np.full(3000, 9, np.uint64)
    tracemalloc.start()
    assert sum(len(first) for first, _, _ in duplicates.near_pairs(same, 2)) == 3000 * 2999 // 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20  # a matrix of all pairs would be 72 MB


@pytest.mark.parametrize("num_classes", [1, 20, 80, 374])
def test_picture_and_table_of_many_classes(tmp_path, num_classes):
    rng = np.random.default_rng(0)
    rows = {"train": (rng.random((12, num_classes)) < 0.3), "test": (rng.random((9, num_classes)) < 0.3)}
    splits = {
        split: [example(f"{split}{i}", photo(10 * len(split) + i), row) for i, row in enumerate(of_split)]
        for split, of_split in rows.items()
    }
    report = check(load(tmp_path, splits, classes=[f"a $class$ {c}" for c in range(num_classes)]))
    assert len(check_report.text(report).splitlines()) <= 40
    check_report.plot(tmp_path / "check.png", report)
    with Image.open(tmp_path / "check.png") as drawn:
        assert min(drawn.size) > 300 and max(drawn.size) < 2600
        assert np.asarray(drawn.convert("L")).std() > 10


def test_a_picture_without_any_label(tmp_path):
    dataset = load(tmp_path, {"train": [example("a", photo(0), [0] * 130)]}, classes=[str(c) for c in range(130)])
    check_report.plot(tmp_path / "check.png", check(dataset))


def test_mistakes_are_one_line(tmp_path):
    load(tmp_path, parts())
    (tmp_path / "file").write_text("")
    for options, match in (
        (["--near=-1"], "--near"),
        (["--near=13"], "--near"),
        (["--workers=0"], "--workers"),
        ([f"--out={tmp_path / 'file'}"], "--out"),
        ([f"--data-dir={tmp_path / 'nowhere'}"], "no data set 'small'"),
    ):
        with pytest.raises(UserError, match=match) as caught:
            command(tmp_path, *options)
        assert "\n" not in str(caught.value)
