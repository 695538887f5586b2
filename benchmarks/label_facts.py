"""VOC 2007 and COCO 2014 in their owners' formats, made from complete label matrices, read back and compared.

Run:  python benchmarks/label_facts.py --voc=DIR --coco=FILE.npz --graphs=DIR

Needs: DIR/trainval.csv and DIR/test.csv (name and twenty columns of 1, -1 absent, 0 difficult only); FILE.npz with
category_names, {train,val}_ids and {train,val}_labels_packed; and ML-GCN's published counts as
{voc2007,coco2014}_adjacency.json. The images are empty files, since only labels are read. Ends with an AssertionError
where anything differs.
"""

import argparse
import csv
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxmlic.data.prepare import coco, voc
from jaxmlic.data.prepare.sources.files import Files

# Images of COCO 2014 without an object; the label matrices hold only the others.
EMPTY = {"train": 702, "val": 367}
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult>"
    "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object>"
)


def voc_labels(path: Path) -> tuple[list[str], np.ndarray]:
    """Ids and labels int8 [N, 20] in {1, 0, -1} of a file with 1 present, -1 absent and 0 difficult only."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    order = [header.index(name) for name in voc.CLASS_NAMES]
    values = np.array([[float(row[place]) for place in order] for row in rows]).astype(int)
    return [row[0].removesuffix(".jpg") for row in rows], np.select([values == 1, values == -1], [1, 0], -1).astype(
        np.int8
    )


def write_voc(folder: Path, lists: dict[str, tuple[list[str], np.ndarray]]) -> None:
    """A VOCdevkit. Every third present label has a difficult object besides."""
    root = folder / "VOCdevkit" / "VOC2007"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for split, (ids, labels) in lists.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{image}\r\n" for image in ids))
        for row, image in enumerate(ids):
            objects = ""
            for c, name in enumerate(voc.CLASS_NAMES):
                value = int(labels[row, c])
                objects += OBJECT.format(name, 0) if value == 1 else ""
                objects += OBJECT.format(name, 1) if value == -1 or (value == 1 and (row + c) % 3 == 0) else ""
            text = f"<annotation><folder>VOC2007</folder>{objects}</annotation>"
            (root / "Annotations" / f"{image}.xml").write_text(text)
            (root / "JPEGImages" / f"{image}.jpg").touch()


def write_coco(folder: Path, arrays) -> dict[str, np.ndarray]:
    """Annotations with one to three objects a label and polygons of a usual length; returns the label matrices."""
    names = [str(name) for name in arrays["category_names"]]
    ids = [1 + c + c // 9 for c in range(len(names))]  # with holes, as the real ones
    polygon = [[round(float(x), 2) for x in np.random.default_rng(0).random(90) * 600]]
    (folder / "annotations").mkdir(parents=True)
    matrices = {}
    for split in coco.SPLITS:
        labels = matrices[split] = np.unpackbits(arrays[f"{split}_labels_packed"], axis=1)[:, : len(names)]
        images, annotations = [], []
        for image, row in zip(arrays[f"{split}_ids"].tolist(), labels, strict=True):
            images.append({"id": image, "file_name": f"COCO_{split}2014_{image:012}.jpg"})
            for c in np.flatnonzero(row).tolist():
                thing = {"image_id": image, "category_id": ids[c], "bbox": [1, 1, 3.5, 4], "segmentation": polygon}
                annotations += [thing | {"iscrowd": int((image + c) % 97 == 0)}] * (1 + (image + c) % 3)
        unused = range(9_000_000, 9_000_000 + EMPTY[split])
        images += [{"id": image, "file_name": f"COCO_{split}2014_{image:012}.jpg"} for image in unused]
        (folder / f"{split}2014").mkdir()
        for image in images:
            (folder / f"{split}2014" / image["file_name"]).touch()
        categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{split}2014.json"
        path.write_text(json.dumps(content))
        print(f"  {path.name}: {path.stat().st_size / 1e6:.0f} MB, {len(annotations):,} objects")
    return matrices


def check_graph(path: Path, labels: np.ndarray, class_names: list[str]) -> None:
    """Co-occurrence counts equal the published ones."""
    published = json.loads(path.read_text())
    order = [published["names"].index(name) for name in class_names]
    present = (labels == 1).astype(np.int64)
    counts = present.T @ present
    np.testing.assert_array_equal(np.array(published["num_positive"])[order], np.diag(counts))
    np.fill_diagonal(counts, 0)
    np.testing.assert_array_equal(np.array(published["counts"])[np.ix_(order, order)], counts)
    print(f"  {counts.size:,} co-occurrence counts equal {path.name}")


def matrix(rows: list) -> np.ndarray:
    """int8 [N, C] of the rows of a table."""
    return np.stack([row.labels for row in rows])


def main() -> None:
    """Makes, reads and compares."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("voc", "coco", "graphs"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    args = parser.parse_args()
    lists = {name: voc_labels(args.voc / f"{name}.csv") for name in ("trainval", "test")}
    with tempfile.TemporaryDirectory() as name:
        write_voc(Path(name), lists)
        start = time.perf_counter()
        with Files([name]) as files:
            found = voc.read(files, "2007")
        seconds = time.perf_counter() - start
    assert not found.problems
    for split, (ids, labels) in zip(("train", "test"), lists.values(), strict=True):
        read = matrix(found.splits[split])
        assert [row.id for row in found.splits[split]] == ids
        np.testing.assert_array_equal(read, labels)
        print(f"voc2007 {split}: {len(read):,} images, {(read == 1).sum():,} present, {(read == -1).sum():,} unknown")
    check_graph(args.graphs / "voc2007_adjacency.json", matrix(found.splits["train"]), found.class_names)
    print(f"  read in {seconds:.1f} s")

    with tempfile.TemporaryDirectory() as name:
        wanted = write_coco(Path(name), np.load(args.coco, allow_pickle=False))
        start = time.perf_counter()
        with Files([name]) as files:
            found = coco.read(files, "2014")
        seconds = time.perf_counter() - start
    assert not found.problems
    for split, labels in wanted.items():
        read = matrix(found.splits[split])
        labelled = read[read.any(axis=1)]
        np.testing.assert_array_equal(labelled, labels)
        print(f"coco2014 {split}: {len(read):,} images, {len(labelled):,} with labels")
    labelled = matrix(found.splits["train"])
    check_graph(args.graphs / "coco2014_adjacency.json", labelled, found.class_names)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  read in {seconds:.1f} s; peak memory of this script {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
