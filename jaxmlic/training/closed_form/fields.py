"""Which fields of a config go with a head that is fitted at once."""

from types import ModuleType

from ml_collections import ConfigDict

from jaxmlic.errors import UserError
from jaxmlic.models.heads import contract


def check(config: ConfigDict, head: ModuleType, multipliers: dict[str, float | None], total: int) -> None:
    """UserError for fields that do not go with a head that has a closed form, or one that has none.

    multipliers: learning-rate multiplier of every parameter, None = frozen. total: steps of the training.
    """
    fits = contract.has_closed_form(head)
    if fits != (config.optim.name == "none"):
        what = "is fitted at once: set it to 'none'" if fits else "is trained in steps: name an optimizer"
        raise UserError(f"config.optim.name = {config.optim.name!r}, but config.head = {config.head!r} {what}")
    if not fits:
        return
    if total != 1:
        raise UserError(
            f"config.train.duration = {config.train.duration!r}: a head that is fitted at once takes '1 steps'"
        )
    trunk = {name: rate for name, rate in multipliers.items() if name.startswith("trunk/")}
    if any(rate is not None for rate in trunk.values()) or any(
        rate is None for name, rate in multipliers.items() if name not in trunk
    ):
        raise UserError(
            "a head that is fitted at once learns all of its own parameters and none of the trunk's: set "
            "config.optim.groups=(('trunk/.*', None), ('.*', 1.0))"
        )
    if config.optim.ema:
        raise UserError("config.optim.ema averages steps, and a head that is fitted at once has none: set it to 0.0")
