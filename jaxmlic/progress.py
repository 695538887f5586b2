"""What a run tells while it works: a bar with rate and time left, metrics.jsonl and TensorBoard."""

import json
import math
import os
import sys
import time
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from jaxmlic.errors import UserError

METRICS_FILE = "metrics.jsonl"


class Bar:
    """Images done of all, img/s and time left: a bar on a terminal, a line per report elsewhere."""

    def __init__(self, total_steps: int, batch_size: int, first_step: int):
        self.total, self.batch_size, self.first = total_steps, batch_size, first_step
        self.started = time.monotonic()
        self.live = sys.stderr.isatty()
        self.bar = tqdm(
            total=total_steps * batch_size,
            initial=first_step * batch_size,
            unit="img",
            unit_scale=True,
            desc="train",
            dynamic_ncols=True,
            disable=not self.live,
        )

    def advance(self, steps: int) -> None:
        """`steps` more are done."""
        self.bar.update(steps * self.batch_size)

    def report(self, step: int, text: str) -> None:
        """Shows `text`: beside the bar, or as a line with rate and time left."""
        if self.live:
            self.bar.set_postfix_str(text)
            return
        rate = (step - self.first) / max(time.monotonic() - self.started, 1e-9)
        left = (self.total - step) / rate if rate else math.inf
        print(
            f"step {step}/{self.total}  {text}  {rate * self.batch_size:,.0f} img/s  {clock(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def write(self, text: str) -> None:
        """A line of its own that stays."""
        self.bar.write(text, file=sys.stderr) if self.live else print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        self.bar.close()


def clock(seconds: float) -> str:
    """63 -> "1:03"; an unknown time is "?"."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class MetricsLog:
    """metrics.jsonl (one JSON object a line, with `step`) and TensorBoard events of a run folder.

    A resumed run drops the rows after the step it continues from, so a step is never told twice.
    """

    def __init__(self, workdir: str | Path, first_step: int, active: bool = True):
        self.active = active
        if not active:
            return
        self.path = Path(workdir) / METRICS_FILE
        rows = [row for row in read(workdir) if row["step"] <= first_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(temporary, self.path)
        self.file = self.path.open("a")
        self.events = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float | str]) -> None:
        """One row; numbers also go to TensorBoard. A value that is no number (NaN) is written as null."""
        if not self.active:
            return
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        try:
            self.file.write(json.dumps({"step": step, **plain}) + "\n")
            self.file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot write ({error.strerror}); free some space and run again") from None
        for name, value in plain.items():
            if isinstance(value, int | float):
                self.events.add_scalar(name, value, step)

    def close(self) -> None:
        if self.active:
            self.file.close()
            self.events.close()


def read(workdir: str | Path) -> list[dict]:
    """The rows of metrics.jsonl; a last line cut off by a kill is left out."""
    path = Path(workdir) / METRICS_FILE
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
