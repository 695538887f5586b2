"""The server: a run is opened, its program compiled, and requests answered until it is interrupted."""

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path

from jaxmlic import run as run_lib
from jaxmlic import storage
from jaxmlic.errors import UserError
from jaxmlic.serve.limits import Limits

_NEEDS = ("fastapi", "uvicorn", "python_multipart")


def check_extra() -> None:
    """UserError where the extra `serve` is not installed."""
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"jaxmlic serve needs {', '.join(missing)}: pip install 'jaxmlic[serve]'")


def listen(workdir: str | Path, host: str, port: int, limits: Limits, report: Callable[[str], None]) -> None:
    """Serves the run until interrupted.

    Args:
      workdir: folder of a run whose model reads pixels.
      host: address to listen on.
      port: 0 for any that is free.
      limits: of requests.
      report: takes lines for the user.

    Raises UserError for a folder that is no run, an address that cannot be used, and a missing extra.
    """
    check_extra()
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port={port}: from 0, any that is free, to 65535")
    import uvicorn

    from jaxmlic.serve import app
    from jaxmlic.serve.labeller import Labeller

    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"--host={host} --port={port}: {storage.reason(error)}") from None
    with listening:
        labeller = Labeller(run_lib.load(workdir), limits.batch_size, limits.waiting)
        for note in labeller.notes:
            report(f"note: {note}")
        shown = f"[{host}]" if ":" in host else host
        report(f"{labeller.run}: http://{shown}:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
        settings = uvicorn.Config(app.make_app(labeller, limits), log_level="warning", server_header=False)
        try:
            uvicorn.Server(settings).run(sockets=[listening])
        finally:
            labeller.close()
