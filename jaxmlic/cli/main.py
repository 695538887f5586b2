"""`jaxmlic <command>`: one table of commands, one way to end on a user's mistake."""

import contextlib
import ctypes
import logging
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType

import absl.logging

from jaxmlic import distributed, storage
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.version import __version__

# The commands in groups, as in --help: {command: (module with main(argv) -> exit status, what it does)}.
GROUPS = {
    "data": {
        "data": ("jaxmlic.cli.data.commands", "prepare, check, divide and review data sets"),
        "features": (
            "jaxmlic.cli.training.features",
            "run a frozen trunk once over a data set, to train heads on its output",
        ),
    },
    "training and scoring": {
        "train": ("jaxmlic.cli.training.train", "train an experiment, or continue it where it stopped"),
        "add-label": (
            "jaxmlic.cli.training.add_label",
            "add labels to a run from text vectors or examples, without training the rest",
        ),
        "evaluate": (
            "jaxmlic.cli.results.evaluate",
            "score a split with a run's best checkpoint under a named protocol",
        ),
        "thresholds": (
            "jaxmlic.cli.analysis.thresholds",
            "fit thresholds and calibrate probabilities on a run's validation part",
        ),
        "predict": ("jaxmlic.cli.results.predict", "label photographs with a run's best checkpoint"),
        "export": ("jaxmlic.cli.results.export", "write a run as a folder that jax alone can run"),
        "verify-export": ("jaxmlic.cli.results.verify_export", "say whether a bundle predicts what its run predicts"),
        "serve": ("jaxmlic.cli.results.serve", "label photographs on a web page and by a JSON endpoint"),
        "ensemble": (
            "jaxmlic.cli.results.ensemble",
            "fuse score files of one split and compare the fusion with its members",
        ),
        "compare": (
            "jaxmlic.cli.analysis.compare",
            "score files side by side: why they differ, intervals, paired tests",
        ),
    },
    "looking": {
        "runs": ("jaxmlic.cli.analysis.runs", "list the runs in a folder: state, steps, best score, date"),
        "report": ("jaxmlic.cli.analysis.report", "one HTML page about runs: numbers, mistakes, maps, label graph"),
        "pointing": ("jaxmlic.cli.analysis.pointing", "say whether a run's maps point at the objects in the boxes"),
    },
    "few labels": {
        "propagate": (
            "jaxmlic.cli.training.propagate",
            "label unlabelled training images from the labelled ones near them",
        ),
        "alternate": ("jaxmlic.cli.training.alternate", "train on a labelled part, propagate, train on all, in rounds"),
    },
    "experiments": {
        "plan": ("jaxmlic.cli.training.plan", "say what training would take, from shapes alone"),
        "sweep": ("jaxmlic.cli.training.sweep", "run every entry of an experiment's sweep() and tabulate them"),
        "reproduce": ("jaxmlic.cli.results.reproduce", "the papers' tables: commands, printed numbers and ours"),
        "figures": ("jaxmlic.cli.results.figures", "draw the papers' figures from a run"),
        "convergence": ("jaxmlic.cli.results.convergence", "draw validation scores of runs against their epochs"),
        "noise-curves": (
            "jaxmlic.cli.results.noise_curves",
            "draw a sweep's metric against the noise in its training labels",
        ),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

# A start has a hundred programs that compile in less; JAX's own limit of 1 s leaves the small ones out as well.
MIN_COMPILE_SECONDS = "0.1"
LOOP_CLOSED = "Event loop is closed"


def quiet_libraries() -> None:
    """Keeps Orbax's log off the terminal: a failed save would print six tracebacks before our one line.

    Its errors are still raised, and reported by the caller of the save.
    """
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    show, show_unraisable = sys.excepthook, sys.unraisablehook

    # The storage library's threads report to an event loop that a failed save has closed; Python prints that through
    # one of these two hooks, depending on the thread.
    def show_unless_closed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if str(error) != LOOP_CLOSED:
            show(kind, error, trace)

    def show_unraisable_unless_closed(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != LOOP_CLOSED:
            show_unraisable(unraisable)

    show_in_thread = threading.excepthook

    def show_unless_reported(args: threading.ExceptHookArgs) -> None:
        # A full disk under TensorBoard's events: the log says so in one line.
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboardX")):
            show_in_thread(args)

    sys.excepthook, sys.unraisablehook = show_unless_closed, show_unraisable_unless_closed
    threading.excepthook = show_unless_reported


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it: CPU training steps take up to a third less time.

    XLA on the CPU and OpenCV allocate their large arrays anew for every step and image; each time the system would map
    and clear fresh pages. Peak memory grows by about a quarter. Does nothing on other systems.
    """
    m_arena_max, m_mmap_max, m_trim_threshold = -8, -4, -1  # malloc.h
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((m_arena_max, 1), (m_mmap_max, 0), (m_trim_threshold, 2**31 - 1)):
            libc.mallopt(parameter, value)


def keep_compiled_programs() -> None:
    """Makes JAX keep compiled programs in ~/.cache/jaxmlic/xla, so that the next start does not compile them again.

    $JAX_COMPILATION_CACHE_DIR names another folder, $JAXMLIC_COMPILATION_CACHE=off turns it off. It is only said here,
    in the environment that JAX reads when a command imports it; the folder is made with the first program.
    """
    if os.environ.get("JAXMLIC_COMPILATION_CACHE", "").lower() in ("off", "0", "false"):
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    folder = Path("~/.cache/jaxmlic/xla").expanduser()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(there, os.W_OK):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", MIN_COMPILE_SECONDS)


def usage() -> str:
    """The text of `jaxmlic --help`."""
    width = max(map(len, COMMANDS))
    lines = [
        f"jaxmlic {__version__}: multi-label image classification in JAX",
        "",
        "usage: jaxmlic <command> [options]     (jaxmlic <command> --help lists the options)",
    ]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:{width}}  {summary}" for name, (_, summary) in group.items()]
    return "\n".join(lines)


def run(argv: Sequence[str]) -> int:
    """Runs a command line and returns its exit status: 0 done, 2 a mistake of the user's (one line on stderr)."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(__version__)
        return 0
    try:
        if argv[0] not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise UserError(f"unknown command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}; commands: {known}")
        return import_module(COMMANDS[argv[0]][0]).main(list(argv[1:]))
    except UserError as error:
        distributed.complain(str(error))
        return 2
    except KeyboardInterrupt:
        distributed.complain("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output left (`| head`)
        sys.stderr.close()
        return 0
    except Exception as error:
        lost, status = distributed.describe_loss(error)
        if lost:
            distributed.complain(lost)
            return status
        problem = storage.bucket_problem(error)
        if problem is None:
            raise
        distributed.complain(problem)
        return 2


def main() -> None:
    """Entry point of the `jaxmlic` script and of `python -m jaxmlic`."""
    keep_freed_memory()
    keep_compiled_programs()
    quiet_libraries()
    try:
        status = run(sys.argv[1:])
    except Exception as error:
        if distributed.count() == 1:
            raise
        with contextlib.suppress(OSError):
            traceback.print_exc()
        distributed.complain(f"{type(error).__name__}: {storage.reason(error)}")
        status = 1
    if status and distributed.count() > 1:
        distributed.leave(status)
    sys.exit(status)
