"""The benchmarks that are read from their owners' files: a reader each, and the papers that divide them anew."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxmlic.data.prepare import cifar, coco, nus_wide, paper_splits, voc
from jaxmlic.data.prepare.paper_splits import Divisions
from jaxmlic.data.prepare.sources.files import Files
from jaxmlic.data.prepare.tables.table import Table


@dataclass(frozen=True)
class Benchmark:
    """`read(files, class_order)` gives what the owner publishes, `paper_splits(table)` what papers divide anew."""

    read: Callable[[Files, str], Table]
    paper_splits: Callable[[Table], Divisions] | None = None
    has_class_order: bool = False


BENCHMARKS = {
    "voc2007": Benchmark(lambda files, _: voc.read(files, "2007"), paper_splits.voc2007),
    "voc2012": Benchmark(lambda files, _: voc.read(files, "2012")),
    "coco2014": Benchmark(lambda files, order: coco.read(files, "2014", order), has_class_order=True),
    "coco2017": Benchmark(lambda files, order: coco.read(files, "2017", order), has_class_order=True),
    "nus_wide": Benchmark(lambda files, _: nus_wide.read(files), paper_splits.nus_wide),
    "nus_wide_tags": Benchmark(lambda files, _: nus_wide.read(files, "tags1k"), paper_splits.nus_wide),
    "cifar10": Benchmark(lambda files, _: cifar.read_cifar10(files)),
    "stl10": Benchmark(lambda files, _: cifar.read_stl10(files)),
}


def read(name: str, files: Files, class_order: str = "category_id") -> Table:
    """The table of a benchmark with its owner's splits and those of papers.

    Args:
      name: a key of BENCHMARKS.
      files: the owner's archives or folders.
      class_order: "category_id" or "alphabetical", for those with `has_class_order`.

    Raises:
      UserError: a file is missing or is not the owner's.
    """
    benchmark = BENCHMARKS[name]
    table = benchmark.read(files, class_order)
    if benchmark.paper_splits is not None:
        divisions = benchmark.paper_splits(table)
        table.named_splits |= divisions.named_splits
        table.notes += divisions.notes
    return table
