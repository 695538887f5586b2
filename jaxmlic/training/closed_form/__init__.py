"""Training of heads that are fitted at once: the one step of such a run, whose batch is the whole training split."""

from jaxmlic.training.closed_form.fields import check
from jaxmlic.training.closed_form.step import make_step

__all__ = ["check", "make_step"]
