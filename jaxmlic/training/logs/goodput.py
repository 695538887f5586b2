"""Goodput: where the time of a run went, from its first start to now, over all its continuations.

goodput.json lies in the run folder: for the last saved steps the seconds of each kind until then and the time of day,
so that a continuation knows what was done again and how long nobody worked.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import jax.monitoring

from jaxmlic import progress, storage
from jaxmlic.errors import UserError
from jaxmlic.training.logs import metrics_log
from jaxmlic.training.run_states import GOODPUT_FILE

KEPT = 4  # saved steps that the file remembers: checkpoints keep the last and the best
PREFIX = "goodput/"

# "steps" is what no other kind has: the training itself.
KINDS = {
    "steps": "steps",
    "input": "waiting for input",
    "evaluation": "evaluation",
    "saving": "saving",
    "compiling": "compiling",
    "starting": "starting",
    "redone": "steps done again",
    "away": "between runs",
}


class Goodput:
    """Counts the seconds of each kind; `span` around work of a kind, "steps" is the rest.

    A compilation counts as "compiling" wherever it happens. "redone" is what an ended process did after the checkpoint
    that this one continues from, "away" the time from its last sign of life to this start.

    Args:
      workdir: the run folder.
      started: time.monotonic() at the start of the process's work.
      active: whether to write goodput.json; one process of several does.
    """

    def __init__(self, workdir: str | Path, started: float, active: bool = True):
        self.path, self.active = storage.to_path(workdir) / GOODPUT_FILE, active
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.began = self.mark = started
        self.saved: dict[int, dict] = {}
        self.compiled = 0.0  # in the span that runs
        jax.monitoring.register_event_duration_secs_listener(self._note_compilation)

    def start(self, step: int) -> None:
        """Ends the starting, and takes over what the run folder knows of a run that continues from `step` > 0.

        Call it before the log drops the rows after that step: the last of them is the last sign of life.
        """
        self._close("starting")
        before = {old: row for old, row in self._read().items() if old <= step}
        if step and before:
            found = before[max(before)]  # of an earlier step, where a kill came between a checkpoint and its entry
            for kind in KINDS:
                self.seconds[kind] += found["seconds"].get(kind, 0.0)
            then, rows = sum(found["seconds"].values()), metrics_log.read(self.path.parent)
            signs = [sum(row.get(PREFIX + kind, 0.0) for kind in KINDS) for row in rows if PREFIX + "steps" in row]
            redone = max(0.0, max(signs, default=0.0) - then)
            now = time.time() - (time.monotonic() - self.began)
            self.seconds["redone"] += redone
            self.seconds["away"] += max(0.0, now - found["time"] - redone)
        self.saved = before
        if step:
            self.save(step)

    @contextlib.contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """Work of a kind; not to be nested."""
        self._close("steps")
        try:
            yield
        finally:
            self._close(kind)

    def row(self) -> dict[str, float]:
        """Seconds of each kind until now, for the log."""
        self._close("steps")
        return {PREFIX + kind: round(seconds, 3) for kind, seconds in self.seconds.items()}

    def save(self, step: int) -> None:
        """Remembers the seconds until `step`, whose checkpoint is being written."""
        self._close("steps")
        self.saved[step] = {"time": time.time(), "seconds": dict(self.seconds)}
        self.saved = dict(sorted(self.saved.items())[-KEPT:])
        if self.active:
            storage.write_json(self.path, self.saved)

    def text(self) -> str:
        """One line: the shares of all kinds that took any time, steps first."""
        self._close("steps")
        total = sum(self.seconds.values())
        parts = [
            f"{100 * seconds / total:.1f} % {KINDS[kind]}"
            for kind, seconds in self.seconds.items()
            if seconds >= 0.0005 * total
        ]
        return f"{progress.clock(total)} in all: {', '.join(parts)}"

    def close(self) -> None:
        """Stops listening for compilations."""
        jax.monitoring.unregister_event_duration_listener(self._note_compilation)

    def _close(self, kind: str) -> None:
        now = time.monotonic()
        compiled, self.compiled = min(self.compiled, now - self.mark), 0.0
        self.seconds["compiling"] += compiled
        self.seconds[kind] += now - self.mark - compiled
        self.mark = now

    def _note_compilation(self, event: str, seconds: float, **_: object) -> None:
        # Tracing, lowering and XLA's part, or reading the compiled program from the cache.
        if event.startswith("/jax/core/compile/"):
            self.compiled += seconds

    def _read(self) -> dict[int, dict]:
        try:
            rows = storage.read_json(self.path).items()
            return {int(step): {"time": row["time"], "seconds": dict(row["seconds"])} for step, row in rows}
        except (UserError, ValueError, KeyError, TypeError, AttributeError):  # older or damaged: no more than a clock
            return {}
