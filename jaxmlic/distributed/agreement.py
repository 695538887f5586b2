"""What all processes of a job do together: waiting, comparing, failing, and stopping at one place."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TypeVar

from jaxmlic.distributed.place import count
from jaxmlic.errors import UserError

Result = TypeVar("Result")

_asked = 0  # how often `Stop.now` was called in this process


def wait_for_all(name: str) -> None:
    """Returns when all processes are here."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def texts(text: str) -> list[str]:
    """What each process gives, by process number, on all of them."""
    if count() == 1:
        return [text]
    import numpy as np
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: len(data)] = data
    found = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(found, sizes, strict=True)]


def all_or_none(action: Callable[[], Result]) -> Result:
    """The result of `action`, which needs no other process; where it fails on one, all raise that UserError."""
    if count() == 1:
        return action()
    result, mistake = None, ""
    try:
        result = action()
    except UserError as error:
        mistake = str(error)
    found = [(number, text) for number, text in enumerate(texts(mistake)) if text]
    if found:
        number, text = found[0]
        also = "" if len(found) == 1 else f" (and {len(found) - 1} more processes)"
        raise UserError(f"process {number}{also}: {text}" if len(found) < count() else text)
    return result


def check_same(values: Mapping[str, str]) -> None:
    """UserError on all processes where one has another value than process 0, with its name and both."""
    found = [json.loads(text) for text in texts(json.dumps(dict(values)))]
    for number, other in enumerate(found):
        for name in found[0] | other:
            mine, theirs = found[0].get(name), other.get(name)
            if mine != theirs:
                raise UserError(
                    f"{name} differs between the processes: {mine!r} on process 0, {theirs!r} on process {number}; "
                    "start all of them with the same"
                )


class Stop:
    """A notice to leave (SIGTERM, Ctrl-C, a maintenance event), on which all processes agree at one place.

    A context manager. A second signal acts as usual with one process.
    """

    def __init__(self):
        self.signal: int | None = None
        self._old: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        # With several processes JAX's own notifier has SIGTERM, and Ctrl-C becomes one.
        numbers = (signal.SIGTERM, signal.SIGINT) if count() == 1 else (signal.SIGINT,)
        with contextlib.suppress(ValueError):  # not the main thread: no handlers, as under a notebook's executor
            for number in numbers:
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        signal.signal(number, self._old[number])
        if count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signal = number

    def now(self) -> bool:
        """Whether all processes leave here. All have to ask at the same places, such as after each step."""
        global _asked
        if count() > 1 and self.signal is None:
            from jax.experimental import multihost_utils

            # Counted over all runs of the process: they agree on the number after the largest that any has reached.
            _asked += 1
            if multihost_utils.reached_preemption_sync_point(_asked):
                self.signal = signal.SIGTERM
        return self.signal is not None


def stopped_status(number: int | None) -> int:
    """The exit status of work that a signal ended after saving: 130 for Ctrl-C, else $JAXMLIC_STOPPED_STATUS or 0.

    Kubernetes takes 0 for a job that is complete, and needs another one to start it again.
    """
    text = os.environ.get("JAXMLIC_STOPPED_STATUS") or "0"
    if not text.isdecimal() or int(text) > 255:
        raise UserError(f"$JAXMLIC_STOPPED_STATUS = {text!r}: an exit status from 0 to 255")
    return 130 if number == signal.SIGINT else int(text)
