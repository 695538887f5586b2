"""EfficientNet-Lite0 with its ImageNet weights and classifier, on VOC photographs that show one of three classes alone.

    python benchmarks/imagenet_classes.py WEIGHTS [--data voc2007_subset] [--data-dir DIR] [--count 96]

A photograph counts as right if its best ImageNet class (one of its best five) is a kind of its VOC class. Short side
256 pixels, centre crop of 224, as the weights' authors evaluate.
"""

import argparse

import cv2
import jax
import numpy as np

from jaxmlic.data import datasets
from jaxmlic.data.image import decode_image
from jaxmlic.models.trunks import efficientnet_lite, pretrained

# Kinds of each VOC class among ImageNet's 1,000, by index.
KINDS = {
    "cat": [281, 282, 283, 284, 285],
    "train": [466, 547, 565, 705, 820, 829],
    "car": [407, 436, 468, 511, 555, 569, 609, 627, 654, 656, 661, 675, 717, 734, 751, 779, 817, 864, 867],
}
BATCH = 16


def centre(data: bytes) -> np.ndarray:
    """Encoded image -> uint8 [224, 224, 3]."""
    image = decode_image(data)
    height, width = image.shape[:2]
    scale = 256 / min(height, width)
    size = (max(224, round(width * scale)), max(224, round(height * scale)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (image.shape[0] - 224) // 2, (image.shape[1] - 224) // 2
    return image[top : top + 224, left : left + 224]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("--data", default="voc2007_subset")
    parser.add_argument("--data-dir")
    parser.add_argument("--count", type=int, default=96)
    options = parser.parse_args()
    dataset = datasets.load(options.data, options.data_dir)
    variables = pretrained.load(options.weights, "efficientnet_lite0", classifier=True)
    classifier = variables.pop("classifier")
    trunk = efficientnet_lite.Trunk()

    @jax.jit
    def logits(images: jax.Array) -> jax.Array:
        feature_map, _ = trunk.apply(variables, efficientnet_lite.preprocess(images), False)
        return feature_map.mean(axis=(1, 2)) @ classifier["kernel"] + classifier["bias"].reshape(1, -1)

    for name, kinds in KINDS.items():
        column, images = dataset.class_names.index(name), []
        for split in ("test", "train"):
            labels, source = dataset.labels(split), dataset.source(split)
            alone = np.flatnonzero((labels[:, column] == 1) & ((labels == 1).sum(axis=1) == 1))
            images += [centre(source[int(row)]["image"]) for row in alone[: options.count - len(images)]]
        whole = len(images) // BATCH * BATCH
        scores = np.concatenate([logits(np.stack(images[i : i + BATCH])) for i in range(0, whole, BATCH)])
        right = np.isin(np.argsort(-scores, axis=1)[:, :5], kinds)
        top1, top5 = 100 * right[:, 0].mean(), 100 * right.any(axis=1).mean()
        print(f"{name}: {whole} photographs, top-1 {top1:.1f} %, top-5 {top5:.1f} %")


if __name__ == "__main__":
    main()
