"""`jaxmlic serve`."""

import dataclasses

from jaxmlic import serve
from jaxmlic.cli.parser import Parser

HELP = {
    "megabytes": "of a request",
    "megapixels": "of an image",
    "images": "of a request",
    "waiting": "images that wait to be labelled; beyond them requests are answered 503",
    "seconds": "in which a request must have arrived",
    "batch_size": "images that are labelled together, by one compiled program",
}


def main(argv: list[str]) -> int:
    """Serves until interrupted."""
    parser = Parser(
        prog="jaxmlic serve",
        description="A page and a JSON endpoint that label photographs with a run's best checkpoint. Anybody who "
        "reaches the port may use it: keep it on this machine, or behind a proxy that knows your users.",
        epilog="curl -F images=@photo.jpg http://127.0.0.1:8000/predict",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a `jaxmlic train`")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: %(default)s)")
    group = parser.add_argument_group("at most")
    for field in dataclasses.fields(serve.Limits):
        flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        group.add_argument(flag, type=kind, default=field.default, help=f"{HELP[field.name]} (default: %(default)s)")
    options = vars(parser.parse_args(argv))
    serve.check_extra()
    limits = serve.Limits(**{name: options[name] for name in HELP})
    serve.listen(options["run"], options["host"], options["port"], limits, lambda line: print(line, flush=True))
    return 0
