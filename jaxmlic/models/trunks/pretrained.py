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
from jaxmlic.models.weights.weight_files import read_state

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
    given = read_state(path)
    state = _converted(module, fields, given)
    names = _names(module, fields, state, classifier)
    missing, unexpected = _compared(module, names, state)
    if why := module.differences(state, **fields) if hasattr(module, "differences") else []:
        raise UserError(f"{path}: not the weights of {trunk}: {'; '.join(why)}{_recognised(given)}")
    if missing or unexpected:
        raise UserError(
            f"{path}: not the weights of {trunk}; missing in the file ({len(missing)}): {_some(missing)};"
            f" unexpected in the file ({len(unexpected)}): {_some(unexpected)}{_recognised(given)}"
        )
    if classifier:
        classes = state[names["classifier", "bias"]].size  # any number; the kernel must agree
        wanted = wanted | {("classifier", "kernel"): (channels, classes), ("classifier", "bias"): (classes,)}
    flat, wrong = {}, []
    for key, name in names.items():
        shape = _to_torch(key, wanted[key])
        array = _in_torch_shape(state[name], shape)
        if array.shape != shape:
            wrong.append(f"{name} is {array.shape}, wanted {shape}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            wrong.append(f"{name} is {array.dtype}, wanted a float")
        else:
            flat[key] = jnp.asarray(_to_flax(key, array), jnp.float32)
    if wrong:
        raise UserError(f"{path}: not the weights of {trunk}; {_some(wrong)}{_recognised(given)}")
    return flax.traverse_util.unflatten_dict(flat)


def find(folder: str | Path, trunk: str) -> Path | None:
    """The weight file of a trunk in a folder of them, by its name: "vgg16.safetensors", "vgg16-397923af.pth".

    Owners' names count: "-" is "_", and timm's "tf_" is left out. Trunks of one network have one file ("vgg16_fc" takes
    vgg16's, NAME_pooled and NAME_projected that of NAME). None for a trunk that has no pretrained weights to load.

    Raises UserError for a folder that does not exist, and unless one file in it is this trunk's.
    """
    if not trunks.has_pretrained(trunk):
        return None
    folder = storage.to_path(folder)
    if not folder.is_dir():
        raise UserError(f"folder of weights {folder} does not exist")
    bases = {_network(name) for name in trunks.get(trunk)[0].NAMES}

    def base_of(path: Path) -> str:
        stem = path.stem.lower().replace("-", "_").removeprefix("tf_")
        return max((n for n in bases if stem == n or stem.startswith((f"{n}_", f"{n}."))), key=len, default="")

    wanted = _network(trunk)
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and base_of(path) == wanted)
    if len(found) != 1:
        which = f"{len(found)} files ({', '.join(path.name for path in found)})" if found else "no file"
        raise UserError(f"{folder}: {which} with the weights of {trunk}; wanted one, such as {wanted}.safetensors")
    return found[0]


def _network(trunk: str) -> str:
    """The name of the network that a trunk reads, which may be one of several trunks of it."""
    return trunk.removesuffix("_fc").removesuffix("_pooled").removesuffix("_projected")


def _converted(module: ModuleType, fields: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """A file's arrays, brought to the names that the trunk's module maps where it has a way to do so."""
    return module.convert_state(state, **fields) if hasattr(module, "convert_state") else state


def _compared(module: ModuleType, names: dict[Key, str], state: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(names missing in the file, names in it that are not the trunk's)."""
    wanted = set(names.values())
    found = {name for name in state if name in wanted or not _left_out(name, module)}
    return sorted(wanted - found), sorted(found - wanted)


def _recognised(given: dict[str, Any]) -> str:
    """The end of an error line: the trunk that a file's arrays do fit, where there is one."""
    for name in trunks.names():
        if not trunks.has_pretrained(name):
            continue
        module, fields = trunks.get(name)
        state = _converted(module, fields, given)
        names = _names(module, fields, state, False)
        if any(_compared(module, names, state)) or (
            hasattr(module, "differences") and module.differences(state, **fields)
        ):
            continue
        shapes = _shapes(module, tuple(sorted(fields.items())))[0]
        if all(
            _in_torch_shape(state[names[key]], _to_torch(key, shape)).shape == _to_torch(key, shape)
            for key, shape in shapes.items()
        ):
            return f"; they fit {name}"
    return ""


def _names(module: ModuleType, fields: dict[str, Any], state: dict[str, Any], classifier: bool) -> dict[Key, str]:
    """Variable -> its name in the file, by that convention of the module's which more of the file's names keep."""
    known = ("torch_names", "timm_names")
    conventions = [getattr(module, name)(**fields) for name in known if hasattr(module, name)]
    names = dict(max(conventions, key=lambda names: len(state.keys() & set(names.values()))))
    if classifier:
        prefix = next((p for p in module.TORCH_CLASSIFIER if f"{p}.weight" in state), module.TORCH_CLASSIFIER[0])
        names |= {("classifier", "kernel"): f"{prefix}.weight", ("classifier", "bias"): f"{prefix}.bias"}
    return names


def _left_out(name: str, module: ModuleType) -> bool:
    prefixes = (*module.TORCH_CLASSIFIER, *getattr(module, "TORCH_LEFT_OUT", ()))
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes) or name.endswith(".num_batches_tracked")


def channels(trunk: str) -> tuple[int, dict[str, int]]:
    """Of a trunk's feature map, and of its stages by name."""
    module, fields = trunks.get(trunk)
    return _shapes(module, tuple(sorted(fields.items())))[1:]


@functools.lru_cache(maxsize=16)
def _shapes(
    module: ModuleType, fields: tuple[tuple[str, Any], ...]
) -> tuple[dict[Key, tuple[int, ...]], int, dict[str, int]]:
    """The shape of every variable, and the channels of the feature map and of the stages."""
    trunk = module.Trunk(**dict(fields))
    side = getattr(trunk, "patch", module.STRIDE)
    image = jnp.zeros((1, side, side, 3))
    (feature_map, stages), variables = jax.eval_shape(lambda: trunk.init_with_output(jax.random.key(0), image, False))
    flat = flax.traverse_util.flatten_dict(variables)
    by_stage = {name: x.shape[-1] for name, x in stages.items()}
    return {key: leaf.shape for key, leaf in flat.items()}, feature_map.shape[-1], by_stage


def _to_flax(key: Key, array: np.ndarray) -> np.ndarray:
    """The kernel of a convolution OIHW -> HWIO, of a linear layer [out, in] -> [in, out]; the rest as it is."""
    if key[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_torch(key: Key, shape: tuple[int, ...]) -> tuple[int, ...]:
    if key[-1] != "kernel":
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _in_torch_shape(array: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """Axes of one value may be there or not, and a linear layer over a whole map stand for the convolution that it is.

    VGG's two hidden layers are linear in torchvision and convolutions in timm; scales of ConvNeXt are [D, 1, 1].
    """
    flat = (wanted[0], np.prod(wanted[1:], dtype=int)) if wanted else ()
    same = [n for n in array.shape if n != 1] == [n for n in wanted if n != 1]
    return array.reshape(wanted) if array.shape == flat or same else array


def _some(names: list[str], limit: int = 8) -> str:
    if not names:
        return "none"
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
