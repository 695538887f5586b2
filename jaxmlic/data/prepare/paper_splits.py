"""Divisions of benchmarks that papers use and their owners do not publish, drawn from fixed seeds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from jaxmlic.data.prepare.tables.table import Table
from jaxmlic.labels.stratify import stratified_split

SEED = 0
VOC_TRAIN, VOC_TOTAL = 6000, 9963
"""CNN-LSTM-RMLC, section 4: 6,000 images of VOC 2007 to train, 3,963 to test; which ones it does not say."""

NUS_RANDOM_TRAIN, NUS_LABELLED = 150_000, 209_347
"""Of NUS-WIDE's images with a concept 150,000 train, the other 59,347 test."""

NUS_RMLC_TEST, NUS_TEST = 40_500, 107_859
"""CNN-LSTM-RMLC tests on so many of the official test images and does not say which."""


@dataclass(frozen=True)
class Divisions:
    """`named_splits` {name: {part: ids}} and `notes`, one phrase each."""

    named_splits: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def voc2007(table: Table) -> Divisions:
    """`rmlc/train` and `rmlc/test`: all images of VOC 2007 divided 6,000 to 3,963, stratified."""
    rows = [row for split in table.splits.values() for row in split]
    if len(rows) < 2:
        return Divisions()
    labels = np.stack([row.labels for row in rows])
    parts = stratified_split(labels, 1 - VOC_TRAIN / VOC_TOTAL, seed=SEED)
    note = (
        f"rmlc/train and rmlc/test: {len(parts[0]):,} and {len(parts[1]):,} images, stratified, seed {SEED} (the paper "
        "has 6,000 and 3,963 and does not say which)"
    )
    train, test = ([rows[i].id for i in part] for part in parts)
    return Divisions({"rmlc": {"train": train, "test": test}}, [note])


def nus_wide(table: Table) -> Divisions:
    """`random150k` (images with a concept, divided at random) and `rmlc` (official train, a sample of test).

    Drawn from `table.listed`, the owner's complete lists, and then without the images that are missing, so an image is
    on the same side on every machine. Without ground truth (tags only) there is just `rmlc`.
    """
    present = {row.id for rows in table.splits.values() for row in rows}
    official, labelled = table.listed["official"], table.listed.get("labelled")
    # RandomState's stream is frozen for all versions of NumPy (NEP 19), that of default_rng is not.
    draw = np.random.RandomState(SEED).permutation
    named = {}
    if labelled is not None:
        everyone = labelled["train"] + labelled["test"]
        train, test = divide_at_random(everyone, NUS_RANDOM_TRAIN / NUS_LABELLED, draw)
        named["random150k"] = {"train": only_present(train, present), "test": only_present(test, present)}
    sample, _ = divide_at_random(official["test"], NUS_RMLC_TEST / NUS_TEST, draw)
    in_split = {split: {row.id for row in rows} for split, rows in table.splits.items()}
    named["rmlc"] = {
        "train": only_present(official["train"], in_split["train"]),
        "test": only_present(sample, in_split["test"]),
    }
    sizes = table.named_splits | named
    parts = [f"{name} {' / '.join(f'{len(part):,}' for part in sizes[name].values())}" for name in sizes]
    note = f"also divided as {', '.join(parts)}; random150k and rmlc's test are drawn from seed {SEED}"
    return Divisions(named, [note])


def divide_at_random(images: list[str], share: float, draw: Callable[[int], np.ndarray]) -> tuple[list[str], list[str]]:
    """Two parts of the given share and the rest, each in the order of the list; `draw(n)` permutes 0..n-1."""
    order = draw(len(images))
    size = round(share * len(images))
    first, second = np.sort(order[:size]), np.sort(order[size:])
    return [images[i] for i in first], [images[i] for i in second]


def only_present(images: Iterable[str], present: set[str]) -> list[str]:
    """The images that are present, each once, in their order."""
    return [image for image in dict.fromkeys(images) if image in present]
