"""The examples in docstrings of the public functions give what they show."""

import doctest
import importlib

import pytest

MODULES = {
    "jaxmlic.decode.search": 1,
    "jaxmlic.labels.graph": 2,
    "jaxmlic.losses.pairwise": 1,
    "jaxmlic.losses.pointwise": 2,
    "jaxmlic.metrics.report": 1,
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name):
    module = importlib.import_module(name)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    examples = [found for found in finder.find(module) if found.examples]
    assert len(examples) == MODULES[name]
    for example in examples:
        runner.run(example)
    assert runner.failures == 0
