"""Experiment files: finding, loading, locking, overriding and comparing them."""

import dataclasses
import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxmlic import storage
from jaxmlic.errors import UserError, did_you_mean, unknown

SHARED = ("__init__", "common", "stand_ins")  # files in configs/ that are no experiments
# Fields that say where and how fast a run works, not what it computes: a resumed run may change them.
# The labels of a file of pseudo-labels are compared themselves.
FREE_FIELDS = (
    "data.dir",
    "data.threads",
    "data.pseudo_labels",
    "train.keep_every",
    "train.log_every",
    "train.eval_batch_size",
    "train.cpu_devices",
    "train.trackers",
    "train.remat",
    "train.shard_state",
    "train.prefetch",
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One experiment of a config's `sweep()`; (name, overrides) pairs stand for entries without the other fields.

    Attributes:
      name: of the entry and of its folder.
      overrides: {dotted field: value}; they win over the command line.
      series: what runs of several noise rates or parts have in common; None for the name.
      noise_rate: share of wrong training labels; None where noise is no part of the experiment.
      part: "fold3" or "batch0" where several runs, each on a part of the data, are one experiment.
      argument: more of the config's argument, for rows whose heads have other fields.
      start_from: name of the entry whose run of the same seed this one starts from (a second stage), "" for none.
      from_scratch: weights of the command line are for the other entries.
    """

    name: str
    overrides: Mapping[str, object] = dataclasses.field(default_factory=dict, hash=False)
    series: str | None = None
    noise_rate: float | None = None
    part: str | None = None
    argument: str = ""
    start_from: str = ""
    from_scratch: bool = False


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The locked config of `FILE[:ARG]` with `--config.x.y=value` overrides applied.

    FILE is a path, or the bare name of a shipped experiment ("quickstart"). Raises UserError for a missing or broken
    file, an unknown key and a value of the wrong type.
    """
    path, arg = find(spec)
    _import_shipped()
    spec = f"{path}:{arg}" if arg else str(path)
    argv = ["jaxmlic", f"--config={spec}", *overrides]
    values = flags.FlagValues()
    if not flags.FLAGS.is_parsed():  # config_flags and grain read absl's global flags, parsed by absl programs only
        flags.FLAGS.mark_as_parsed()
    sys.modules.pop("config_config", None)  # config_flags would load the file into the module of the one before
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    try:
        leftover = values(argv)[1:]
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_key(path, arg, overrides) or f"{path}: {error}") from None
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f"{path}: {str(error).strip().splitlines()[-1]}") from None
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from None
    except ImportError as error:
        raise UserError(f"{path}: {error}") from None
    if leftover:
        raise UserError(f"cannot read {leftover[0]!r}; overrides look like --config.optim.lr=0.01")
    return values["config"].value


def find(spec: str) -> tuple[Path, str]:
    """Path and argument of `FILE[:ARG]`; a bare name is looked up among the shipped experiments."""
    name, _, arg = spec.partition(":")
    path = Path(name)
    if path.is_file():
        return path, arg
    shipped = _import_shipped()
    if path.parent == Path("."):
        candidate = shipped / f"{path.stem}.py"
        if candidate.is_file():
            return candidate, arg
    names = sorted(p.stem for p in shipped.glob("*.py") if p.stem not in SHARED)
    raise UserError(f"config file {name} does not exist{did_you_mean(path.stem, names)}; shipped: {', '.join(names)}")


def load_module(spec: str) -> ModuleType:
    """The experiment file as a module, for its `sweep()`."""
    path, _ = find(spec)
    _import_shipped()
    module_spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from None
    return module


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
    """`"dataset=voc2007,smoke"` -> ConfigDict(dataset="voc2007", smoke=True), typed like `defaults`.

    A default that is a tuple holds the possible values, the first of them the default.

    Raises UserError for a name that is not among `defaults`, a value of another type and one that is not possible.
    """
    choices = {name: value for name, value in defaults.items() if isinstance(value, tuple)}
    values = dict(smoke=False, **defaults) | {name: known[0] for name, known in choices.items()}
    for item in filter(None, (arg or "").split(",")):
        name, has_value, text = item.partition("=")
        if name not in values:
            raise unknown("config argument", name, sorted(values))
        kind = type(values[name])
        if not has_value and kind is not bool:
            raise UserError(f"config argument {name!r} needs a value: {name}=...")
        try:
            values[name] = text.lower() in ("", "1", "true") if kind is bool else kind(text)
        except ValueError:
            raise UserError(f"config argument {name}={text!r} is not of type {kind.__name__}") from None
        if values[name] not in choices.get(name, (values[name],)):
            raise unknown(f"config argument {name} =", values[name], filter(None, choices[name]))
    return ConfigDict(values)


def override(config: ConfigDict, values: Mapping[str, object]) -> ConfigDict:
    """A locked copy of `config` with dotted keys replaced; UserError for an unknown key or another type."""
    copy = ConfigDict(config.to_dict())
    copy.lock()
    for key, value in values.items():
        try:
            copy.update_from_flattened_dict({key: value})
        except (KeyError, AttributeError):
            raise UserError(f"config.{key} is unknown{did_you_mean(key, flatten(copy))}") from None
        except TypeError:
            raise UserError(f"config.{key} = {value!r} is not of the field's type") from None
    return copy


def flatten(config: ConfigDict | Mapping, prefix: str = "") -> dict[str, object]:
    """{"optim.lr": 0.001, ...} with tuples as lists, so that a config equals its JSON copy."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and len(value):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = json.loads(json.dumps(value, default=lambda v: v.to_dict()))
    return flat


def differences(old: Mapping, new: ConfigDict) -> list[str]:
    """Lines such as "optim.lr: 0.1 there, 0.2 now" for the fields that decide what a run computes."""
    old, new = flatten(old), flatten(new)
    return [
        f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} now"
        for key in sorted(old.keys() | new.keys())
        if key not in FREE_FIELDS and old.get(key) != new.get(key)
    ]


def check_buckets(config: ConfigDict) -> None:
    """UserError for a field that names a file or folder in a bucket which is not there or may not be read."""
    for key, value in flatten(config).items():
        if isinstance(value, str) and "://" in value:
            try:
                storage.to_path(value)
            except UserError as error:
                raise UserError(f"config.{key}: {error}") from None


def from_dict(values: Mapping) -> ConfigDict:
    """The locked config of a run folder's config.json; fields that are newer than the folder have their defaults."""
    config = ConfigDict(_with_current_output(_with_current_head(dict(values))), convert_dict=True)
    _import_shipped()
    defaults = importlib.import_module("jaxmlic.configs.common").base()
    if "text" not in config:
        config.text = defaults.text
    for section in ("text", "data", "features", "augment", "optim", "train", "eval"):
        for key, value in defaults[section].items():
            if section in config and key not in config[section]:
                config[section][key] = value
    if "name" in config.loss and "options" not in config.loss:  # a head may have other fields in its place
        config.loss.options = defaults.loss.options
    config.lock()
    return config


def _with_current_head(values: dict) -> dict:
    """The config of an older folder whose head "cnn_lstm_rmlc" was one of three by its field `recurrent`."""
    if values.get("head") != "cnn_lstm_rmlc" or "recurrent" not in values.get("model", {}):
        return values
    model = dict(values["model"])
    head = {"none": "plain"}.get(model["recurrent"], model["recurrent"])
    path_only, lstm_only = {"embedding", "order", "max_length", "beam_size"}, {"units", "activation"}
    foreign = {"positions": path_only, "path": {"hidden"}, "plain": path_only | lstm_only}.get(head, set())
    if head == "path":
        model["units"] = model["units"][0]
    model = {name: value for name, value in model.items() if name not in foreign | {"recurrent"}}
    return values | {"head": f"cnn_lstm_rmlc.{head}", "model": model}


def _with_current_output(values: dict) -> dict:
    """The config of a folder older than `optim.eps`, whose output "released" added what a step reads."""
    older = values.get("head") == "multi_order_rnn" and "eps" not in values.get("optim", {})
    if not older or values["model"].get("output") != "released":
        return values
    return values | {"model": {**values["model"], "output": "released_prev2out"}}


def _import_shipped() -> Path:
    """Makes `jaxmlic.configs` importable and returns its folder.

    An installed package has it; `python -m jaxmlic` in a checkout beside a plain install finds it next door.
    """
    if "jaxmlic.configs" not in sys.modules:
        spec = importlib.util.find_spec("jaxmlic.configs")
        if spec is None or spec.origin is None:
            folder = Path(__file__).resolve().parents[1] / "configs"
            spec = importlib.util.spec_from_file_location(
                "jaxmlic.configs", folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["jaxmlic.configs"] = module
    return Path(sys.modules["jaxmlic.configs"].__file__).parent


def _unknown_key(path: Path, arg: str, overrides: Sequence[str]) -> str | None:
    known = flatten(load(f"{path}:{arg}" if arg else str(path))) if overrides else {}
    for item in overrides:
        key = item.lstrip("-").partition("=")[0].removeprefix("config.")
        if key not in known and not any(k.startswith(key + ".") for k in known):
            return f"--config.{key}: {path} has no such field{did_you_mean(key, known)}"
    return None
