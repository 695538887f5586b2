"""One line where JAX would abort with a stack trace, when process 0 and its service are gone.

JAX's client of that service calls a `missed_heartbeat_callback`, whose default aborts the process, and does not let
users pass one. Here it gets one. jaxlib 0.10 and 0.11 cannot hand it the status and end in C++'s `std::terminate` with
a `std::bad_cast`, so a terminate handler stands behind it. Where a part of this is missing, JAX aborts as before.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator

_BAD_CAST = b"St8bad_cast"  # name of the type of exception
_handlers: list[object] = []  # C++ calls them as long as the process lives


@contextlib.contextmanager
def reported(leave: Callable[[], None]) -> Iterator[None]:
    """Clients that JAX makes in this block call `leave`, which ends the process, when the service is gone."""
    from jax._src.lib import _jax

    plain = getattr(_jax, "get_distributed_runtime_client", None)
    if plain is None or not _handle_terminate(leave):
        yield
        return

    def make(*args: object, **options: object) -> object:
        try:
            return plain(*args, **options, missed_heartbeat_callback=lambda *_: leave())
        except TypeError:  # the keyword is gone
            return plain(*args, **options)

    _jax.get_distributed_runtime_client = make
    try:
        yield
    finally:
        _jax.get_distributed_runtime_client = plain


def _handle_terminate(leave: Callable[[], None]) -> bool:
    """Lets `leave` end the process where an uncaught `std::bad_cast` would; False where that cannot be arranged."""
    try:
        library = ctypes.CDLL("libstdc++.so.6")
        set_terminate, current_type = library._ZSt13set_terminatePFvvE, library.__cxa_current_exception_type
    except (OSError, AttributeError):  # another C++ library
        return False
    pointer, function = ctypes.c_void_p, ctypes.CFUNCTYPE(None)
    set_terminate.argtypes, set_terminate.restype = [pointer], pointer
    current_type.argtypes, current_type.restype = [], pointer
    before: list[int | None] = [None]

    def handle() -> None:
        found = current_type()  # a std::type_info: a table of functions, then the name
        if found and ctypes.cast(found, ctypes.POINTER(ctypes.c_char_p))[1] == _BAD_CAST:
            leave()
        if before[0]:
            ctypes.cast(before[0], function)()
        os.abort()

    _handlers.append(function(handle))
    before[0] = set_terminate(ctypes.cast(_handlers[-1], pointer))
    return True
