"""`jaxmlic data prepare` on broken inputs: never a traceback, never a hang, never a silent drop.

Each case is made from (kind, seed) by `fuzz.make(kind, seed)` or `fuzz_images.image(seed)`; a failure names them.
"""

import collections
import contextlib
import resource
import signal
import time

import fuzz
import fuzz_images
import numpy as np
import pytest

from jaxmlic.data import datasets, image
from jaxmlic.data.loader import View
from jaxmlic.data.prepare import writer
from jaxmlic.inputs.images import ImageReader

QUICK, QUICK_IMAGES = 30, 120
FULL = dict.fromkeys(fuzz.KINDS, 1000) | {"coco": 1500, "table": 1500, "jsonl": 1500, "archive": 1500, "stl10": 500}
FULL |= {"cifar10": 500}
FULL_IMAGES = 2000
WHOLE = 10
"""One case in so many writes its data set; the others stop before the writer."""

SECONDS = 30
"""Longer than this is a hang (the largest images that are allowed take ten)."""

MEMORY = 12 << 30


@contextlib.contextmanager
def time_limit(what):
    def hang(*_):
        raise TimeoutError(f"{what} takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def memory_limit():
    """A bomb ends in MemoryError instead of taking the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def check_cases(kind, seeds, folder, capfd):
    """Run the cases of a kind; the outcomes, counted."""
    outcomes, failures = collections.Counter(), []
    start = time.process_time()
    with fuzz.small_benchmarks():
        for seed in seeds:
            whole = seed % WHOLE == 0
            case = fuzz.make(kind, seed)
            capfd.readouterr()
            with time_limit(f"fuzz.make({kind!r}, {seed})"):
                outcome = fuzz.run(case, folder, whole)
            why = fuzz.broken_promise(case, outcome, whole)
            noise = "".join(capfd.readouterr())  # what libraries write past sys.stderr
            if why or noise:
                failures.append(f"fuzz.make({kind!r}, {seed}), whole={whole}: {(why or noise)[-1500:]}")
            outcomes[outcome.kind] += 1
    with capfd.disabled():
        if len(seeds) > QUICK:
            print(f"\n{kind}: seeds 0 to {len(seeds) - 1}, {dict(outcomes)}, {time.process_time() - start:.0f} s CPU")
    assert not failures, f"{len(failures)} of {len(seeds)}:\n" + "\n".join(failures[:5])
    return outcomes


def check_images(seeds, folder, capfd):
    """Damaged images through `inspect` and `decode`; those taken go into a data set that a Reader reads."""
    counts, taken, failures = collections.defaultdict(collections.Counter), [], []
    for seed in seeds:
        form, way, data = fuzz_images.image(seed)
        with time_limit(f"fuzz_images.image({seed})"):
            accepted, why = fuzz_images.broken_image(data)
        counts[form, way][accepted] += 1
        if why:
            failures.append(f"fuzz_images.image({seed}), {form}, {way}: {why[-1500:]}")
        elif accepted:
            taken.append({"id": str(seed), "image": data, "labels": np.array([seed % 2], np.int8)})
    assert not failures, f"{len(failures)} of {len(seeds)}:\n" + "\n".join(failures[:5])
    capfd.readouterr()
    writer.write("images", folder, ["odd"], {"train": taken}, {}, overwrite=True)
    dataset = datasets.load("images", folder)
    reader = ImageReader(View(dataset, "train", np.arange(len(taken))), 16)
    for at in range(0, len(taken), 50):
        rows = np.arange(at, min(at + 50, len(taken)))
        np.testing.assert_array_equal(reader(rows)["image"][0], image.decode_image(taken[at]["image"], 16))
    return counts


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_some_broken_annotations(kind, tmp_path, capfd):
    outcomes = check_cases(kind, range(QUICK), tmp_path, capfd)
    assert outcomes["refused"] and len(outcomes) > 1  # neither too much nor too little is broken


def test_some_broken_images(tmp_path, capfd):
    counts = check_images(range(1000, 1000 + QUICK_IMAGES), tmp_path, capfd)
    assert {True, False} == {accepted for count in counts.values() for accepted in count}


def test_cases_are_the_same_every_time():
    for kind in fuzz.KINDS:
        one, two = fuzz.make(kind, 7), fuzz.make(kind, 7)
        assert (one.tree, one.sources, one.options) == (two.tree, two.sources, two.options)
    assert fuzz_images.image(7) == fuzz_images.image(7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_broken_annotations(kind, tmp_path, capfd, memory_limit):
    assert sum(FULL.values()) == 10_000
    check_cases(kind, range(FULL[kind]), tmp_path, capfd)


@pytest.mark.slow
def test_broken_images(tmp_path, capfd, memory_limit):
    start = time.process_time()
    counts = check_images(range(FULL_IMAGES), tmp_path, capfd)
    with capfd.disabled():
        print(f"\nimages: seeds 0 to {FULL_IMAGES - 1}, {time.process_time() - start:.0f} s CPU; taken of all:")
        for (form, way), count in sorted(counts.items()):
            print(f"  {form} {way}: {count[True]} of {count.total()}")
