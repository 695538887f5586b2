"""Training of heads that are fitted at once: the one step of such a run, whose batch is the whole training split."""

from jaxmlic.training.closed_form.fields import check
from jaxmlic.training.closed_form.step import OUT_OF_FOLD, held_out_file, make_step

__all__ = ["OUT_OF_FOLD", "check", "held_out_file", "make_step"]
