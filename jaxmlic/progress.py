"""What a run tells while it works: a bar with rate and time left, metrics.jsonl and TensorBoard."""

import math
import sys
import time

from tqdm import tqdm


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
