"""What a model is fed: photographs, stored features of a frozen trunk, descriptors by a recipe, features from a file.

The one place that reads `config.data.source`. Everybody else asks the `Source` that `open_source` gives.
"""

from ml_collections import ConfigDict

from jaxmlic.errors import check_choice
from jaxmlic.inputs.cache import CachedSource
from jaxmlic.inputs.descriptors import DescriptorSource
from jaxmlic.inputs.feature_file import FileSource
from jaxmlic.inputs.images import ImageSource
from jaxmlic.inputs.source import Inputs, Source, eval_inputs

__all__ = ["DescriptorSource", "Inputs", "Source", "eval_inputs", "open_source"]

SOURCES = {"images": ImageSource, "features": CachedSource, "descriptors": DescriptorSource, "file": FileSource}


def open_source(config: ConfigDict) -> Source:
    """The source that `config.data.source` names, checked against the rest of the config; UserError as its `check`."""
    check_choice("data.source", config.data.source, SOURCES)
    source = SOURCES[config.data.source](config)
    source.check()
    return source
