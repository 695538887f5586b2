"""The one exception that stands for a mistake of the user's, and how a command ends on it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend: one line naming the file, the line where there is one, and the remedy.

    Commands print it on stderr as `jaxmlic: <line>` and exit with status 2; no traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'dog'?)"` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
