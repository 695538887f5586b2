"""Pretrained weights: a PyTorch state dict on disk -> a trunk's variables, or a UserError that says what differs."""

import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic import storage
from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.models.trunks.weight_files import read_state

Key = tuple[str, ...]
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt")  # of weight files


def load(path: str | Path, trunk: str, *, classifier: bool = False) -> dict[str, Any]:
    """Variables of a trunk, float32: `{"params": ..., "batch_stats": ...}`, as `Trunk.init` has them.

    Args:
      path: a state dict with torchvision's or timm's names, or a training checkpoint with one in it (see `read_state`
        for the kinds of file). Floats of any width are taken. What the trunk does not have is left out, knowingly: the
        classifier on top of the network and the counters of its batch norms.
      trunk: a name such as "efficientnet_lite0".
      classifier: also return the file's classifier, as `"classifier": {"kernel": [D, classes], "bias": [classes]}`: the
        pooled feature map times the kernel plus the bias are the logits of the classes it was trained for.

    Raises:
      UserError: the file cannot be read, or does not hold exactly the trunk's arrays in their shapes.
    """
    module, fields = trunks.get(trunk)
    if not trunks.has_pretrained(trunk):
        raise UserError(f"trunk {trunk!r} has no pretrained weights to load; leave the path of weights empty")
    wanted, channels, _ = _shapes(module, tuple(sorted(fields.items())))
    state = read_state(path)
    names = _names(module, fields, state, classifier)
    found = {name for name in state if name in names.values() or not _left_out(name, module)}
    missing, unexpected = sorted(set(names.values()) - found), sorted(found - set(names.values()))
    if missing or unexpected:
        raise UserError(
            f"{path}: not the weights of {trunk}; missing in the file ({len(missing)}): {_some(missing)};"
            f" unexpected in the file ({len(unexpected)}): {_some(unexpected)}"
        )
    if classifier:
        classes = state[names["classifier", "bias"]].size  # any number; the kernel must agree
        wanted = wanted | {("classifier", "kernel"): (channels, classes), ("classifier", "bias"): (classes,)}
    flat, wrong = {}, []
    for key, name in names.items():
        array = _in_torch_shape(state[name], _to_torch(wanted[key]))
        if array.shape != _to_torch(wanted[key]):
            wrong.append(f"{name} is {array.shape}, wanted {_to_torch(wanted[key])}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            wrong.append(f"{name} is {array.dtype}, wanted a float")
        else:
            flat[key] = jnp.asarray(_to_flax(array), jnp.float32)
    if wrong:
        raise UserError(f"{path}: not the weights of {trunk}; {_some(wrong)}")
    return flax.traverse_util.unflatten_dict(flat)


def find(folder: str | Path, trunk: str) -> Path | None:
    """The weight file of a trunk in a folder of them, by its name: "vgg16.safetensors", "vgg16-397923af.pth".

    Owners' names count: "-" is "_", and timm's "tf_" is left out. With hidden layers or not, VGG's file is one
    ("vgg16_fc" takes vgg16's). None for a trunk that has no pretrained weights to load.

    Raises UserError for a folder that does not exist, and unless one file in it is this trunk's.
    """
    if not trunks.has_pretrained(trunk):
        return None
    folder = storage.to_path(folder)
    if not folder.is_dir():
        raise UserError(f"folder of weights {folder} does not exist")
    bases = {name.removesuffix("_fc") for name in trunks.get(trunk)[0].NAMES}

    def base_of(path: Path) -> str:
        stem = path.stem.lower().replace("-", "_").removeprefix("tf_")
        return max((name for name in bases if stem == name or stem.startswith(f"{name}_")), key=len, default="")

    wanted = trunk.removesuffix("_fc")
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and base_of(path) == wanted)
    if len(found) != 1:
        which = f"{len(found)} files ({', '.join(path.name for path in found)})" if found else "no file"
        raise UserError(f"{folder}: {which} with the weights of {trunk}; wanted one, such as {wanted}.safetensors")
    return found[0]


def _names(module: ModuleType, fields: dict[str, Any], state: dict[str, Any], classifier: bool) -> dict[Key, str]:
    """Variable -> its name in the file, by torchvision's or timm's convention: whichever more of its names keep."""
    conventions = [getattr(module, f)(**fields) for f in ("torch_names", "timm_names") if hasattr(module, f)]
    names = dict(max(conventions, key=lambda names: len(state.keys() & set(names.values()))))
    if classifier:
        prefix = next((p for p in module.TORCH_CLASSIFIER if f"{p}.weight" in state), module.TORCH_CLASSIFIER[0])
        names |= {("classifier", "kernel"): f"{prefix}.weight", ("classifier", "bias"): f"{prefix}.bias"}
    return names


def _left_out(name: str, module: ModuleType) -> bool:
    prefixes = (*module.TORCH_CLASSIFIER, *getattr(module, "TORCH_LEFT_OUT", ()))
    return name.rpartition(".")[0] in prefixes or name.endswith(".num_batches_tracked")


def channels(trunk: str) -> tuple[int, dict[str, int]]:
    """Of a trunk's feature map, and of its stages by name."""
    module, fields = trunks.get(trunk)
    return _shapes(module, tuple(sorted(fields.items())))[1:]


@functools.lru_cache(maxsize=16)
def _shapes(
    module: ModuleType, fields: tuple[tuple[str, Any], ...]
) -> tuple[dict[Key, tuple[int, ...]], int, dict[str, int]]:
    """The shape of every variable, and the channels of the feature map and of the stages."""
    image = jnp.zeros((1, module.STRIDE, module.STRIDE, 3))
    trunk = module.Trunk(**dict(fields))
    (feature_map, stages), variables = jax.eval_shape(lambda: trunk.init_with_output(jax.random.key(0), image, False))
    flat = flax.traverse_util.flatten_dict(variables)
    by_stage = {name: x.shape[-1] for name, x in stages.items()}
    return {key: leaf.shape for key, leaf in flat.items()}, feature_map.shape[-1], by_stage


def _to_flax(array: np.ndarray) -> np.ndarray:
    """The kernel of a convolution OIHW -> HWIO, of a linear layer [out, in] -> [in, out]; the rest as it is."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_torch(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _in_torch_shape(array: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """A linear layer over a whole map may stand for the convolution that it is, and a 1x1 one for a linear layer.

    VGG's two hidden layers are linear in torchvision and convolutions in timm.
    """
    flat = (wanted[0], np.prod(wanted[1:], dtype=int)) if wanted else ()
    return array.reshape(wanted) if array.shape in (flat, (*wanted, 1, 1)) else array


def _some(names: list[str], limit: int = 8) -> str:
    if not names:
        return "none"
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
