"""Progress of long work on stderr: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import math
import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Display
from rich.text import Text

from jaxmlic import distributed

_LOG_SECONDS = 10.0  # between two lines in a log
_DRAW_SECONDS = 0.1  # between two drawings of a bar


class Progress:
    """Counts items done of `total`; a context manager.

    On a terminal there is a bar. Elsewhere (a file, a pipe) a line is printed every `log_seconds`, and one at the end
    of work that has printed any, so that short work prints nothing. No thread is started: workers can be forked.

    Args:
      label: what is done, such as "train" or "decoding voc2007/test".
      total: number of items; None where it is not known, so that no time left is.
      unit: what is counted, such as "images".
      done: items that an earlier run did; they do not count as this one's speed.
      file: where to print; stderr by default.
      transient: the bar is removed at the end.
      log_seconds: seconds between two lines in a log; math.inf for the lines of `report` alone.
      within: the bar of the work that this is a part of; this one's is drawn below it, and removed at the end.
      shown: False for a count that nothing shows.
    """

    def __init__(
        self,
        label: str,
        total: float | None,
        unit: str = "images",
        *,
        done: float = 0,
        file: TextIO | None = None,
        transient: bool = False,
        log_seconds: float = _LOG_SECONDS,
        within: "Progress | None" = None,
        shown: bool = True,
    ):
        self.label, self.total, self.unit, self.log_seconds = label, total, unit, log_seconds
        self.file = sys.stderr if file is None else file
        if within is not None:
            self.file = within.file
        if not (shown and distributed.is_main()):  # the first process shows the progress of all
            self.file = None
        self.done = self.first = done
        self.started = self.shown = time.monotonic()
        self.logged: float | None = None  # items done at the last line in a log
        self.display: Display | None = None
        self._is_part = within is not None
        if within is not None:
            self.display = within.display if shown else None
        elif self.file is not None and self.file.isatty():
            console = Console(file=self.file)
            if not console.is_dumb_terminal:
                self.display = _display(console, transient)
        if self.display:
            self.task = self.display.add_task(label, total=total, completed=done, text="", unit=unit)
            if not self._is_part:
                self.display.start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, count: float = 1) -> None:
        """`count` more items are done."""
        self.done += count
        if self.display:
            self.display.advance(self.task, count)
        now = time.monotonic()
        if now - self.shown < (_DRAW_SECONDS if self.display else self.log_seconds):
            return
        self.shown = now
        if self.display:
            self.display.refresh()
        else:
            self._log()

    def skip(self, count: float) -> None:
        """`count` more items were done by an earlier run."""
        self.done += count
        self.first += count
        if self.display:
            self.display.reset(self.task, completed=self.done)

    def report(self, text: str) -> None:
        """Shows `text` beside the bar, or in a log as a line with rate and time left."""
        if self.display:
            self.display.update(self.task, text=text)
        else:
            self._print(f"{text}  {self._pace()}")

    def write(self, text: str) -> None:
        """A line of its own that stays."""
        if self.display:
            self.display.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            self._print(text)

    def close(self) -> None:
        """Draws the bar, or prints the line, a last time; a part's bar is removed."""
        if self.display and self._is_part:
            self.display.remove_task(self.task)
            self.display.refresh()
        elif self.display:
            self.display.stop()
        elif self.logged not in (None, self.done):
            self._log()

    def _log(self) -> None:
        self.logged = self.done
        self._print(f"{self.label}: {_count(self.done, self.total)} {self.unit}  {self._pace()}")

    def _pace(self) -> str:
        rate = (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)
        if self.total is None:
            return _rate(rate, self.unit)
        left = (self.total - self.done) / rate if rate else math.inf
        return f"{_rate(rate, self.unit)}  {clock(left)} left"

    def _print(self, text: str) -> None:
        if self.file is not None:
            print(text, file=self.file, flush=True)


def _display(console: Console, transient: bool) -> Display:
    return Display(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Count(),
        _Rate(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[text]}", markup=False),
        console=console,
        auto_refresh=False,
        transient=transient,
        redirect_stdout=False,
        redirect_stderr=False,
        get_time=time.monotonic,
    )


class _Count(ProgressColumn):
    """Items done and their number."""

    def render(self, task: Task) -> Text:
        return Text(f"{_count(task.completed, task.total)} {task.fields['unit']}")


class _Rate(ProgressColumn):
    """Items a second over the last half minute."""

    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed or 0.0, task.fields["unit"]))


def _count(done: float, total: float | None) -> str:
    return f"{done:,.0f}" if total is None else f"{done:,.0f}/{total:,.0f}"


def _rate(items: float, unit: str) -> str:
    return f"{items:,.{0 if items >= 10 else 1}f} {unit}/s"


def clock(seconds: float) -> str:
    """63 -> "1:03"; an unknown time is "?"."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
