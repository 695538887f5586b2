"""A run as a web page and a JSON endpoint: `jaxmlic serve`. Needs the extra `serve`."""

from jaxmlic.serve.limits import Limits
from jaxmlic.serve.server import check_extra, listen

__all__ = ["Limits", "check_extra", "listen"]
