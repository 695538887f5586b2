"""`jaxmlic export`."""

from jaxmlic import export, storage
from jaxmlic import run as run_lib
from jaxmlic.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Writes the bundle and prints what is in it."""
    parser = Parser(
        prog="jaxmlic export",
        description="Writes a run's best checkpoint as a folder that needs jax, flatbuffers, numpy and Pillow alone: "
        "the prediction as StableHLO for any number of images on cpu, cuda and tpu, with its decoding, class names, "
        "thresholds, calibration and origin.",
        epilog="then: python DIR/run_bundle.py photo.jpg, and jaxmlic verify-export RUN DIR",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a `jaxmlic train`")
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty folder for the bundle")
    options = parser.parse_args(argv)
    export.check_folder(options.out)
    storage.check_writable(storage.to_path(options.out).parent)
    bundle = export.write(run_lib.load(options.run), options.out)
    for name, fact in bundle.facts["files"].items():
        print(f"{name:16} {fact['bytes']:>12,} bytes")
    for note in bundle.notes:
        print(f"note: {note}")
    print(
        f"written: {bundle.folder} ({bundle.num_bytes / 1e6:.1f} MB, step {bundle.facts['run']['step']}, decides by "
        f"{bundle.facts['decision']})"
    )
    return 0
