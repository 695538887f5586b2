"""The numbers of a run over its steps: metrics.jsonl, TensorBoard events and trackers."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

from tensorboardX import SummaryWriter

from jaxmlic import storage
from jaxmlic.errors import UserError
from jaxmlic.training.logs.trackers import Trackers

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """metrics.jsonl (one JSON object a line, with `step`) and TensorBoard events of a run folder.

    A resumed run drops the rows after the step it continues from, so that no step has two rows.

    Args:
      workdir: the run folder.
      first_step: the step that the run continues from.
      active: whether to write at all; one process of several does.
      trackers: get the numbers, too.
    """

    def __init__(self, workdir: str | Path, first_step: int, active: bool = True, trackers: Trackers | None = None):
        self.active, self.trackers = active, trackers
        if not active:
            return
        self.path = storage.to_path(workdir) / METRICS_FILE
        rows = [row for row in read(workdir) if row["step"] <= first_step]
        storage.write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.file = storage.Appender(self.path)
        self.outbox = storage.Outbox(storage.to_path(workdir) / "tensorboard")
        # Its queue holds more than a row: where its thread has ended, on a full disk, `put` would wait for ever.
        self.events = SummaryWriter(str(self.outbox.path), purge_step=first_step + 1, max_queue=1000)

    def write(self, step: int, values: dict[str, float | str]) -> None:
        """One row; numbers also go to TensorBoard. A value that is no number (NaN) is written as null."""
        if not self.active:
            return
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self._one_line(self.path):
            self.file.write(json.dumps({"step": step, **plain}) + "\n")
        self._check_events()
        for name, value in plain.items():
            if isinstance(value, int | float):
                self.events.add_scalar(name, value, step)
        if self.trackers:
            self.trackers.log(step, {k: v for k, v in plain.items() if isinstance(v, int | float)})

    def flush(self) -> None:
        """Everything written so far is in the run folder, also where that is a bucket's."""
        if not self.active:
            return
        self.file.flush()
        self._check_events()
        with self._one_line(self.outbox.path):
            self.events.flush()
        self.outbox.send()

    def close(self) -> None:
        """Flushes and lets go."""
        if not self.active:
            return
        with contextlib.ExitStack() as rest:
            if self.trackers:
                rest.callback(self.trackers.close)
            rest.callback(self.outbox.send)
            rest.callback(self._close_events)
            rest.callback(self.file.close)

    def _close_events(self) -> None:
        writer = self.events.file_writer.event_writer
        try:
            if self._writes_events():
                with self._one_line(self.outbox.path):
                    self.events.close()
        finally:
            writer._closed = True  # else it is tried again when the process ends, with a traceback

    def _writes_events(self) -> bool:
        """Whether TensorBoard's thread goes on: an error ends it, and nobody is told."""
        return self.events.file_writer.event_writer._worker.is_alive()

    def _check_events(self) -> None:
        if not self._writes_events():
            raise UserError(f"{self.outbox.path}: cannot be written; free some space and run again")

    @contextlib.contextmanager
    def _one_line(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = storage.reason(error)
            raise UserError(f"{path}: cannot be written ({why}); free some space and run again") from None


def best(rows: list[dict], metric: str) -> dict | None:
    """The row with the highest validation score `metric`, the later one of equals; None without any."""
    scored = [row for row in rows if "val/protocol" in row and row.get(f"val/{metric}") is not None]
    return max(scored, key=lambda row: (row[f"val/{metric}"], row["step"]), default=None)


def read(workdir: str | Path) -> list[dict]:
    """The rows of metrics.jsonl; a last line cut off by a kill is left out."""
    path = storage.to_path(workdir) / METRICS_FILE
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
