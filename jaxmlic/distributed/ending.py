"""How a process of several ends, and the others with it: one line on each, within seconds."""

import atexit
import contextlib
import json
import os
import sys
import threading
import time
from typing import NoReturn

from jaxmlic.distributed.place import client, count, index, is_main

_GRACE_SECONDS, _LAST_WORDS_SECONDS = 2.0, 4.0  # the second is longer: process 0 keeps what the others read
_LAST_WORDS = "jaxmlic/last words"
_LISTEN_SECONDS = 1.0

_failures = 0  # how often `all_fail` was called in this process
_complaint, _leaving = "a process ended", False


def describe_loss(error: Exception) -> tuple[str, int]:
    """A line for an error that came of another process that is gone, and the exit status; ("", 0) for other errors."""
    text = " ".join(str(error).split())
    signs = ("Gloo", "Connection closed", "Connection reset", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat")
    if count() == 1 or not any(sign in text for sign in signs):
        return "", 0
    lost = (
        f"process {index()} of {count()} lost another one, whose own output tells why; the same commands continue from "
        f"the last checkpoint ({text[:200]})"
    )
    return _last_words() or (lost, 1)


def complain(text: str) -> None:
    """Prints a mistake; it is what the other processes print when this one leaves."""
    global _complaint
    _complaint = text
    with contextlib.suppress(OSError):  # the disk of a log may be full
        print(f"jaxmlic: {text}", file=sys.stderr, flush=True)


def leave(status: int) -> NoReturn:
    """Ends this process of several without waiting for the others, which may wait for it: they end within seconds, with
    the same status and complaint, unless they are about to leave themselves."""
    global _leaving
    _leaving = True
    with contextlib.suppress(Exception):  # another one was first, or the first process is gone
        client().key_value_set(_LAST_WORDS, json.dumps([index(), status, _complaint]))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if is_main():  # the others end with it: let them print first
        time.sleep(_LAST_WORDS_SECONDS)
    os._exit(status)


def end_all(text: str) -> NoReturn:
    """Ends the job for a mistake that this process of several alone has met, wherever the others wait for it."""
    complain(text)
    leave(2)


def all_fail(seconds: float = 60.0) -> bool:
    """Whether all processes have failed at the same place, so that they can go on together; True for one process."""
    global _failures
    if count() == 1:
        return True
    _failures += 1
    try:
        client().wait_at_barrier(f"jaxmlic/failure {_failures}", int(1000 * seconds))
    except Exception:  # jaxlib has its own types: somebody did not come, or is gone
        return False
    return True


def listen() -> None:
    """From now on this process ends when another one says that it leaves."""
    done = threading.Event()
    thread = threading.Thread(target=_listen, args=[done], daemon=True)

    def close() -> None:  # a thread inside a call of C++ would end the interpreter with an abort
        done.set()
        thread.join()

    atexit.register(close)
    thread.start()


def _listen(done: threading.Event) -> None:
    while not done.wait(_LISTEN_SECONDS):
        said = _last_words()
        if said is None:
            continue
        time.sleep(_GRACE_SECONDS)  # the same may have happened here
        if not _leaving and not done.is_set():
            text, status = said
            complain(text)
            os._exit(status)
        return


def _last_words() -> tuple[str, int] | None:
    """The complaint and status of the process that has left, or None."""
    try:
        number, status, text = json.loads(client().key_value_try_get(_LAST_WORDS))
    except Exception:  # jaxlib has its own types: nobody has left, or the first process is gone
        return None
    return f"{text} (process {number} of {count()})", status
