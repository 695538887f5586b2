"""Largest differences between our trunks and timm's at full size, random weights: features and gradients.

    python benchmarks/trunk_parity.py [NAME ...] [--cut 2]

NAME is a trunk of ours; the model of timm is named in MODELS. Relative to the largest value of each array, float32.
--cut keeps that many blocks of a vision transformer, for a machine with little time.
"""

import argparse
import sys
import tempfile
from pathlib import Path

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
    "vit_base_patch16": ("vit_base_patch16_224", 224),
    "vit_base_patch14_dinov2": ("vit_base_patch14_dinov2", 224),
    "vit_base_patch14_reg4_dinov2": ("vit_base_patch14_reg4_dinov2", 224),
    "vit_base_patch16_clip": ("vit_base_patch16_clip_quickgelu_224", 224),
    "vit_large_patch14_clip": ("vit_large_patch14_clip_quickgelu_224", 224),
    "vit_base_patch16_siglip_224": ("vit_base_patch16_siglip_224", 224),
    "convnext_tiny": ("convnext_tiny", 224),
    "convnext_base": ("convnext_base", 224),
    "swin_tiny_patch4_window7": ("swin_tiny_patch4_window7_224", 224),
    "swin_base_patch4_window7": ("swin_base_patch4_window7_224", 224),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--cut", type=int, default=0)
    options = parser.parse_args()
    for name in options.names:
        theirs, side = MODELS[name]
        module, fields = trunks.get(name)
        more, statistics, outputs = {}, IMAGENET, timm_convnext if name.startswith("convnext") else timm_swin
        if "form" in fields:
            statistics, outputs, more = FORMS[fields["form"]].statistics, timm_outputs, {"dynamic_img_size": True}
            if options.cut:
                module.NAMES[name] = fields | {"depth": options.cut}
                more["depth"] = options.cut
            if fields["form"] == "siglip":
                more["act_layer"] = "gelu_tanh"
        model = randomize(timm.create_model(theirs, num_classes=5, **more))
        with tempfile.TemporaryDirectory() as folder, torch.autograd.set_grad_enabled(True):
            found = compare(model, outputs, name, Path(folder) / "w.pth", (side, side), statistics, batch=1)
        print(name, theirs, side, {key: f"{value:.1e}" for key, value in found.items()}, flush=True)


if __name__ == "__main__":
    main()
