"""Descriptors of images by a recipe, `config.features.sets`: of one or several pretrained trunks, and without any.

recipe       the sets that a config names
trunk_set    what a trunk makes of images of any shape
handmade     colour, texture and gradients
stored       sets on disk: `jaxmlic features`
source       what a head is fed of them, stored or computed
"""

from jaxmlic.inputs.descriptors.source import DescriptorSource
from jaxmlic.inputs.descriptors.stored import compute

__all__ = ["DescriptorSource", "compute"]
