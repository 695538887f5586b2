"""The one exception that stands for a mistake of the user's, and how a command ends on it."""

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake the user can mend: one line naming the file, the line where there is one, and the remedy.

    Commands print it on stderr as `jaxmlic: <line>` and exit with status 2; no traceback.
    """

    def __init__(self, message: str):
        super().__init__(shorten(" ".join(str(message).split())))


def shorten(text: str, length: int = 2000) -> str:
    """A text with its middle left out where it is longer: a name in a damaged file can have a million letters."""
    return text if len(text) <= length else f"{text[: length - length // 4]} ... {text[-length // 4 :]}"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`" (did you mean 'dog'?)"` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


@contextlib.contextmanager
def writing(out: str | os.PathLike) -> Iterator[None]:
    """An OSError in the block becomes a UserError about a command's --out."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{os.fspath(out)}: {error.strerror or error}: give another folder with --out=DIR") from None


def unknown(what: str, value: object, known: Iterable[str]) -> UserError:
    """`unknown("trunk", "resnt50", names)`: "trunk 'resnt50' is unknown (did you mean 'resnet50'?); known: ..."."""
    known = [str(name) for name in known]
    return UserError(f"{what} {value!r} is unknown{did_you_mean(value, known)}; known: {', '.join(known) or 'none'}")


def check_choice(field: str, value: object, known: Iterable[str]) -> None:
    """UserError naming the config field, its value and the choices, unless the value is one of them."""
    known = tuple(known)
    if value not in known:
        raise unknown(f"config.{field} =", value, known)


def check_least(field: str, value: float, least: float) -> None:
    """UserError naming the config field and its value, unless that is at least `least`."""
    if not value >= least:
        raise UserError(f"config.{field} = {value!r}; it is at least {least}")
