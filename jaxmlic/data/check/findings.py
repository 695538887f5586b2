"""What is wrong with a data set, or worth knowing about it, as a list of findings.

A finding is {level, kind, text, count, listed}. Its level is "error" when a result on this data set would be wrong or
could not be had, otherwise "note"; `listed` holds the first LISTED of its `count` cases.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from jaxmlic.data.check.duplicates import SAME_THUMBNAIL, correlations, near_pairs
from jaxmlic.data.check.images import ODD, ImageFacts
from jaxmlic.labels import stratify

UNTRAINED_SHARE = 0.1  # of the test positives: Corel-5K, a sound benchmark, has words that occur in its test part only
LISTED = 1000


def find_all(
    parts: Mapping[str, list[ImageFacts]],
    values: Mapping[str, np.ndarray],
    roles: Mapping[str, str],
    names: Sequence[str],
    near: int,
) -> list[dict]:
    """All findings, errors first.

    Args:
      parts: {split: facts of its images}.
      values: {split: labels int8 [N, C]}, in the same order.
      roles: {split: train, val, test or unlabelled}.
      names: of the C classes.
      near: bits in which the hashes of near-duplicates differ at most.
    """
    images, rows = [image for split in parts for image in parts[split]], np.concatenate(list(values.values()))
    found = _label_findings(parts, values, roles) + _box_findings(images)
    found += _class_findings(names, values, roles) + _name_findings(names)
    found += _image_findings(images) + _id_findings(images)
    found += _exact_findings(images, rows, roles, names) + _near_findings(images, roles, near)
    return sorted(found, key=lambda finding: finding["level"] != "error")


def some(things: Sequence[str], shown: int = 3) -> str:
    """The first few of a list, and dots where there are more."""
    return ", ".join(things[:shown]) + (", ..." if len(things) > shown else "")


def _finding(level: str, kind: str, text: str, listed: Sequence, count: int | None = None) -> list[dict]:
    """A list of one finding, or of none when there is nothing to list."""
    count = len(listed) if count is None else count
    return [{"level": level, "kind": kind, "text": text, "count": count, "listed": list(listed[:LISTED])}] * bool(count)


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _label_findings(
    parts: Mapping[str, list[ImageFacts]], values: Mapping[str, np.ndarray], roles: Mapping
) -> list[dict]:
    found = []
    bare = [split for split in values if roles[split] != "unlabelled" and not np.any(values[split] == 1)]
    found += _finding("error", "no_labels", f"no label at all in {some(bare)}", bare)
    labelled = [split for split in values if roles[split] != "unlabelled" and split not in bare]
    empty = [
        image.name
        for split in labelled
        for image, row in zip(parts[split], values[split], strict=True)
        if not np.any(row == 1)
    ]
    found += _finding("note", "empty_rows", f"{len(empty):,} without a label ({some(empty)})", empty)
    unknown = {split: int(np.sum(values[split] == -1)) for split in labelled}
    total, share = sum(unknown.values()), {split: n / values[split].size for split, n in unknown.items() if n}
    where = ", ".join(f"{100 * part:.2g} % of {split}" for split, part in share.items())
    return found + _finding("note", "unknown", f"{total:,} label values unknown ({where})", list(share), total)


def _box_findings(images: list[ImageFacts]) -> list[dict]:
    found = []
    for kind, noun, field in (
        ("difficult_boxes", "difficult", "num_difficult"),
        ("stray_boxes", "of a class that the image's labels lack", "num_stray_boxes"),
    ):
        affected = [image for image in images if getattr(image, field)]
        count = sum(getattr(image, field) for image in affected)
        where = [image.name for image in affected]
        found += _finding("note", kind, f"{_plural(count, 'box', 'boxes')} {noun} ({some(where)})", where, count)
    return found


def _class_findings(names: Sequence[str], values: Mapping[str, np.ndarray], roles: Mapping[str, str]) -> list[dict]:
    counts = {}
    for role in ("train", "test"):
        of_role = [stratify.counts(values[split]) for split in values if roles[split] == role]
        counts[role] = np.sum(of_role, axis=0) if of_role else None
    found = []
    for role, (present, _, _) in ((role, c) for role, c in counts.items() if c is not None):
        if present.any():  # otherwise the split has no labels, which is a finding already
            without = [names[c] for c in np.flatnonzero(present == 0)]
            what = f"{_plural(len(without), 'class', 'classes')} without a positive in {role} ({some(without)})"
            found += _finding("note", f"no_positive_in_{role}", what, without)
    if counts["train"] is None or counts["test"] is None or not counts["train"][0].any():
        return found
    (trained, absent, _), (tested, _, _) = counts["train"], counts["test"]
    never = (trained == 0) & (tested > 0)
    unknown = [names[c] for c in np.flatnonzero(never & (absent == 0))]
    text = f"{_plural(len(unknown), 'class', 'classes')} of test wholly unknown in train ({some(unknown)})"
    found += _finding("error", "unknown_in_train", text, unknown)
    only = [names[c] for c in np.flatnonzero(never & (absent > 0))]
    share = tested[never].sum() / max(tested.sum(), 1)
    text = f"{_plural(len(only), 'class', 'classes')} with positives in test but none in train ({some(only)})"
    text += f": {100 * share:.2g} % of test's positives"
    return found + _finding("error" if share > UNTRAINED_SHARE else "note", "only_in_test", text, only)


def _name_findings(names: Sequence[str]) -> list[dict]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    alike = defaultdict(dict)  # dicts keep the order and drop what is twice
    for name in names:
        alike["".join(letter for letter in name.casefold() if letter not in " _-")][name] = None
    similar = [" / ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    similar += [repr(name) for name in names if not name.strip() or name != name.strip()]
    return _finding("error", "duplicate_names", f"class names twice ({some(twice)})", twice) + _finding(
        "note", "suspicious_names", f"suspicious class names ({some(similar)})", similar
    )


def _image_findings(images: list[ImageFacts]) -> list[dict]:
    broken = [f"{image.name}: {image.why}" for image in images if image.why]
    text = f"{_plural(len(broken), 'unreadable image', 'unreadable images')} ({some(broken, 2)})"
    found = _finding("error", "unreadable", text, broken)
    for kind in ODD:
        affected = [image.name for image in images if kind in image.odd]
        found += _finding("note", kind, f"{len(affected):,} {kind} ({some(affected)})", affected)
    return found


def _id_findings(images: list[ImageFacts]) -> list[dict]:
    within = [name for name, count in Counter(image.name for image in images).items() if count > 1]
    splits = defaultdict(dict)
    for image in images:
        splits[image.id][image.split] = None
    across = [f"{id} ({', '.join(of_id)})" for id, of_id in splits.items() if len(of_id) > 1]
    return _finding(
        "error",
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


EXACT = {
    "overlap": ("error", "both in test and in another split"),
    "contradiction": ("error", "labelled differently in test and in another split"),
    "conflicting_labels": ("note", "labelled differently"),
    "duplicates": ("note", "more than once in a split"),
    "shared": ("note", "in several splits that are not test"),
}


def _exact_findings(images: list[ImageFacts], rows: np.ndarray, roles: Mapping, names: Sequence[str]) -> list[dict]:
    """Groups of images with the same pixels, or, if they are unreadable, the same bytes; labels int8 [N, C]."""
    groups = defaultdict(list)
    for index, image in enumerate(images):
        groups[image.pixels or image.file].append(index)
    listed = defaultdict(list)
    for group in (group for group in groups.values() if len(group) > 1):
        splits = Counter(images[index].split for index in group)
        same = len({images[index].file for index in group}) == 1
        entry = {"images": [images[index].name for index in group], "same_file": same}
        if _leaks(splits, roles):
            listed["overlap"].append(entry)
        elif len(splits) > 1:
            listed["shared"].append(entry)
        if max(splits.values()) > 1:
            listed["duplicates"].append(entry)
        # The labels of unlabelled images mean nothing.
        labelled = [index for index in group if roles[images[index].split] != "unlabelled"]
        tested = np.array([roles[images[index].split] == "test" for index in labelled], bool)
        kind, classes = _label_conflict(rows[labelled], tested)
        if kind is not None:
            listed[kind].append(entry | {"classes": [names[c] for c in classes]})
    found = []
    for kind, (level, what) in EXACT.items():
        named = some([" = ".join(entry["images"][:4]) for entry in listed[kind]], 2)
        text = f"{_plural(len(listed[kind]), 'identical image', 'identical images')} {what} ({named})"
        found += _finding(level, kind, text, listed[kind])
    return found


def _label_conflict(rows: np.ndarray, tested: np.ndarray) -> tuple[str | None, np.ndarray]:
    """The kind of finding that the labels int8 [K, C] of identical images are, if any, and the classes it is about.

    `tested` is bool [K], which of the images belong to test.
    """
    present, absent = rows == 1, rows == 0
    conflict = present.any(0) & absent.any(0)
    crossing = (present[tested].any(0) & absent[~tested].any(0)) | (absent[tested].any(0) & present[~tested].any(0))
    if not conflict.any():
        return None, np.flatnonzero(conflict)
    return "contradiction" if crossing.any() else "conflicting_labels", np.flatnonzero(conflict)


def _near_findings(images: list[ImageFacts], roles: dict, limit: int) -> list[dict]:
    """Pairs of similar images; of identical images in a split one stands for all."""
    seen = {(image.split, image.pixels): image for image in images if image.pixels and "uniform" not in image.odd}
    images = list(seen.values())
    hashes = np.array([image.hash for image in images], np.uint64)
    thumbnails = np.array([image.thumbnail for image in images]).reshape(-1, 256)
    counts, nearest = Counter(), defaultdict(list)
    for first, second, distances in near_pairs(hashes, limit):
        alike = correlations(thumbnails[first], thumbnails[second]) >= SAME_THUMBNAIL
        for a, b, distance in zip(first[alike], second[alike], distances[alike].tolist(), strict=True):
            if images[a].pixels == images[b].pixels:
                continue
            kind = "near_overlap" if _leaks((images[a].split, images[b].split), roles) else "near_duplicates"
            counts[kind] += 1
            nearest[kind].append({"images": [images[a].name, images[b].name], "distance": distance})
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
