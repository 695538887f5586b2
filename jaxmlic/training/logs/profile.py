"""A trace of some steps, for TensorBoard's profiler and for Perfetto (ui.perfetto.dev)."""

import os

import jax

from jaxmlic import storage
from jaxmlic.errors import UserError

FOLDER = "profile"
FIRST = 5  # steps after the start that a bare number leaves out: the first ones compile


def parse(text: str) -> tuple[int | None, int]:
    """ "10:13" -> (10, 3), steps 10, 11 and 12; "3" -> (None, 3), three steps soon after the start.

    Raises UserError for anything else.
    """
    first, colon, last = text.partition(":")
    try:
        start, count = (int(first), int(last) - int(first)) if colon else (None, int(first))
    except ValueError:
        count = 0
    if count < 1 or (colon and start < 0):
        raise UserError(f"--profile={text}: it is a number of steps, or FIRST:END such as 10:13 (steps 10, 11, 12)")
    return start, count


class Profile:
    """Traces the steps that `parse` gives, into WORKDIR/profile; of several processes, the one that is `active`.

    wanted: what `parse` gave, or None for no trace.
    start: the step that training begins at.
    """

    def __init__(self, wanted: tuple[int | None, int] | None, workdir: str | os.PathLike, start: int, active: bool):
        self.folder = storage.to_path(workdir) / FOLDER
        self.first = self.end = -1
        self.running = False
        if wanted is not None and active:
            first, count = wanted
            self.first = start + FIRST if first is None else first
            self.end = self.first + count

    def before(self, step: int) -> None:
        """Call it before each step: starts the trace at its first one."""
        if step == self.first:
            self.outbox = storage.Outbox(self.folder)
            jax.profiler.start_trace(self.outbox.path, create_perfetto_trace=True)
            self.running = True

    def after(self, step: int, last: object) -> str:
        """Call it after each step with what it gave: ends the trace after its last one, and then gives a line on it."""
        if not self.running or step != self.end:
            return ""
        jax.block_until_ready(last)
        return self.stop()

    def stop(self) -> str:
        """Ends a trace that runs, and gives a line on it; or one on a trace that was wanted and never began."""
        steps = f"steps {self.first} to {self.end - 1}"
        wanted, self.first, self.end = self.first >= 0, -1, -1
        if not self.running:
            return f"no profile: {steps} were not trained here" if wanted else ""
        self.running = False
        jax.profiler.stop_trace()
        self.outbox.send()
        return f"profile of {steps}: tensorboard --logdir={self.folder}, or Perfetto"
