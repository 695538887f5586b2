"""What is known of the benchmarks without having them: labels, images of each split, the files their owners publish."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Facts:
    """A benchmark as its owner and the papers describe it.

    Attributes:
      labels: C.
      images: images of each split.
      with_label: of these, those with at least one label; a split that is not in here has no others.
      source: the files that `jaxmlic data prepare` reads, () where it needs none.
      single_label: every image has exactly one label.
      boxes: labels have bounding boxes.
    """

    labels: int
    images: dict[str, int]
    with_label: dict[str, int] = dataclasses.field(default_factory=dict)
    source: tuple[str, ...] = ()
    single_label: bool = False
    boxes: bool = False


_COCO = ("annotations_trainval{0}.zip", "train{0}.zip", "val{0}.zip")
_NUS_IMAGES = {
    "train": 161_789,
    "test": 107_859,
    "labelled/train": 125_449,
    "labelled/test": 83_898,
    "random150k/train": 150_000,
    "random150k/test": 59_347,
    "rmlc/train": 161_789,
    "rmlc/test": 40_500,
}
FACTS = {
    "scenes": Facts(20, {"train": 10_000, "test": 4_800}, boxes=True),
    "voc2007": Facts(
        20,
        {
            **{"train": 5_011, "test": 4_952, "main/train": 2_501, "main/val": 2_510},
            **{"rmlc/train": 6_000, "rmlc/test": 3_963},
        },
        source=("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"),
        boxes=True,
    ),
    "voc2012": Facts(20, {"train": 5_717, "val": 5_823}, source=("VOCtrainval_11-May-2012.tar",), boxes=True),
    "coco2014": Facts(
        80,
        {"train": 82_783, "val": 40_504},
        {"train": 82_081, "val": 40_137},
        tuple(name.format(2014) for name in _COCO),
        boxes=True,
    ),
    "coco2017": Facts(
        80, {"train": 118_287, "val": 5_000}, source=tuple(name.format(2017) for name in _COCO), boxes=True
    ),
    "nus_wide": Facts(
        81,
        _NUS_IMAGES,
        {"train": 125_449, "test": 83_898},
        ("Groundtruth.zip", "ImageList.zip", "ConceptsList.zip", "the images"),
    ),
    "nus_wide_tags": Facts(1000, _NUS_IMAGES, source=("NUS_WID_Tags.zip", "ImageList.zip", "the images")),
    "cifar10": Facts(10, {"train": 50_000, "test": 10_000}, source=("cifar-10-binary.tar.gz",), single_label=True),
    "cifar10_jpeg": Facts(
        10, {"train": 50_000, "test": 10_000}, source=("class folders train/, test/",), single_label=True
    ),
    "stl10": Facts(
        10,
        {"train": 5_000, "test": 8_000, "unlabelled": 100_000, **{f"folds/train{i}": 1_000 for i in range(10)}},
        source=("stl10_binary.tar.gz",),
        single_label=True,
    ),
    "corel5k": Facts(374, {"train": 4_500, "test": 499}, source=("a folder with train.csv, test.csv and images",)),
    "voc2007_subset": Facts(20, {"train": 942, "test": 973}, source=("a folder with train.csv, test.csv and images",)),
}


def images(name: str, split: str, *, drop_empty: bool = False) -> int | None:
    """Images of a split of a benchmark, or of a part that `jaxmlic data split` makes; None where it is not known.

    drop_empty: only those with a label.
    """
    facts = FACTS.get(name)
    if facts is None:
        return None
    if split in facts.images:
        return facts.with_label.get(split, facts.images[split]) if drop_empty else facts.images[split]
    made = made_split(name, split)
    return made[0] if made else None


def made_split(name: str, split: str) -> tuple[int, str] | None:
    """(images, command) of a part that `jaxmlic data split` makes of a benchmark's images, by the name that the
    command or an experiment gives it; None for other names."""
    facts = FACTS.get(name)
    if facts is None or "train" not in facts.images:
        return None
    total = facts.images["train"]
    command = f"jaxmlic data split {name}"
    if found := re.fullmatch(r"folds(\d+)_seed(\d+)/(train|test)(\d+)", split):
        folds, seed, part, _ = found.groups()
        share = total // int(folds)
        return (total - share if part == "train" else share), f"{command} --folds={folds} --seed={seed}"
    if found := re.fullmatch(r"subset(\d+)_seed(\d+)/labelled", split):
        return total * int(found[1]) // 100, f"{command} --subset={found[1]}% --seed={found[2]}"
    if found := re.fullmatch(r"labelled(\d+)/labelled", split):
        source = "rmlc/train" if "rmlc/train" in facts.images else "train"
        return int(found[1]), f"{command} --subset={found[1]} --from={source} --as=labelled{found[1]}"
    if found := re.fullmatch(r"draws(\d+)_seed(\d+)/draw\d+", split):
        return 4000, f"{command} --draws={found[1]} --size=4000 --seed={found[2]}"
    if split == "all/images" and "test" in facts.images:
        return total + facts.images["test"], f"{command} --parts=images=100% --from=train,test --as=all"
    if found := re.fullmatch(r"batches_seed0/batch\d+", split):
        parts = ",".join(f"batch{i}=4000" for i in range(5))
        return 4000, f"{command} --from=train --as=batches_seed0 --parts={parts}"
    return None
