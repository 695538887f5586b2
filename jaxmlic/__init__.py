"""Multi-label image classification in JAX and Flax: published systems on one trainer."""

from typing import TYPE_CHECKING

from jaxmlic.version import __version__

if TYPE_CHECKING:
    from jaxmlic.run import Run

__all__ = ["__version__", "load"]


def load(workdir: str, data_dir: str | None = None) -> "Run":
    """The finished run in a folder of `jaxmlic train`, with its best checkpoint; see `jaxmlic.run.Run`.

    Args:
      workdir: the run folder.
      data_dir: where the data sets are now, if not where the run found them.

    Raises:
      UserError: there is no run, no whole checkpoint, or one of another model.
    """
    from jaxmlic import run  # importing the package starts nothing

    return run.load(workdir, data_dir)
