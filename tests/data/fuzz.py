"""Broken inputs for `jaxmlic data prepare`, each made anew from (kind, seed), and the promise that all must keep.

`KINDS[kind](rng)` makes a `Case`: a small valid source with something broken in it, and the rows that its annotation
still has, counted without the package's readers. `run` gives it to the command and `broken_promise` says what is wrong
with what came out.
"""

import bz2
import contextlib
import csv
import functools
import gzip
import io
import json
import lzma
import pickle
import random
import re
import shutil
import struct
import tarfile
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
from fuzz_damage import BYTES, NAMES, TEXT, at_random, blank, damage, entity, json_damage
from fuzz_images import jpeg

from jaxmlic.cli import main as cli
from jaxmlic.cli.data import prepare as prepare_command
from jaxmlic.data import datasets
from jaxmlic.data.prepare import checks, cifar, nus_wide, store
from jaxmlic.data.prepare.tables.sheets import Problem
from jaxmlic.data.records import serialize_example

# --- cases ------------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of a case: the rows stored as (split, id, labels), the rows listed, and everything printed."""

    status: int
    out: str
    err: str
    class_names: tuple = ()
    stored: list = field(default_factory=list)
    listed: list = field(default_factory=list)
    left: list = field(default_factory=list)  # names in the data folder
    crash: str = ""

    @property
    def kind(self) -> str:
        """prepared, listed or refused."""
        return "refused" if self.status else "listed" if self.listed else "prepared"


@dataclass
class Case:
    """A source to write: {path: bytes}; the command's name, sources and options; and the independent count.

    `lost` gets the outcome of a success and returns what was dropped without a word, "" for nothing.
    """

    name: str
    tree: dict[str, bytes]
    sources: list[str] = field(default_factory=lambda: ["."])
    options: list[str] = field(default_factory=list)
    lost: Callable[[Outcome], str] = lambda outcome: ""


def _listed_text(outcome: Outcome) -> str:
    return "\n".join(f"{file}:{line}: {why}" for file, line, why in outcome.listed)


def _missing(wanted, outcome: Outcome) -> str:
    """The names among `wanted` that are neither stored nor in the list."""
    stored, text = {id for _, id, _ in outcome.stored}, _listed_text(outcome)
    lost = [name for name in wanted if name not in stored and name[:60] not in text]
    return f"lost {lost[:3]}" if lost else ""


def voc(rng: random.Random) -> Case:
    """VOC: an annotation or an image list is damaged."""
    year = rng.choice(("2007", "2012"))
    root = f"VOCdevkit/VOC{year}/"
    parts = {"2007": {"trainval": 4, "test": 2}, "2012": {"train": 3, "val": 3}}[year]
    tree, ids = {}, [f"{i:06d}" for i in range(1, 7)]
    for i, image in enumerate(ids):
        objects = "".join(
            f"<object><name>{name}</name><difficult>{(i + k) % 2}</difficult><bndbox><xmin>{1 + k}</xmin>"
            f"<ymin>2</ymin><xmax>{9.5 + k}</xmax><ymax>8</ymax></bndbox></object>\n"
            for k, name in enumerate(("dog", "person", "car")[: i % 4])
        )
        tree[f"{root}Annotations/{image}.xml"] = (
            f"<annotation>\n<folder>VOC{year}</folder>\n{objects}</annotation>\n".encode()
        )
        tree[f"{root}JPEGImages/{image}.jpg"] = jpeg(i)
    split_of = {}
    for part, count in parts.items():
        chosen, ids = ids[:count], ids[count:]
        tree[f"{root}ImageSets/Main/{part}.txt"] = "".join(f"{image}\n" for image in chosen).encode()
        split_of |= dict.fromkeys(chosen, part)
    if year == "2007":
        tree[f"{root}ImageSets/Main/train.txt"] = b"000001\n000002\n"
        tree[f"{root}ImageSets/Main/val.txt"] = b"000003\n000004\n"
    texts = [name for name in tree if name.endswith((".xml", ".txt"))]
    for name in rng.sample(texts, rng.choice((1, 1, 2))):
        tree[name] = damage(rng, tree[name], (*TEXT, entity, entity) if name.endswith(".xml") else TEXT)
    lists = [tree[f"{root}ImageSets/Main/{part}.txt"] for part in parts]

    def lost(outcome):
        wanted = {word for data in lists for word in data.decode("utf-8-sig").split()}
        return _missing(sorted(wanted), outcome)

    return Case(f"voc{year}", tree, options=["--no-checksums"], lost=lost)


def coco(rng: random.Random) -> Case:
    """COCO: an `instances_*.json` is damaged, as text or as a tree."""
    year, tree = rng.choice(("2014", "2017")), {}
    for s, split in enumerate(("train", "val")):
        ids = [10 * s + i + 1 for i in range(4 - s)]
        names = [f"{i:012d}.jpg" for i in ids]
        things = [
            {"image_id": i, "category_id": 3 + i % 2, "bbox": [1, 2, 5.5, 6], "iscrowd": i % 3 // 2, "id": 100 + i}
            for i in ids[1:]
        ]
        content = {
            "info": {"year": 2014, "x": [[1.5, 2], "é"]},
            "images": [{"id": i, "file_name": n, "height": 10} for i, n in zip(ids, names, strict=True)],
            "annotations": things,
            "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
        }
        tree[f"annotations/instances_{split}{year}.json"] = content
        tree |= {f"{split}{year}/{name}": jpeg(i) for i, name in enumerate(names)}
    instances = [name for name in tree if name.endswith(".json")]
    broken = rng.choice(instances)
    for name in instances:
        if name == broken and rng.random() < 0.6:
            tree[name] = json_damage(rng, tree[name])
        else:
            text = json.dumps(tree[name], indent=rng.choice((None, 1)), ensure_ascii=False).encode()
            tree[name] = damage(rng, text) if name == broken else text
    contents = [tree[name] for name in instances]

    def lost(outcome):
        rows = {id: labels for _, id, labels in outcome.stored}
        text, total = _listed_text(outcome), 0
        for data in contents:
            # msgspec passes over what it does not need without a look at its bytes.
            content = json.loads(data.decode("utf-8", "replace"), parse_int=lambda digits: int(digits[:4000]))
            names = {entry["id"]: entry["name"] for entry in content["categories"]}
            of = {}
            for entry in content["annotations"]:
                of.setdefault(entry["image_id"], set()).add(names.get(entry["category_id"]))
            total += len(content["images"])
            known = {entry["id"] for entry in content["images"]}
            if any(str(image) not in text for image in set(of) - known):
                return "objects of unknown images are not listed"
            for entry in content["images"]:
                found = rows.get(entry["file_name"])
                if found is None and entry["file_name"][:60] not in text and str(entry["id"]) not in text:
                    return f"lost {entry['file_name'][:80]!r}"
                present = found is not None and {
                    name for name, value in zip(outcome.class_names, found, strict=True) if value == 1
                }
                if found is not None and present != of.get(entry["id"], set()) and entry["file_name"][:60] not in text:
                    return f"{entry['file_name']!r} has {present}, the file says {of.get(entry['id'])}"
        return "" if len(outcome.stored) + len(outcome.listed) >= total else "fewer rows than images"

    order = rng.choice(([], ["--class-order=alphabetical"]))
    return Case(f"coco{year}", tree, options=order, lost=lost)


def nus(rng: random.Random) -> Case:
    """NUS-WIDE: one or two of its text files are damaged."""
    concepts, tags = ("sky", "person", "lake"), 12
    images = [f"{('actor', 'zoo')[i % 2]}\\{i:04d}_{1000 + i}.jpg" for i in range(10)]
    rows = {"Train": [0, 2, 4, 6, 8, 1], "Test": [3, 5, 7, 9]}

    def column(values):
        return "".join(f"{value}\r\n" for value in values).encode()

    tree = {f"Flickr/{name}".replace("\\", "/"): jpeg(i) for i, name in enumerate(images[:9])}
    texts = {
        "ConceptsList/Concepts81.txt": column(concepts),
        "ImageList/Imagelist.txt": column(images),
        "NUS_WID_Tags/TagList1k.txt": column(f"tag{i}" for i in range(tags)),
        "NUS_WID_Tags/AllTags1k.txt": column("\t".join(str((i * k) % 2) for k in range(tags)) for i in range(10)),
    }
    for split, of in rows.items():
        texts[f"ImageList/{split}Imagelist.txt"] = column(images[i] for i in of)
        tagged = ("\t".join(str((i * k) % 2) for k in range(tags)) for i in of)
        texts[f"NUS_WID_Tags/{split}_Tags1k.dat"] = column(tagged)
        for c, concept in enumerate(concepts):
            labels = column(int((i + c) % 3 == 0) for i in of)
            texts[f"Groundtruth/TrainTestLabels/Labels_{concept}_{split}.txt"] = labels
    if rng.random() < 0.4:
        for c, concept in enumerate(concepts):
            texts[f"Groundtruth/AllLabels/Labels_{concept}.txt"] = column(int((i + c) % 3 == 0) for i in range(10))
    for name in rng.sample(sorted(texts), rng.choice((1, 1, 2))):
        texts[name] = damage(rng, texts[name])

    def lost(outcome):
        wanted = set()
        for split in rows:
            text = texts[f"ImageList/{split}Imagelist.txt"].decode("utf-8-sig").replace("\\", "/")
            wanted |= {line.strip() for line in text.split("\n")} - {""}
        return _missing(sorted(wanted), outcome)

    return Case(rng.choice(("nus_wide", "nus_wide_tags")), tree | texts, lost=lost)


def _records(text: str, delimiter: str) -> int:
    """Records of a CSV text that hold more than white space, by walking its characters."""
    count, filled, quoted, start, i = 0, False, False, True, 0
    while i < len(text):
        c = text[i]
        if quoted:
            if c == '"' and text[i + 1 : i + 2] == '"':
                i, filled = i + 1, True
            elif c == '"':
                quoted = False
            else:
                filled |= not c.isspace()
        elif c == '"' and start:
            quoted, start = True, False
        elif c in "\r\n":
            count, filled, start = count + filled, False, True
        elif c == delimiter:
            start = True
        else:
            filled, start = filled or not c.isspace(), False
        i += 1
    return count + filled


def table(rng: random.Random) -> Case:
    """A CSV or TSV table: names or one-hot columns, with or without splits, a class list and boxes."""
    delimiter, suffix = rng.choice(((",", ".csv"), ("\t", ".tsv")))
    hot, splits, boxes = rng.random() < 0.4, rng.random() < 0.3, rng.random() < 0.2
    header = ["file", *(["cat", "dog", "big bird"] if hot else ["labels"]), *(["split"] * splits)]
    rows = []
    for i in range(6):
        labels = [str((i * k) % 3 - (i == 5)) if (i * k) % 3 < 2 else "0" for k in (1, 2, 3)]
        labels = labels if hot else [";".join(("cat", "dog", "big bird")[: i % 4])]
        rows.append([f"{i}.jpg", *labels, *([("train", "test")[i % 2]] if splits else [])])
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator=rng.choice(("\n", "\r\n"))).writerows([header, *rows])
    name = rng.choice(("labels", "train", "annotations")) + suffix
    tree = {name: buffer.getvalue().encode()} | {f"images/{i}.jpg": jpeg(i) for i in range(6)}
    options = []
    if rng.random() < 0.3:
        tree["classes.txt"] = b"cat\ndog\nbig bird\n"
    if boxes:
        tree["b.csv"] = b"file,label,xmin,ymin,xmax,ymax,difficult\n0.jpg,cat,1,1,5,5,0\n1.jpg,dog,0,0,9.5,9,1\n"
        options.append("--boxes=@/b.csv")
    target = rng.choice([name] * 5 + [other for other in ("classes.txt", "b.csv") if other in tree])
    tree[target] = damage(rng, tree[target])
    if rng.random() < 0.15:  # the image has the name that breaks things, too
        new = rng.choice(NAMES)
        tree[name] = tree[name].replace(b"0.jpg", new.encode("utf-8", "surrogatepass"))
        tree[f"images/{new}"] = jpeg()

    def lost(outcome):
        count = _records(tree[name].decode("utf-8-sig"), delimiter) - 1
        lines = {(file, line) for file, line, _ in outcome.listed}
        found = len(outcome.stored) + len(lines)
        return "" if found >= count else f"{found} rows of {count}"

    return Case("mine", tree, [name if boxes else "."], options, lost)


def jsonl(rng: random.Random) -> Case:
    """A JSONL table: lines damaged as text or as trees."""
    rows = []
    for i in range(6):
        names = ["cat", "dog", "big bird"][: i % 4]
        row = {"file": f"{i}.jpg", "labels": names if i % 2 else dict.fromkeys(names, 1), "note": "é"}
        row["boxes"] = [{"label": "cat", "bbox": [1, 1, 5, 5.5], "difficult": i % 2}] if i % 3 else None
        if i == 4:
            row["split"] = "test"
        rows.append(row)
    text = [json.dumps(row).encode() for row in rows]
    if rng.random() < 0.75:
        for i in rng.sample(range(6), rng.choice((1, 1, 3))):
            text[i] = json_damage(rng, rows[i])
        data = b"\n".join(text) + b"\n"
    else:
        data = damage(rng, b"\n".join(text) + b"\n")
    tree = {"labels.jsonl": data} | {f"images/{i}.jpg": jpeg(i) for i in range(6)}
    if rng.random() < 0.3:
        tree["classes.txt"] = b"cat\ndog\nbig bird\n"

    def lost(outcome):
        count = sum(bool(line.strip()) for line in data.decode("utf-8-sig").split("\n"))
        lines = {(file, line) for file, line, _ in outcome.listed}
        found = len(outcome.stored) + len(lines)
        return "" if found >= count else f"{found} rows of {count}"

    return Case("mine", tree, lost=lost)


def folders(rng: random.Random) -> Case:
    """Class folders whose names, images and neighbours are strange."""
    names = [
        f"{s}{c}/{i}.jpg" for s in rng.choice((("",), ("train/", "test/"))) for c in ("cat", "dog") for i in (1, 2)
    ]
    tree = {name: jpeg(i) for i, name in enumerate(names)}
    for _ in range(rng.choice((1, 1, 2))):
        old = rng.choice(sorted(tree))
        parts, at = old.split("/"), rng.randrange(len(old.split("/")))
        parts[at] = rng.choice(NAMES)
        kind = rng.randrange(4)
        if kind == 0:
            tree["/".join(parts)] = tree[old]
        elif kind == 1:
            tree["/".join(parts)] = tree.pop(old)
        elif kind == 2:
            tree[old] = damage(rng, tree[old], BYTES)
        else:
            tree[
                rng.choice(("notes.txt", "x.jpg", "train/x.jpg", ".hidden/x.jpg", "cat/Thumbs.db", "val/a/b/c/x.png"))
            ] = jpeg()
    return Case("mine", tree, lost=functools.partial(_lost_image, tree=tree))


def _lost_image(outcome: Outcome, tree) -> str:
    """Images on disk (as far as a disk can hold their names) that are not stored, listed or counted as hidden."""
    wanted = {_on_disk(name) for name in tree} - {None}
    shown = {n for n in wanted if not any(p.startswith(".") or p == "Thumbs.db" for p in n.split("/"))}
    images = [n for n in shown if n.lower().endswith((".jpg", ".png"))]
    hidden = len(wanted) - len(shown)
    if hidden and f"{hidden:,} hidden files ignored" not in outcome.out:
        return "hidden files are not told"
    missing = len(images) - len(outcome.stored) - len(outcome.listed)
    return f"{missing} images lost" if missing > 0 else ""


def _on_disk(name: str) -> str | None:
    """The path below the source that a name of a tree gets, None where no disk can hold it."""
    if not name or "\0" in name or name.startswith("/") or any(0xD800 <= ord(c) < 0xDC80 for c in name):
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or any(len(part.encode("utf-8", "surrogateescape")) > 250 for part in parts):
        return None
    return "/".join(parts) if len(name) < 2000 and len(parts) < 20 and not name.endswith(("/", ".")) else None


def _python2(value) -> bytes:
    """A pickle as Python 2 wrote it: protocol 2, its texts as byte strings."""
    if isinstance(value, bytes):
        return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<I", len(value))) + value
    if isinstance(value, int):
        return b"K" + bytes([value])
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(key) + _python2(of) for key, of in value.items()) + b"u"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"K" + bytes([value.shape[0]]) + b"M" + struct.pack("<H", value.shape[1]) + b"\x86"
    start = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nr\x02\x00\x00\x00K\x00\x85U\x01b\x87R"
    return start + b"(K\x01" + shape + dtype + b"\x89" + _python2(value.tobytes()) + b"tb"


CLASSES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
CIFAR_ROWS = 2


def cifar10(rng: random.Random) -> Case:
    """CIFAR-10 of two images a file, binary or pickled, one or two files damaged."""
    binary, tree = rng.random() < 0.5, {}
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [(number + i) % 10 for i in range(CIFAR_ROWS)]
        pixels = np.random.default_rng(number).integers(0, 256, (CIFAR_ROWS, 3072), dtype=np.uint8)
        if binary:
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], 1)
            tree[f"{name}.bin"] = rows.tobytes()
        else:
            tree[name] = b"\x80\x02" + _python2({b"labels": labels, b"data": pixels, b"x": b"y"}) + b"."
    if binary:
        tree["batches.meta.txt"] = b"\n".join(CLASSES) + b"\n"
    else:
        tree["batches.meta"] = b"\x80\x02" + _python2({b"label_names": CLASSES, b"n": 3}) + b"."
    for name in rng.sample(sorted(tree), rng.choice((1, 1, 2))):
        if binary and name.endswith(".bin") and rng.random() < 0.5:
            tree[name] = bytes([rng.randrange(256)]) + tree[name][1:]
        elif not binary and rng.random() < 0.6:  # where the opcodes are, and not the pixels
            size = min(len(tree[name]), 250)
            end = len(tree[name]) - rng.choice((0, size))
            head, tail = tree[name][: max(0, end - size)], tree[name][end:]
            tree[name] = head + damage(rng, tree[name][len(head) : end], (*BYTES, opcode, opcode, opcode)) + tail
        else:
            tree[name] = damage(rng, tree[name], TEXT if name.endswith(".txt") else BYTES)

    def lost(outcome):
        found = len(outcome.stored) + len(outcome.listed)
        return "" if found == 6 * CIFAR_ROWS else f"{found} rows of {6 * CIFAR_ROWS}"

    return Case("cifar10", {f"c/{name}": data for name, data in tree.items()}, options=["--no-checksums"], lost=lost)


def opcode(rng, data):
    """A pickle instruction, often with an argument beyond all sense, in between."""
    at = at_random(rng, data)
    ops = [
        *(b"cos\nsystem\n(U\x02lstR", b"r\xff\xff\xff\x7f", b"r\x00\x00\x00\x10", b"j\xff\xff\xff\x7f", b"h\x01", b"0"),
        *(b"T\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7 + b"\x7f", b"\x8b\xff\xff\xff\x7f", b"(", b"t", b"R", b"b", b"]"),
        *(b"2", b"}", b"\x95" + b"\xff" * 8, b"I" + b"9" * 5000 + b"\n", b"F1e999\n", b"K\xff", b"N", b"\x81", b"\x93"),
        *(bytes([pickle.STOP[0]]), b"l", b"d", b"s", b"u", b"e", b"a", b"p99999999999\n", b"g1\n", b"]" * 3000),
    ]
    return data[:at] + rng.choice(ops) + data[at:]


STL = {"train": 4, "test": 2, "unlabelled": 2}


def stl10(rng: random.Random) -> Case:
    """STL-10 of a few images."""
    tree = {
        f"{name}_X.bin": bytes(range(256)) * 108 * count
        for name, count in zip(("train", "test", "unlabeled"), STL.values(), strict=True)
    }
    tree |= {"train_y.bin": bytes([1, 2, 3, 10]), "test_y.bin": bytes([4, 5])}
    tree |= {"class_names.txt": b"\n".join(CLASSES) + b"\n", "fold_indices.txt": b"0 1\n2 3\n"}
    name = rng.choice([*sorted(tree), "train_y.bin", "fold_indices.txt", "class_names.txt"])
    tree[name] = damage(rng, tree[name], TEXT if name.endswith(".txt") else BYTES)

    def lost(outcome):
        found = len(outcome.stored) + len(outcome.listed)
        return "" if found == sum(STL.values()) else f"{found} rows of {sum(STL.values())}"

    return Case("stl10", tree, lost=lost)


def archive(rng: random.Random) -> Case:
    """Class folders in a tar or zip: the archive damaged anywhere, its headers lying, or its members' names strange."""
    names = [f"{split}/{c}/{i}.jpg" for split in ("train", "test") for c in ("cat", "dog") for i in (1, 2)]
    suffix = rng.choice((".tar", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip", ".zip"))
    count, links = len(names), rng.random() < 0.15
    if rng.random() < 0.2:
        names[rng.randrange(count)] = rng.choice(NAMES[1:])[:5000].replace("\0", "") or "x"
    members = {name: jpeg(i) for i, name in enumerate(names)}
    count = len(members)
    buffer = io.BytesIO()
    if suffix == ".zip":
        with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as packed:
            for name, data in members.items():
                info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
                info.compress_type = packed.compression
                packed.writestr(info, data)
    else:
        form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as packed:
            for name, data in members.items():
                info = tarfile.TarInfo(name.encode("utf-8", "replace").decode() if form else name)
                if not _encodable(info.name):
                    info.name = "strange.jpg"
                info.size = len(data)
                packed.addfile(info, io.BytesIO(data))
            if links:
                info = tarfile.TarInfo("train/cat/link.jpg")
                info.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE))
                info.linkname = rng.choice(
                    ("1.jpg", "train/cat/1.jpg", "../dog/1.jpg", "../../../x", "no.jpg", "", ".")
                )
                packed.addfile(info)
    data, count = buffer.getvalue(), count + links * (suffix != ".zip")
    if suffix != ".zip" and rng.random() < 0.3:
        data, lied = _lying_header(rng, data), True
    else:
        lied = False
        way = rng.choice((*BYTES, blank, _central, _central))
        if suffix in (".tar", ".zip") and rng.random() < 0.9:
            data = way(rng, data) if way is not _central or suffix == ".zip" else blank(rng, data)
    data = _packed(data, suffix)
    if suffix not in (".tar", ".zip") and rng.random() < 0.6:
        data = damage(rng, data, BYTES)

    def lost(outcome):
        if lied:
            return ""
        hidden = re.search(r"([\d,]+) hidden files", outcome.out)
        other = outcome.out.count(": not used")
        found = len(outcome.stored) + len(outcome.listed) + (int(hidden[1]) if hidden else 0) + other
        return "" if found >= count else f"{found} images of {count}"

    return Case("mine", {f"a{suffix}": data}, [rng.choice((".", f"a{suffix}"))], lost=lost)


def _encodable(name: str) -> bool:
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _packed(data: bytes, suffix: str) -> bytes:
    gz = functools.partial(gzip.compress, mtime=0)
    ways = {".tar.gz": gz, ".tgz": gz, ".tar.xz": lzma.compress, ".tar.bz2": bz2.compress}
    return ways.get(suffix, bytes)(data)


def _lying_header(rng, data: bytes) -> bytes:
    """A field of a tar header says something else, and the header's sum is right again."""
    starts = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(starts)
    header = bytearray(data[at : at + 512])
    fields = {
        (100, 8): "mode",
        (124, 12): "size",
        (136, 12): "time",
        (156, 1): "kind",
        (157, 100): "link",
        (345, 155): "p",
    }
    start, width = rng.choice([*fields, (124, 12), (156, 1)])
    huge = b"\x80" + b"\0" * 3 + rng.choice((b"\x7f" * 8, b"\0" * 4 + b"\x7f" * 4))
    texts = [
        b"77777777777\0",
        b"-0000000001\0",
        b"\xff" * 12,
        huge,
        b"-0000001000\0",
        b"00000000000\0",
        b"0000000100\0\0",
        b"x" * 12,
        b"../" * 4,
    ]
    value = rng.choice([bytes([c]) for c in b"0123456789ASLKxgXDMVN\0\xff"]) if width == 1 else rng.choice(texts)
    header[start : start + width] = value[:width].ljust(width, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def _central(rng, data: bytes) -> bytes:
    """A field of a zip's directory says something else."""
    found = [m.start() for m in re.finditer(rb"PK\x01\x02|PK\x05\x06|PK\x03\x04", data)]
    if not found:
        return data
    out = bytearray(data)
    at = rng.choice(found) + rng.randrange(4, 46)
    new = rng.choice(
        (b"\0\0", b"\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x01", b"c", b"\x0e\0", rng.randbytes(2))
    )
    out[at : at + len(new)] = new
    return bytes(out[: len(data)])


KINDS: dict[str, Callable[[random.Random], Case]] = {
    "voc": voc,
    "coco": coco,
    "nus": nus,
    "table": table,
    "jsonl": jsonl,
    "folders": folders,
    "cifar10": cifar10,
    "stl10": stl10,
    "archive": archive,
}


def make(kind: str, seed: int) -> Case:
    """The case (kind, seed); one in two is prepared with --skip-bad."""
    rng = random.Random(f"{kind} {seed}")
    case = KINDS[kind](rng)
    if rng.random() < 0.6:
        case.options.append("--skip-bad")
    return case


# --- running ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_benchmarks():
    """NUS-WIDE, CIFAR-10 and STL-10 with as many rows as the cases have."""
    with (
        mock.patch.multiple(nus_wide, CONCEPTS=3, TAGS=12),
        mock.patch.multiple(cifar, BATCH=CIFAR_ROWS, STL=STL, FOLDS=2, FOLD=2),
    ):
        yield


def write(tree: dict[str, bytes], folder: Path) -> None:
    """The files of a tree as far as a disk can hold them."""
    for name, data in tree.items():
        place = _on_disk(name)
        if place is None:
            continue
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(data)


class _Light:
    """Stands in for `store.store_table`: checks and serialises every row but writes no data set, ten times as fast."""

    def __init__(self):
        self.class_names, self.stored, self.listed = (), [], []

    def __call__(self, destination, found, info):
        store._table_fingerprint(found)
        json.dumps(info | {"notes": found.notes, "names": found.class_names})
        stored, problems = [], list(found.problems)
        with checks.quiet_decoders():
            self._check(found, stored, problems)
        if problems and not destination.skip_bad:
            raise store._refuse(problems, destination)
        self.class_names, self.stored = tuple(found.class_names), stored
        self.listed = [(p.file, p.line, p.why) for p in [*found.left_out, *problems]]
        return store.Stored(destination.data_dir, notes=found.notes)

    @staticmethod
    def _check(found, stored, problems):
        for split, rows in found.splits.items():
            for row in rows:
                item = checks.check_row(row, found.has_boxes)
                if isinstance(item, Problem):
                    problems.append(item)
                else:
                    assert len(serialize_example(item)) and len(item["labels"]) == len(found.class_names)
                    stored.append((split, row.id, row.labels))


def _notes_alone(destination, stored):
    """Stands in for the summary of a data set that `_Light` did not write."""
    return [f"  {note}" for note in stored.notes]


def run(case: Case, folder: Path, whole: bool) -> Outcome:
    """Write a case below `folder` (emptied before) and run the command on it, in this process.

    `whole` writes the data set and reads it back; otherwise `_Light` takes the place of the writer.
    """
    shutil.rmtree(folder, ignore_errors=True)
    source, data = folder / "source", folder / "data"
    source.mkdir(parents=True)
    write(case.tree, source)
    argv = ["data", "prepare", case.name, f"--data-dir={data}", "--workers=1"]
    argv += [f"--source={source / name}" for name in case.sources]
    argv += [option.replace("@", str(source)) for option in case.options]
    # As a terminal's: what cannot be encoded fails on stdout, and is escaped on stderr.
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    light, crash = _Light(), ""
    replaced = contextlib.nullcontext()
    if not whole:
        replaced = mock.patch.multiple(prepare_command, store_table=light, _summary=_notes_alone)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), replaced:
        try:
            status = cli.run(argv)
        except BaseException:
            status, crash = -1, traceback.format_exc()
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    outcome = Outcome(status, *texts, light.class_names, light.stored, light.listed, crash=crash)
    outcome.left = sorted(path.name for path in data.iterdir()) if data.is_dir() else []
    if whole and status == 0:
        dataset = datasets.load(case.name, data)
        outcome.class_names = dataset.class_names
        for split in dataset.splits:
            outcome.stored += zip(
                *([split] * dataset.count(split),), dataset.ids(split), dataset.labels(split), strict=True
            )
        path = dataset.path / "skipped.csv"
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                outcome.listed = [(row[0], int(row[1]), row[2]) for row in list(csv.reader(file))[1:]]
    return outcome


def broken_promise(case: Case, outcome: Outcome, whole: bool) -> str:
    """What is wrong with an outcome, "" for nothing."""
    if outcome.crash:
        return outcome.crash
    extra = set(outcome.left) - {f"{case.name}.problems.csv"}
    if outcome.status == 2:
        if outcome.out or len(outcome.err.split("\n")) != 2 or not outcome.err.startswith("jaxmlic: "):
            return f"not one line on stderr: {outcome.out[:500]!r}, {outcome.err[:500]!r}"
        return f"left behind: {extra}" if extra else ""
    if outcome.status or outcome.err or extra != ({case.name} if whole else set()):
        return f"status {outcome.status}, in the folder {outcome.left}, on stderr {outcome.err[:500]!r}"
    try:
        return case.lost(outcome)
    except Exception:
        return f"prepared, but the independent reading fails:\n{traceback.format_exc()}"
