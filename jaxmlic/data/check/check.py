"""`jaxmlic data check NAME`: what is wrong with, or worth knowing about, a prepared data set before it is trained on.

Every image is decoded once, in threads; of each only digests, a perceptual hash and a thumbnail are kept, so memory
grows by about a kilobyte an image. A finding is "poison" when a result on this data set would be wrong or could not be
had (exit status 2), otherwise a "note" (exit status 0).
"""

import argparse
import dataclasses
import hashlib
import json
import os
import struct
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxmlic import progress
from jaxmlic.cli.parser import add_command
from jaxmlic.data import datasets
from jaxmlic.data.check.duplicates import MAX_NEAR, NEAR, SAME_THUMBNAIL, correlations, near_pairs, perceptual_hash
from jaxmlic.data.image import START_OF_FRAME, ImageError, decode_image, header
from jaxmlic.errors import UserError, writing
from jaxmlic.labels import graph as label_graph
from jaxmlic.labels import stratify
from jaxmlic.reports import check_report
from jaxmlic.reports.check_report import some

EXTREME_ASPECT, TINY_SIDE = 4, 32  # long to short side; pixels
UNTRAINED_SHARE = 0.1  # of the test positives: Corel-5K, a sound benchmark, has words that occur in its test part only
LISTED = 1000  # rows of one finding in check.json
_ODD = ("uniform", "grey", "palette", "transparent", "CMYK", "16-bit", "rotated by EXIF", "extreme aspect", "tiny")


def add_parser(commands) -> None:
    """Adds `check` to the commands (argparse subparsers) of `jaxmlic data`."""
    what = "look for what would poison a result: overlap of train and test, broken images, missing labels"
    parser = add_command(
        commands, "check", run, what, f"{what.capitalize()}. Exit status 2 if something would, else 0."
    )
    parser.add_argument("name", metavar="NAME", help="a prepared data set")
    parser.add_argument("--out", help="folder for check.json and check.png (check/ in the data set's own folder)")
    parser.add_argument(
        "--near", type=int, default=NEAR, help=f"differing bits of near-duplicates, 0..{MAX_NEAR} ({NEAR})"
    )
    parser.add_argument("--workers", type=int, help="threads that decode at once (one per CPU)")


def run(args: argparse.Namespace) -> int:
    """Prints the table and writes check.json and check.png; returns 0, or raises UserError when something is poison."""
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers={args.workers}: at least 1")
    if not 0 <= args.near <= MAX_NEAR:
        raise UserError(f"--near={args.near}: from 0 to {MAX_NEAR} of the 64 bits")
    dataset = datasets.load(args.name, Path(args.data_dir).expanduser() if args.data_dir else None)
    out = Path(args.out).expanduser() if args.out else dataset.path / "check"
    with writing(out):  # a mistake in the folder shows before the work, not after it
        out.mkdir(parents=True, exist_ok=True)
    report = check(dataset, args.near, args.workers or len(os.sched_getaffinity(0)))
    print(check_report.text(report))
    with writing(out):
        (out / "check.json").write_text(_json(report), encoding="utf-8")
        check_report.plot(out / "check.png", report)
    print(f"all of it in {out / 'check.json'}, drawn in {out / 'check.png'}")
    if poison := [finding["text"] for finding in report["findings"] if finding["level"] == "poison"]:
        raise UserError(f"{dataset.name} would poison a result: {'; '.join(poison)} (see {out / 'check.json'})")
    return 0


def check(dataset: datasets.Dataset, near: int = NEAR, workers: int = 1) -> dict:
    """Look at all images and labels.

    Args:
      dataset: a prepared data set.
      near: bits in which the hashes of near-duplicates differ at most, 0..MAX_NEAR.
      workers: threads.

    Returns:
      JSON-able values: `name`, `path`, `near`, `roles` {split: train, val, test or unlabelled}, `splits` {split or
      "all": numbers of its labels and images}, `alphabetical`, `classes` [{name, present {split: count}, unknown
      {split: count}}] in column order, `cooccurrence` (counts [C, C], all splits; the diagonal counts each class) and
      `findings` [{level, kind, text, count, listed: the first 1000}], poison first. Images are named "split/id".
    """
    names, roles = dataset.class_names, _roles(dataset.splits)
    values = {split: dataset.labels(split) for split in dataset.splits}
    looks = _look_at_all(dataset, workers)
    parts = {split: [look for look in looks if look.split == split] for split in dataset.splits}
    rows = np.concatenate(list(values.values()))
    found = _split_findings(parts, values, roles) + _class_findings(names, values, roles) + _name_findings(names)
    found += _image_findings(looks) + _id_findings(looks)
    found += _exact_findings(looks, rows, roles, names) + _near_findings(looks, roles, near)
    counts = {split: stratify.counts(of_split) for split, of_split in values.items()}
    together, num_positive = label_graph.cooccurrence(rows)
    return {
        "name": dataset.name,
        "path": str(dataset.path),
        "near": near,
        "roles": roles,
        "splits": {split: _numbers(values[split], parts[split]) for split in parts} | {"all": _numbers(rows, looks)},
        "alphabetical": list(names) == sorted(names, key=str.casefold),
        "classes": [
            {
                "name": name,
                "present": {split: int(present[c]) for split, (present, _, _) in counts.items()},
                "unknown": {split: int(unknown[c]) for split, (_, _, unknown) in counts.items()},
            }
            for c, name in enumerate(names)
        ],
        "cooccurrence": (together + np.diag(num_positive)).tolist(),
        "findings": sorted(found, key=lambda finding: finding["level"] != "poison"),
    }


def _roles(splits: Sequence[str]) -> dict[str, str]:
    """What each split is for, by its name; without a test split the val splits are what is tested on (COCO)."""
    prefixes = {"val": "val", "dev": "val", "unlabel": "unlabelled"}
    roles = {split: next((r for p, r in prefixes.items() if split.lower().startswith(p)), "train") for split in splits}
    roles |= {split: "test" for split in splits if "test" in split.lower()}
    if "test" not in roles.values():
        roles = {split: "test" if role == "val" else role for split, role in roles.items()}
    return roles


# --- one image


@dataclasses.dataclass(slots=True)
class Look:
    """What is kept of one image; an unreadable one has a reason, and nothing from `pixels` on."""

    split: str
    id: str
    file: bytes  # digest of the encoded bytes
    why: str | None = None
    pixels: bytes = b""  # digest of the decoded pixels and their shape
    hash: int = 0
    thumbnail: np.ndarray | None = None  # uint8 [256]
    height: int = 0
    width: int = 0
    format: str = ""
    odd: tuple[str, ...] = ()
    num_boxes: int = 0
    num_difficult: int = 0
    num_stray_boxes: int = 0  # their class is absent from the image's labels, or none of the data set's

    @property
    def name(self) -> str:
        return f"{self.split}/{self.id}"


def _look_at_all(dataset: datasets.Dataset, workers: int) -> list[Look]:
    """In the order of splits and records."""
    looks = []
    with (
        ThreadPoolExecutor(workers) as pool,
        progress.Progress(f"checking {dataset.name}", sum(dataset.splits.values())) as bar,
    ):
        for split, count in dataset.splits.items():
            source = dataset.source(split, boxes=dataset.has_boxes)
            # In blocks: an interrupt need not wait for all that was asked for.
            for start in range(0, count, 256):
                block = range(start, min(start + 256, count))
                for look in pool.map(lambda index: _look(split, source[index]), block):  # noqa: B023 - used up here
                    looks.append(look)
                    bar.advance()
    return looks


def _look(split: str, record: dict) -> Look:
    data = record["image"]
    look = Look(split, record["id"], hashlib.sha256(data).digest())
    if "boxes" in record:
        classes, difficult = record["boxes"]["label"], record["boxes"]["difficult"]
        known = classes < len(record["labels"])
        look.num_boxes, look.num_difficult = len(classes), int(difficult.sum())
        look.num_stray_boxes = int(np.sum(~known) + np.sum(record["labels"][classes[known]] == 0))
    try:
        image = decode_image(data)
    except ImageError as problem:
        look.why = str(problem)
        return look
    look.height, look.width = image.shape[:2]
    digest = hashlib.blake2b(image, digest_size=32)  # sha256 would take as long as decoding
    digest.update(repr(image.shape).encode())
    look.pixels = digest.digest()
    look.hash, look.thumbnail, uniform = perceptual_hash(image)
    look.format, odd = _encoding(data)
    long, short = max(image.shape[:2]), min(image.shape[:2])
    odd |= {"uniform": uniform, "extreme aspect": long > EXTREME_ASPECT * short, "tiny": short < TINY_SIDE}
    look.odd = tuple(kind for kind in _ODD if odd.get(kind))
    return look


def _encoding(data: bytes) -> tuple[str, dict[str, bool]]:
    """The format and what is unusual about how the pixels are stored, of bytes that could be decoded."""
    odd = {"rotated by EXIF": _orientation(data) != 1}
    if data[:2] == b"\xff\xd8":
        at = 2
        while data[at + 1] not in START_OF_FRAME:
            at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return "JPEG", odd | {"grey": data[at + 9] == 1, "CMYK": data[at + 9] == 4}  # number of components
    if data[:4] == b"\x89PNG":
        depth, colour = data[24:26]
        odd |= {"grey": colour in (0, 4), "palette": colour == 3, "16-bit": depth == 16}
        return "PNG", odd | {"transparent": header(data)[3]}
    if data[:3] == b"GIF":
        return "GIF", odd | {"palette": True}
    if data[:4] == b"RIFF":
        return "WebP", odd | {"transparent": header(data)[3]}
    return "BMP", odd | {"palette": data[14] > 12 and data[28] <= 8}  # header's length, bits a pixel


def _orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 1..8 (1: as stored); 1 when there is none."""
    tiff = data.find(b"Exif\0\0", 0, 1 << 16) + 6
    if tiff < 6 or data[:2] != b"\xff\xd8":
        return 1
    order = "<" if data[tiff : tiff + 2] == b"II" else ">"
    try:
        directory = tiff + struct.unpack_from(order + "I", data, tiff + 4)[0]
        for entry in range(struct.unpack_from(order + "H", data, directory)[0]):
            tag, _, _, value = struct.unpack_from(order + "HHIH", data, directory + 2 + 12 * entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # OpenCV ignores broken EXIF, too
        pass
    return 1


# --- numbers


def _numbers(values: np.ndarray, looks: list[Look]) -> dict:
    """Of a split: its labels int8 [N, C] and its images."""
    sizes = np.count_nonzero(values == 1, axis=1)
    readable = [look for look in looks if look.why is None]
    sides = np.array([(look.height, look.width) for look in readable]).reshape(-1, 2)
    return {
        "images": len(values),
        "cardinality": float(sizes.mean()),
        "density": float(sizes.mean() / values.shape[1]),
        "label_set_sizes": {str(size): int(n) for size, n in enumerate(np.bincount(sizes)) if n},
        "distinct_label_sets": len(np.unique(np.packbits(values == 1, axis=1), axis=0)),
        "empty_rows": int(np.sum(sizes == 0)),
        "present": int(sizes.sum()),
        "unknown": int(np.sum(values == -1)),
        "boxes": sum(look.num_boxes for look in looks),
        "difficult_boxes": sum(look.num_difficult for look in looks),
        "unreadable": len(looks) - len(readable),
        "formats": dict(Counter(look.format for look in readable).most_common()),
        "odd": {kind: n for kind in _ODD if (n := sum(kind in look.odd for look in readable))},
        "height": _spread(sides[:, 0]),
        "width": _spread(sides[:, 1]),
    }


def _spread(sides: np.ndarray) -> dict[str, float]:
    return {key: float(f(sides)) for key, f in (("min", np.min), ("median", np.median), ("max", np.max)) if len(sides)}


# --- findings


def _finding(level: str, kind: str, text: str, listed: Sequence, count: int | None = None) -> list[dict]:
    """A list of one finding, or of none when there is nothing to list."""
    count = len(listed) if count is None else count
    return [{"level": level, "kind": kind, "text": text, "count": count, "listed": list(listed[:LISTED])}] * bool(count)


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _split_findings(parts: Mapping[str, list[Look]], values: Mapping[str, np.ndarray], roles: dict) -> list[dict]:
    found = []
    bare = [split for split in values if roles[split] != "unlabelled" and not np.any(values[split] == 1)]
    found += _finding("poison", "no_labels", f"no label at all in {some(bare)}", bare)
    labelled = [split for split in values if roles[split] != "unlabelled" and split not in bare]
    empty = [
        look.name
        for split in labelled
        for look, row in zip(parts[split], values[split], strict=True)
        if not np.any(row == 1)
    ]
    found += _finding("note", "empty_rows", f"{len(empty):,} without a label ({some(empty)})", empty)
    unknown = {split: int(np.sum(values[split] == -1)) for split in labelled}
    total, share = sum(unknown.values()), {split: n / values[split].size for split, n in unknown.items() if n}
    where = ", ".join(f"{100 * part:.2g} % of {split}" for split, part in share.items())
    found += _finding("note", "unknown", f"{total:,} label values unknown ({where})", list(share), total)
    looks = [look for split in parts for look in parts[split]]
    for level_kind, noun, field in (
        ("difficult_boxes", "difficult", "num_difficult"),
        ("stray_boxes", "of a class that the image's labels lack", "num_stray_boxes"),
    ):
        having = [look for look in looks if getattr(look, field)]
        count = sum(getattr(look, field) for look in having)
        where = [look.name for look in having]
        found += _finding("note", level_kind, f"{_plural(count, 'box', 'boxes')} {noun} ({some(where)})", where, count)
    return found


def _class_findings(names: Sequence[str], values: Mapping[str, np.ndarray], roles: Mapping[str, str]) -> list[dict]:
    counts = {}
    for role in ("train", "test"):
        of_role = [stratify.counts(values[split]) for split in values if roles[split] == role]
        counts[role] = np.sum(of_role, axis=0) if of_role else None
    found = []
    for role, (present, _, _) in ((role, c) for role, c in counts.items() if c is not None):
        if present.any():  # otherwise the split has no labels, which is said already
            without = [names[c] for c in np.flatnonzero(present == 0)]
            what = f"{_plural(len(without), 'class', 'classes')} without a positive in {role} ({some(without)})"
            found += _finding("note", f"no_positive_in_{role}", what, without)
    if counts["train"] is None or counts["test"] is None or not counts["train"][0].any():
        return found
    (trained, absent, _), (tested, _, _) = counts["train"], counts["test"]
    never = (trained == 0) & (tested > 0)
    unknown = [names[c] for c in np.flatnonzero(never & (absent == 0))]
    text = f"{_plural(len(unknown), 'class', 'classes')} of test wholly unknown in train ({some(unknown)})"
    found += _finding("poison", "unknown_in_train", text, unknown)
    only = [names[c] for c in np.flatnonzero(never & (absent > 0))]
    share = tested[never].sum() / max(tested.sum(), 1)
    text = f"{_plural(len(only), 'class', 'classes')} with positives in test but none in train ({some(only)})"
    text += f": {100 * share:.2g} % of test's positives"
    return found + _finding("poison" if share > UNTRAINED_SHARE else "note", "only_in_test", text, only)


def _name_findings(names: Sequence[str]) -> list[dict]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    alike = defaultdict(dict)  # dicts keep the order and drop what is twice
    for name in names:
        alike["".join(letter for letter in name.casefold() if letter not in " _-")][name] = None
    similar = [" / ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    similar += [repr(name) for name in names if not name.strip() or name != name.strip()]
    return _finding("poison", "duplicate_names", f"class names twice ({some(twice)})", twice) + _finding(
        "note", "suspicious_names", f"suspicious class names ({some(similar)})", similar
    )


def _image_findings(looks: list[Look]) -> list[dict]:
    broken = [f"{look.name}: {look.why}" for look in looks if look.why]
    text = f"{_plural(len(broken), 'unreadable image', 'unreadable images')} ({some(broken, 2)})"
    found = _finding("poison", "unreadable", text, broken)
    for kind in _ODD:
        having = [look.name for look in looks if kind in look.odd]
        found += _finding("note", kind, f"{len(having):,} {kind} ({some(having)})", having)
    return found


def _id_findings(looks: list[Look]) -> list[dict]:
    within = [name for name, count in Counter(look.name for look in looks).items() if count > 1]
    splits = defaultdict(dict)
    for look in looks:
        splits[look.id][look.split] = None
    across = [f"{id} ({', '.join(of_id)})" for id, of_id in splits.items() if len(of_id) > 1]
    return _finding(
        "poison",
        "duplicate_ids",
        f"{_plural(len(within), 'id', 'ids')} twice in a split ({some(within)})",
        within,
    ) + _finding(
        "note",
        "ids_across",
        f"{_plural(len(across), 'id', 'ids')} in several splits ({some(across)})",
        across,
    )


def _leaks(splits, roles: Mapping[str, str]) -> bool:
    """Whether images that these splits share make a test result too good: one of them is test, another is not."""
    return len({roles[split] == "test" for split in splits}) == 2


def _exact_findings(looks: list[Look], rows: np.ndarray, roles: dict, names: Sequence[str]) -> list[dict]:
    """Groups of images with the same pixels, or, if they are unreadable, the same bytes; labels int8 [N, C]."""
    groups = defaultdict(list)
    for index, look in enumerate(looks):
        groups[look.pixels or look.file].append(index)
    listed = defaultdict(list)
    for group in (group for group in groups.values() if len(group) > 1):
        splits = Counter(looks[index].split for index in group)
        same = len({looks[index].file for index in group}) == 1
        entry = {"images": [looks[index].name for index in group], "same_file": same}
        if _leaks(splits, roles):
            listed["overlap"].append(entry)
        elif len(splits) > 1:
            listed["shared"].append(entry)
        if max(splits.values()) > 1:
            listed["duplicates"].append(entry)
        # The labels of unlabelled images say nothing.
        labelled = [index for index in group if roles[looks[index].split] != "unlabelled"]
        tested = np.array([roles[looks[index].split] == "test" for index in labelled], bool)
        present, absent = rows[labelled] == 1, rows[labelled] == 0
        clash = present.any(0) & absent.any(0)
        crossing = (present[tested].any(0) & absent[~tested].any(0)) | (absent[tested].any(0) & present[~tested].any(0))
        if clash.any():
            kind = "contradiction" if crossing.any() else "conflicting_labels"
            listed[kind].append(entry | {"classes": [names[c] for c in np.flatnonzero(clash)]})
    texts = {
        "overlap": ("poison", "both in test and in another split"),
        "contradiction": ("poison", "labelled differently in test and in another split"),
        "conflicting_labels": ("note", "labelled differently"),
        "duplicates": ("note", "more than once in a split"),
        "shared": ("note", "in several splits that are not test"),
    }
    found = []
    for kind, (level, what) in texts.items():
        named = some([" = ".join(entry["images"][:4]) for entry in listed[kind]], 2)
        text = f"{_plural(len(listed[kind]), 'identical image', 'identical images')} {what} ({named})"
        found += _finding(level, kind, text, listed[kind])
    return found


def _near_findings(looks: list[Look], roles: dict, limit: int) -> list[dict]:
    """Pairs of similar images; of identical images in a split one stands for all."""
    seen = {(look.split, look.pixels): look for look in looks if look.pixels and "uniform" not in look.odd}
    looks = list(seen.values())
    hashes = np.array([look.hash for look in looks], np.uint64)
    thumbnails = np.array([look.thumbnail for look in looks]).reshape(-1, 256)
    counts, nearest = Counter(), defaultdict(list)
    for first, second, distances in near_pairs(hashes, limit):
        alike = correlations(thumbnails[first], thumbnails[second]) >= SAME_THUMBNAIL
        for a, b, distance in zip(first[alike], second[alike], distances[alike].tolist(), strict=True):
            if looks[a].pixels == looks[b].pixels:
                continue
            kind = "near_overlap" if _leaks((looks[a].split, looks[b].split), roles) else "near_duplicates"
            counts[kind] += 1
            nearest[kind].append({"images": [looks[a].name, looks[b].name], "distance": distance})
            if len(nearest[kind]) >= 2 * LISTED:
                nearest[kind] = _nearest(nearest[kind])
    found = []
    for kind, where in (("near_overlap", "of test and another split"), ("near_duplicates", "elsewhere")):
        listed = _nearest(nearest[kind])
        named = some([" ~ ".join(entry["images"]) for entry in listed], 2)
        text = f"{_plural(counts[kind], 'pair', 'pairs')} of near-duplicates {where} ({named})"
        found += _finding("note", kind, text, listed, counts[kind])
    return found


def _nearest(pairs: list[dict]) -> list[dict]:
    return sorted(pairs, key=lambda pair: (pair["distance"], pair["images"]))[:LISTED]


def _json(report: dict) -> str:
    """Indented, but for the matrix: it would be one number a line."""
    fields = {
        key: json.dumps(v, indent=None if key == "cooccurrence" else 1, ensure_ascii=False) for key, v in report.items()
    }
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {value}" for key, value in fields.items()) + "\n}\n"
