"""The check that every image of a table passes before it is stored: it is read, decoded and compared with its boxes."""

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TextIO

from jaxmlic import progress
from jaxmlic.data.image import inspect_image
from jaxmlic.data.prepare.tables.annotations import Mistake
from jaxmlic.data.prepare.tables.sheets import Problem
from jaxmlic.data.prepare.tables.table import Row, Table
from jaxmlic.data.prepare.writer import Example

MAX_ID = 4096
"""Characters of an image's name: the longest path that Linux has. The ids of a split are stored at equal lengths."""


class ImageChecker:
    """Checks every image of a table once, in threads, a little ahead of the writer; a context manager."""

    def __init__(self, table: Table, workers: int, name: str):
        self._has_boxes = table.has_boxes
        self._rows = {split: iter(rows) for split, rows in table.splits.items()}
        # Outlives a stream that is stopped: what was handed to the threads still belongs to the problems.
        self._waiting = {split: deque() for split in table.splits}
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers)
        self._quiet = contextlib.ExitStack()
        terminal = self._quiet.enter_context(quiet_decoders())
        total = sum(len(rows) for rows in table.splits.values())
        self._bar = progress.Progress(f"checking {name}", total, file=terminal)

    def __enter__(self) -> "ImageChecker":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        self._pool.shutdown(cancel_futures=True)
        self._quiet.close()

    def stream(self, split: str) -> Callable[[str | None], Iterator[Example | Problem]]:
        """A function of the last id already stored that gives the examples after it, and the problems of bad rows."""

        def items(last: str | None) -> Iterator[Example | Problem]:
            if last is not None:
                earlier = 0
                for row in self._rows[split]:
                    earlier += 1
                    if row.id == last:
                        break
                self._bar.skip(earlier)
            yield from self._checked(split)

        return items

    def remaining_problems(self) -> list[Problem]:
        """The problems of all images that no stream has given yet."""
        return [item for split in self._rows for item in self._checked(split) if isinstance(item, Problem)]

    def _checked(self, split: str) -> Iterator[Example | Problem]:
        waiting = self._waiting[split]
        # Few at a time: whole images are in here.
        for row in self._rows[split]:
            waiting.append(self._pool.submit(check_row, row, self._has_boxes))
            if len(waiting) >= 4 * self._workers:
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def _result(self, future: Future) -> Example | Problem:
        item = future.result()
        self._bar.advance()
        return item


def check_row(row: Row, has_boxes: bool) -> Example | Problem:
    """The example of one row, or what is wrong with its name, image or boxes."""
    if not is_utf8(row.id):
        return Problem(*row.where, f"the name {row.id!r} is not UTF-8: rename the file")
    if len(row.id) > MAX_ID:
        why = f"{row.id[:60]}...: a name of {len(row.id):,} characters, {MAX_ID:,} are allowed"
        return Problem(*row.where, why)
    try:
        data = row.image.read()
    except OSError as error:
        return Problem(*row.where, f"{row.id}: cannot be read ({error.strerror})")
    height, width, why = inspect_image(data)
    if why:
        return Problem(*row.where, f"{row.id}: {why}")
    example = {"id": row.id, "image": data, "labels": row.labels}
    if has_boxes:
        example["boxes"] = []
        for box in row.boxes:
            try:
                example["boxes"].append(box.normalised(height, width))
            except Mistake as mistake:
                return Problem(*box.where, f"{row.id}: {mistake}")
    return example


def is_utf8(name: str) -> bool:
    """Whether a name is UTF-8; those on disks and in archives need not be, and JSON may hold half surrogate pairs."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def quiet_decoders() -> Iterator[TextIO | None]:
    """libjpeg and libpng report on file descriptor 2 by themselves; what is wrong with an image is one line of ours.

    Yields where stderr goes really, None when that is nowhere.
    """
    try:
        terminal = os.fdopen(os.dup(2), "w")
    except OSError:  # closed
        yield None
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    with terminal, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield terminal
        finally:
            os.dup2(terminal.fileno(), 2)
