"""The scenes data set: the same every time, true to its label sets, boxes that hold glyphs, glyphs that stay seen."""

import dataclasses
import hashlib
import io
import re
import subprocess
import sys
import textwrap
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from jaxmlic.data.prepare.scenes import glyphs, layout, pictures
from jaxmlic.data.prepare.voc import CLASS_NAMES
from jaxmlic.errors import UserError

# Pictures with a non-difficult object of each class: the VOC 2007 devkit's own ImageSets/Main, as often published.
VOC_TRAINVAL = [238, 243, 330, 181, 244, 186, 713, 337, 445, 141, 200, 421, 287, 245, 2008, 245, 96, 229, 261, 256]
VOC_TEST = [204, 239, 282, 172, 212, 174, 721, 322, 417, 127, 190, 418, 274, 222, 2007, 224, 97, 223, 259, 229]
SOME = [("train", 0), ("train", 7), ("train", 9_999), ("test", 4_799), *(("test", i) for i in range(24))]
WHITE = np.array([[0.0, 0.0, 0.0, 1.0]] * 3)  # RGB = alpha
BLACK = np.zeros((3, 4))


def crowded(count: int) -> list[int]:
    """Test pictures that show at least four glyphs."""
    return [i for i in range(800) if len(layout.lay_out("test", i)) >= 4][:count]


def same(a: dict, b: dict) -> bool:
    return (
        a["id"] == b["id"]
        and a["image"] == b["image"]
        and np.array_equal(a["labels"], b["labels"])
        and len(a["boxes"]) == len(b["boxes"])
        and all(
            np.array_equal(x["bbox"], y["bbox"]) and x["label"] == y["label"]
            for x, y in zip(a["boxes"], b["boxes"], strict=True)
        )
    )


def changed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two pictures differ, bool [side, side]. A glyph's box leaves out alpha below 1/255: 2 levels, rounded."""
    return (np.abs(a.astype(int) - b) > 2).any(-1)


def test_twenty_voc_classes_and_the_stated_splits():
    assert len(CLASS_NAMES) == 20
    assert list(CLASS_NAMES) == sorted(CLASS_NAMES)
    assert layout.SPLITS == {"train": 10_000, "test": 4_800}


def test_label_sets_have_the_published_class_counts():
    assert glyphs.label_sets("train").sum(0).tolist() == VOC_TRAINVAL
    assert glyphs.label_sets("test").sum(0).tolist() == VOC_TEST
    assert len(glyphs.label_sets("train")) == 5_011
    assert len(glyphs.label_sets("test")) == 4_952
    assert all(glyphs.label_sets(split).any(1).all() for split in layout.SPLITS)


@pytest.mark.parametrize(("split", "most"), [("train", 2), ("test", 1)])
def test_pictures_take_real_label_sets_no_oftener_than_voc_has_them(split, most):
    drawn = np.stack([layout.labels_of(split, i) for i in range(layout.SPLITS[split])])
    assert drawn.dtype == np.int8
    available = Counter(row.tobytes() for row in glyphs.label_sets(split))
    used = Counter(row.tobytes() for row in drawn)
    assert all(used[row] <= most * available[row] for row in used)
    frequencies, voc = drawn.mean(0), glyphs.label_sets(split).mean(0)
    np.testing.assert_allclose(frequencies, voc, rtol=0.05)


def test_each_picture_is_the_same_again_and_unlike_its_neighbours():
    for split, index in SOME[:6]:
        a, b = pictures.render(split, index), pictures.render(split, index)
        assert np.array_equal(a.image, b.image)
    images = {pictures.render(split, index).image.tobytes() for split, index in SOME}
    assert len(images) == len(SOME)


def test_worker_count_and_number_of_pictures_change_nothing():
    one = list(pictures.examples("test", 150, workers=1))
    assert [r["id"] for r in one] == [f"test-{i:06d}" for i in range(150)]
    three = list(pictures.examples("test", 150, workers=3))
    fewer = list(pictures.examples("test", 70, workers=2))
    assert all(same(a, b) for a, b in zip(one, three, strict=True))
    assert all(same(a, b) for a, b in zip(one[:70], fewer, strict=True))
    alone = pictures.render("test", 149)
    assert one[149]["image"] == pictures.encode(alone.image)


def test_a_script_that_has_loaded_jax_draws_the_same_bytes():
    code = """
        import hashlib, jax  # JAX loaded first, no __main__ guard: how a user's script would do it
        from jaxmlic.data.prepare.scenes import pictures
        drawn = pictures.examples("train", 140, seed=5, workers=2)
        print(hashlib.sha256(b"".join(r["image"] for r in drawn)).hexdigest())
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    here = hashlib.sha256(b"".join(r["image"] for r in pictures.examples("train", 140, seed=5))).hexdigest()
    assert ran.stdout.strip() == here


def test_seeds_differ_in_pictures_and_order_of_label_sets():
    a, b = ([pictures.render("train", i, seed) for i in range(20)] for seed in (0, 1))
    assert not any(np.array_equal(x.image, y.image) for x, y in zip(a, b, strict=True))
    assert any(not np.array_equal(x.labels, y.labels) for x, y in zip(a, b, strict=True))


def test_a_reader_may_stop_early_and_leaves_no_process_behind(monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    reader = pictures.examples("train", workers=2)
    assert next(reader)["id"] == "train-000000"
    reader.close()
    assert len(started) == 2 and all(process.returncode is not None for process in started)


def test_a_dead_worker_is_an_error_not_a_short_split(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match="ended early"):
        list(pictures.examples("train", 200, workers=2))


def test_every_label_has_a_box_and_every_box_a_label():
    counts = Counter()
    for split in layout.SPLITS:
        for record in pictures.examples(split, 400):
            boxed = {box["label"] for box in record["boxes"]}
            assert boxed == set(np.flatnonzero(record["labels"]).tolist())
            assert set(np.unique(record["labels"])) <= {0, 1}
            assert max(Counter(box["label"] for box in record["boxes"]).values()) <= 2
            counts[len(record["boxes"]) > len(boxed)] += 1
            for box in record["boxes"]:
                ymin, xmin, ymax, xmax = box["bbox"]
                assert box["bbox"].dtype == np.float32
                assert 0 <= ymin < ymax <= 1 and 0 <= xmin < xmax <= 1
                assert box["difficult"] is False
    assert 0.05 < counts[True] / counts.total() < 0.5  # second copies: some, not always


@pytest.mark.parametrize("side", [48, 80])
def test_a_box_holds_the_glyph_and_is_tight(side):
    checked = 0
    for index in [*range(40), *crowded(10)]:
        objects, seed = layout.lay_out("test", index), (0, 1, index)
        for number, placed in enumerate(objects):
            # Against white and against black: what the glyph covers differs between the two, nothing else does.
            alone = [pictures.paint([dataclasses.replace(placed, colour=c)], seed, side) for c in (WHITE, BLACK)]
            ymin, xmin, ymax, xmax = alone[0][1][0]["bbox"] * side
            rows, columns = np.nonzero(changed(alone[0][0], alone[1][0]))
            assert ymin - 1 < rows.min() and rows.max() < ymax and xmin - 1 < columns.min() and columns.max() < xmax
            assert abs(rows.min() - ymin) <= 1.5 and abs(rows.max() + 1 - ymax) <= 1.5
            assert abs(columns.min() - xmin) <= 1.5 and abs(columns.max() + 1 - xmax) <= 1.5
            # In the picture itself: leaving the glyph out changes pixels inside its box and none outside.
            whole, boxes = pictures.paint(objects, seed, side)
            without, _ = pictures.paint(objects[:number] + objects[number + 1 :], seed, side)
            rows, columns = np.nonzero(changed(whole, without))
            ymin, xmin, ymax, xmax = boxes[number]["bbox"] * side
            assert len(rows)
            assert ymin - 1 < rows.min() and rows.max() < ymax and xmin - 1 < columns.min() and columns.max() < xmax
            checked += 1
    assert checked > 80


def test_no_glyph_is_hidden_by_later_ones_nor_mostly_outside():
    shares, inside = [], []
    for index in [*range(60), *crowded(40)]:
        objects, seed = layout.lay_out("test", index), (0, 1, index)
        for number, placed in enumerate(objects):
            black = [dataclasses.replace(o, colour=BLACK) for o in objects]
            white = [dataclasses.replace(o, colour=WHITE if i == number else BLACK) for i, o in enumerate(objects)]
            left = pictures.paint(white, seed)[0].astype(float) - pictures.paint(black, seed)[0]
            all_of_it = (
                pictures.paint([white[number]], seed)[0].astype(float) - pictures.paint([black[number]], seed)[0]
            )
            shares.append(left.sum() / all_of_it.sum())
            ymin, xmin, ymax, xmax = pictures.paint([placed], seed)[1][0]["bbox"]
            inside.append(max(ymax - ymin, xmax - xmin) / placed.size)
    # The layout judges overlap on masks of opaque pixels; half-covered edges make a few hundredths of difference.
    assert min(shares) > layout.MIN_VISIBLE - 0.08
    assert min(shares) < 0.9, "glyphs do overlap"
    assert min(inside) > 0.75


def test_the_side_changes_neither_labels_nor_places():
    small, large = pictures.render("test", 3), pictures.render("test", 3, side=96)
    assert small.image.shape == (48, 48, 3) and large.image.shape == (96, 96, 3)
    assert np.array_equal(small.labels, large.labels)
    for a, b in zip(small.boxes, large.boxes, strict=True):
        assert a["label"] == b["label"]
        np.testing.assert_allclose(a["bbox"], b["bbox"], atol=1.1 / 48)
    shrunk = np.asarray(Image.fromarray(large.image).resize((48, 48), Image.Resampling.BOX), float)
    assert np.abs(shrunk - small.image).mean() < 6


def test_encoded_pictures_are_jpegs_close_to_the_drawn_ones():
    for record in pictures.examples("train", 20):
        image = Image.open(io.BytesIO(record["image"]))
        assert image.format == "JPEG" and image.mode == "RGB" and image.size == (48, 48)
        drawn = pictures.render("train", int(record["id"].split("-")[1])).image
        assert np.abs(np.asarray(image, float) - drawn).mean() < 4  # also: RGB, not BGR


def test_glyphs_are_drawn_in_their_own_colours():
    """The taxi at its own size, neither turned nor tinted, lies somewhere in the picture as in its file."""
    glyph = Image.open(io.BytesIO((glyphs.ASSETS / "car" / "noto-1f695.png").read_bytes()))
    glyph = glyph.crop(glyph.getchannel("A").point(lambda alpha: 255 * (alpha > 7)).getbbox())
    car = CLASS_NAMES.index("car")
    number = sorted(f.name for f in (glyphs.ASSETS / "car").glob("*.png")).index("noto-1f695.png")
    size = max(glyphs.glyphs()[car][number][0].shape[:2]) / 96
    placed = layout.Placed(car, number, (58 / 96, 44 / 96), size, 0.0, False, layout.SAME)
    picture, boxes = pictures.paint([placed], (0, 0, 0), 96)
    errors = {}
    for name, expected in (("as it is", np.asarray(glyph, float)), ("mirrored", np.asarray(glyph, float)[:, ::-1])):
        height, width = expected.shape[:2]
        opaque = expected[..., 3] > 250
        errors[name] = {
            (top, left): np.abs(picture[top : top + height, left : left + width] - expected[..., :3])[opaque].mean()
            for top in range(96 - height)
            for left in range(96 - width)
        }
    best = min(errors["as it is"], key=errors["as it is"].get)
    assert errors["as it is"][best] < 8
    assert min(errors["mirrored"].values()) > 12
    assert best == pytest.approx((58 - glyph.height / 2, 44 - glyph.width / 2), abs=1)
    ends = (best[0], best[1], best[0] + glyph.height, best[1] + glyph.width)
    np.testing.assert_allclose(boxes[0]["bbox"] * 96, ends, atol=1.5)


def test_assets_decode_with_alpha_are_listed_once_and_stay_small():
    files = sorted(glyphs.ASSETS.glob("*/*.png"))
    assert {f.parent.name for f in files} == set(CLASS_NAMES)
    assert len({f.read_bytes() for f in files}) == len(files), "no glyph belongs to two classes"
    for file in files:
        image = Image.open(io.BytesIO(file.read_bytes()))
        assert image.mode in ("RGBA", "LA") and image.size == (64, 64)
        assert image.getchannel("A").getextrema()[1] > 250
    text = (glyphs.ASSETS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- `(.+\.png)`: \w", text, re.M)
    assert sorted(listed) == [f"{f.parent.name}/{f.name}" for f in files]
    for needed in (
        "Apache License 2.0",
        "CC BY 4.0",
        "creativecommons.org/licenses/by/4.0",
        "unchanged copies",
        "16.0.0",
    ):
        assert needed in text
    assert sum(f.stat().st_size for f in glyphs.ASSETS.rglob("*") if f.is_file()) < 1_000_000


def test_every_class_has_glyphs_of_both_vendors_and_all_are_used():
    for name, of_class in zip(CLASS_NAMES, glyphs.glyphs(), strict=True):
        vendors = Counter(f.name.split("-")[0] for f in (glyphs.ASSETS / name).glob("*.png"))
        assert vendors["noto"] >= 1 and vendors["twemoji"] >= 1 and vendors.total() == len(of_class)
    used = {(o.label, o.glyph) for i in range(3_000) for o in layout.lay_out("train", i)}
    assert len(used) == sum(len(of_class) for of_class in glyphs.glyphs())


def test_mistakes_are_named():
    with pytest.raises(UserError, match="did you mean 'train'"):
        pictures.render("trian", 0)
    with pytest.raises(UserError, match="use 1 to 4800"):
        pictures.examples("test", 4_801)
    with pytest.raises(UserError, match="count is 0"):
        pictures.examples("test", 0)
    with pytest.raises(IndexError, match="no picture 4800"):
        pictures.render("test", 4_800)
    with pytest.raises(IndexError):
        pictures.render("test", -1)
