"""The numbers of a run over its steps: metrics.jsonl, TensorBoard events and trackers."""

import json
import math
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
        self.events = SummaryWriter(str(self.outbox.path), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float | str]) -> None:
        """One row; numbers also go to TensorBoard. A value that is no number (NaN) is written as null."""
        if not self.active:
            return
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        try:
            self.file.write(json.dumps({"step": step, **plain}) + "\n")
        except OSError as error:
            why = storage.reason(error)
            raise UserError(f"{self.path}: cannot be written ({why}); free some space and run again") from None
        for name, value in plain.items():
            if isinstance(value, int | float):
                self.events.add_scalar(name, value, step)
        if self.trackers:
            self.trackers.log(step, {k: v for k, v in plain.items() if isinstance(v, int | float)})

    def flush(self) -> None:
        """Everything written so far is in the run folder, also where that is a bucket's."""
        if self.active:
            self.file.flush()
            self.events.flush()
            self.outbox.send()

    def close(self) -> None:
        if self.active:
            self.file.close()
            self.events.close()
            self.outbox.send()
            if self.trackers:
                self.trackers.close()


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
