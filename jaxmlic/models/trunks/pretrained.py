"""Pretrained weights: a PyTorch state dict on disk -> the variables of a trunk, or a UserError that says what differs."""

import zipfile
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.errors import UserError
from jaxmlic.models import trunks


def load(path: str | Path, trunk: str) -> dict[str, Any]:
    """Variables of a trunk (`{"params": ..., "batch_stats": ...}`, float32) from a state dict with PyTorch's names.

    path: a `.npz`. trunk: a name such as "efficientnet_lite0". The classifier on top of the file's network is dropped.
    UserError if the file cannot be read, or does not hold exactly the trunk's arrays in their shapes.
    """
    module, fields = trunks.get(trunk)
    if not hasattr(module, "torch_names"):
        raise UserError(f"trunk {trunk!r} has no pretrained weights to load")
    names = module.torch_names(**fields)
    state = read_state(path)
    ignored = getattr(module, "TORCH_CLASSIFIER", ())
    state = {k: v for k, v in state.items() if k not in ignored and not k.endswith("num_batches_tracked")}
    missing = sorted(set(names.values()) - set(state))
    unexpected = sorted(set(state) - set(names.values()))
    if missing or unexpected:
        raise UserError(
            f"{path}: not the weights of {trunk}; missing in the file: {_some(missing)}; unexpected in the file: {_some(unexpected)}"
        )
    want = flax.traverse_util.flatten_dict(_shapes(module, fields))
    flat, wrong = {}, []
    for key, name in names.items():
        array = _to_flax(state[name])
        if array.shape != want[key].shape:
            wrong.append(f"{name} {state[name].shape}, wanted {_torch_shape(want[key].shape)}")
        flat[key] = jnp.asarray(array, jnp.float32)
    if wrong:
        raise UserError(f"{path}: not the weights of {trunk}; wrong shapes: {_some(wrong)}")
    return flax.traverse_util.unflatten_dict(flat)


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of a `.npz` state dict, by name."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a directory' if path.is_dir() else 'no such file'}; give a file of weights (.npz)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable .npz of arrays ({error})") from error


def _shapes(module: Any, fields: dict[str, Any]) -> Any:
    image = jnp.zeros((1, module.STRIDE, module.STRIDE, 3))
    return jax.eval_shape(lambda: module.Trunk(**fields).init(jax.random.key(0), image, False))


def _to_flax(array: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO for a convolution; the rest as it is."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def _some(names: list[str], limit: int = 8) -> str:
    if not names:
        return "none"
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
