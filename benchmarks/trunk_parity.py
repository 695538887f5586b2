"""Largest differences between our trunks and timm's at full size, random weights: features and gradients.

    python benchmarks/trunk_parity.py [NAME ...] [--cut 2] [--float64]

NAME is a trunk of ours; the model of timm is named in MODELS. Relative to the largest value of each array.
--cut keeps that many blocks of a vision transformer, for a machine with little time. --float64, in place
of float32, shows how much of the differences is rounding; it leaves the gradients of the parameters out.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import jax
import timm
import torch

sys.path.append(str(Path(__file__).parents[1] / "tests" / "models" / "trunks"))

from convnext_swin_test import timm_convnext, timm_swin
from timm_parity import compare, randomize
from vit_test import timm_outputs

from jaxmlic.models import trunks
from jaxmlic.models.trunks.vit.forms import FORMS, IMAGENET

# ours: (timm's, side of the image)
MODELS = {
    "vgg16": ("vgg16", 224),
    "resnet50": ("resnet50", 224),
    "resnet101": ("resnet101", 224),
    "efficientnet_lite0": ("tf_efficientnet_lite0", 224),
    "efficientnet_lite4": ("tf_efficientnet_lite4", 224),
    "vit_base_patch16": ("vit_base_patch16_224", 224),
    "vit_large_patch16": ("vit_large_patch16_224", 224),
    "vit_base_patch14_dinov2": ("vit_base_patch14_dinov2", 224),
    "vit_base_patch14_reg4_dinov2": ("vit_base_patch14_reg4_dinov2", 224),
    "vit_large_patch14_dinov2": ("vit_large_patch14_dinov2", 224),
    "vit_base_patch16_clip": ("vit_base_patch16_clip_quickgelu_224", 224),
    "vit_large_patch14_clip": ("vit_large_patch14_clip_quickgelu_224", 224),
    "vit_base_patch16_siglip_224": ("vit_base_patch16_siglip_224", 224),
    "vit_large_patch16_siglip_256": ("vit_large_patch16_siglip_256", 256),
    "convnext_tiny": ("convnext_tiny", 224),
    "convnext_base": ("convnext_base", 224),
    "swin_tiny_patch4_window7": ("swin_tiny_patch4_window7_224", 224),
    "swin_base_patch4_window7": ("swin_base_patch4_window7_224", 224),
}

LITE = ((127 / 255,) * 3, (128 / 255,) * 3)


def as_maps(found):
    return {name: value.permute(0, 2, 3, 1) for name, value in found.items()}


def timm_vgg(model, x):
    found, block, number = {}, 1, 1
    for layer in model.features:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            found[f"conv{block}_{number}"] = x
            number += 1
        elif isinstance(layer, torch.nn.MaxPool2d):
            block, number = block + 1, 1
    return as_maps(found | {"map": x})


def timm_resnet(model, x):
    x = model.act1(model.bn1(model.conv1(x)))
    found = {"stem": x}
    x = model.maxpool(x)
    for i in range(1, 5):
        x = found[f"layer{i}"] = getattr(model, f"layer{i}")(x)
    return as_maps(found | {"map": x})


def timm_lite(model, x):
    x = model.bn1(model.conv_stem(x))
    found = {"stem": x}
    for i, stage in enumerate(model.blocks, start=1):
        x = found[f"stage{i}"] = stage(x)
    return as_maps(found | {"map": model.bn2(model.conv_head(x))})


# the outputs of a model that is no vision transformer, by the beginning of our name
OUTPUTS = {
    "vgg": timm_vgg,
    "resnet": timm_resnet,
    "efficientnet_lite": timm_lite,
    "convnext": timm_convnext,
    "swin": timm_swin,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--cut", type=int, default=0)
    parser.add_argument("--float64", action="store_true")
    options = parser.parse_args()
    dtype = "float64" if options.float64 else "float32"
    jax.config.update("jax_enable_x64", options.float64)
    for name in options.names:
        theirs, side = MODELS[name]
        module, fields = trunks.get(name)
        more, statistics = {}, LITE if name.startswith("efficientnet_lite") else IMAGENET
        outputs = next((one for begin, one in OUTPUTS.items() if name.startswith(begin)), timm_outputs)
        if "form" in fields:
            statistics, more = FORMS[fields["form"]].statistics, {"dynamic_img_size": True}
            if options.cut:
                module.NAMES[name] = fields | {"depth": options.cut}
                more["depth"] = options.cut
            if fields["form"] == "siglip":
                more["act_layer"] = "gelu_tanh"
        model = randomize(timm.create_model(theirs, num_classes=5, **more))
        with tempfile.TemporaryDirectory() as folder, torch.autograd.set_grad_enabled(True):
            found = compare(model, outputs, name, Path(folder) / "w.pth", (side, side), statistics, 1, dtype)
        print(name, theirs, side, dtype, {key: f"{value:.1e}" for key, value in found.items()}, flush=True)


if __name__ == "__main__":
    main()
