"""The published forms of the vision transformer, and the names they go by."""

from dataclasses import dataclass
from typing import Any

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Form:
    """What differs between the published vision transformers beside their size.

    Attributes:
      statistics: mean and deviation of the pixels, of 0..1.
      epsilon: of every layer norm.
      gelu: "exact", "tanh" or "quick".
      class_token: whether a token stands for the image.
      layer_scale: whether each branch of a block is multiplied by a learned vector.
      pre_norm: whether the tokens go through a layer norm before the first block; the patches then have no bias.
      pool: whether attention from one learned query pools the tokens.
      projects: whether a linear layer brings the image's vector to the space of a text tower; without it the vector
        of a network with a text tower is there already.
    """

    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    epsilon: float = 1e-6
    gelu: str = "exact"
    class_token: bool = True
    layer_scale: bool = False
    pre_norm: bool = False
    pool: bool = False
    projects: bool = False

    @property
    def has_vector(self) -> bool:
        """Whether the network has one vector of the image."""
        return self.class_token or self.pool


FORMS = {
    "augreg": Form(HALF),  # Google's and timm's
    "torchvision": Form(IMAGENET),
    "dinov2": Form(IMAGENET, layer_scale=True),
    "clip": Form(CLIP, epsilon=1e-5, gelu="quick", pre_norm=True, projects=True),  # OpenAI's
    "clip_gelu": Form(CLIP, epsilon=1e-5, pre_norm=True, projects=True),  # those of LAION
    "siglip": Form(HALF, gelu="tanh", class_token=False, pool=True),
    "siglip_gap": Form(HALF, gelu="tanh", class_token=False),
}
# size: (width, blocks, heads)
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
# name: (size, form, patch, side of the images it was trained on, register tokens)
_PUBLISHED = {
    **{f"vit_{size}_patch16": (size, "augreg", 16, 224, 0) for size in SIZES},
    **{f"vit_{size}_patch16_384": (size, "augreg", 16, 384, 0) for size in SIZES},
    "vit_b_16": ("base", "torchvision", 16, 224, 0),
    "vit_b_32": ("base", "torchvision", 32, 224, 0),
    "vit_l_16": ("large", "torchvision", 16, 224, 0),
    "vit_l_32": ("large", "torchvision", 32, 224, 0),
    **{f"vit_{size}_patch14_dinov2": (size, "dinov2", 14, 518, 0) for size in SIZES},
    **{f"vit_{size}_patch14_reg4_dinov2": (size, "dinov2", 14, 518, 4) for size in SIZES},
    "vit_base_patch32_clip": ("base", "clip", 32, 224, 0),
    "vit_base_patch16_clip": ("base", "clip", 16, 224, 0),
    "vit_large_patch14_clip": ("large", "clip", 14, 224, 0),
    "vit_large_patch14_clip_336": ("large", "clip", 14, 336, 0),
    "vit_base_patch32_clip_gelu": ("base", "clip_gelu", 32, 224, 0),
    "vit_base_patch16_clip_gelu": ("base", "clip_gelu", 16, 224, 0),
    "vit_large_patch14_clip_gelu": ("large", "clip_gelu", 14, 224, 0),
    **{
        f"vit_{size}_patch16_{form}_{side}": (size, form, 16, side, 0)
        for form in ("siglip", "siglip_gap")
        for size, sides in (("base", (224, 256, 384, 512)), ("large", (256, 384)))
        for side in sides
    },
}


def fields_of(size: str, form: str, patch: int, side: int, registers: int) -> dict[str, Any]:
    """The fields of `Trunk`."""
    width, depth, heads = SIZES[size]
    fields = {"width": width, "depth": depth, "heads": heads, "patch": patch, "grid": side // patch, "form": form}
    return fields | {"registers": registers}


# Of CLIP: numbers of the space that images and texts share, by the size of the image tower.
_SPACES = {"base": 512, "large": 768}

# Names of this trunk in a config, with the fields each stands for. NAME_pooled has the image's vector for its map,
# NAME_projected this vector in the space of CLIP's texts.
NAMES = {name: fields_of(*row) for name, row in _PUBLISHED.items()}
NAMES |= {f"{name}_pooled": row | {"pooled": True} for name, row in NAMES.items() if FORMS[row["form"]].has_vector}
NAMES |= {
    f"{name}_projected": fields_of(*row) | {"projection": _SPACES[row[0]]}
    for name, row in _PUBLISHED.items()
    if FORMS[row[1]].projects
}
