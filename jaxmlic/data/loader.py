"""From a prepared data set to batches: split selection, host decoding, shuffling, padding; grain keeps the position.

A batch is a dict of `image` uint8 [B, S, S, 3], `labels` int8 [B, C] in {1, 0, -1}, `mask` bool [B] (False = padding),
in evaluation `id` text [B] and, where training has weighted targets, `weight` float32 [B]. B is this host's share of
the global batch.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from jaxmlic.data import datasets
from jaxmlic.data.order import EpochOrder
from jaxmlic.errors import UserError, check_choice
from jaxmlic.labels.stratify import stratified_split

Batch = dict[str, np.ndarray]

_ENDLESS = 2**62  # steps
_CHUNK_BYTES, _CHUNK_STEPS = 4 << 20, 64  # of the batches that are gathered at once
DIFFICULT = {"ignore": -1, "positive": 1, "negative": 0}
SELECTION = "selection"  # the examples that selected a run's checkpoint, whatever the data set's splits are called


@dataclasses.dataclass(frozen=True)
class Targets:
    """What training gets in place of the stored labels: labels int8 [N, C] and, perhaps, weights float32 [N]."""

    labels: np.ndarray
    weights: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class View:
    """Some examples of a split, stored or named ("NAME/PART"), in the order of `indices` int64 [N] into its records."""

    dataset: datasets.Dataset
    split: str
    indices: np.ndarray
    targets: "Targets | None" = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        """int8 [N, C]: the targets' where there are any, else as stored."""
        return self.stored_labels if self.targets is None else self.targets.labels

    @property
    def stored_labels(self) -> np.ndarray:
        """int8 [N, C], as the data set has them."""
        return self.dataset.labels(self.split)[self.indices]

    @property
    def ids(self) -> np.ndarray:
        """Text [N]."""
        return self.dataset.ids(self.split)[self.indices]

    def where(self) -> str:
        """How messages name it."""
        return f"split {self.split!r} of data set {self.dataset.name!r}"


def select(config: ConfigDict, dataset: datasets.Dataset, split: str) -> View:
    """What `config.drop_empty` and `config.limit` leave of a split; UserError if there is no such split, or nothing."""
    rows = np.arange(dataset.count(split))
    if config.drop_empty:
        rows = rows[(dataset.labels(split) == 1).any(axis=1)]
        if not len(rows):
            raise UserError(f"config.data.drop_empty: no example of {split!r} of {dataset.name!r} has a label")
    return View(dataset, split, rows[: config.limit] if config.limit else rows)


def train_and_val(config: ConfigDict, dataset: datasets.Dataset, seed: int) -> tuple[View, View | None]:
    """The training examples and those for model selection, which are carved from train unless a split is named.

    The carved part is stratified over labels and depends on `seed` alone. None when `val_fraction` is 0.
    """
    train = select(config, dataset, config.train_split)
    if config.val_split:
        return train, select(config, dataset, config.val_split)
    if config.val_fraction == 0:
        return train, None
    if not 0 < config.val_fraction < 1:
        raise UserError(f"config.data.val_fraction = {config.val_fraction}; it lies in 0 <= fraction < 1")
    rest, part = stratified_split(dataset.dividing(train.labels), config.val_fraction, seed)
    if not len(part) or not len(rest):
        raise UserError(
            f"config.data.val_fraction = {config.val_fraction} of {len(train)} examples leaves a part empty"
        )

    def pick(rows: np.ndarray) -> View:
        return dataclasses.replace(train, indices=train.indices[rows])

    return pick(rest), pick(part)


def find_view(config: ConfigDict, dataset: datasets.Dataset, seed: int, split: str) -> View:
    """The view that `split` names in a run: SELECTION is its own selection part, anything else a split on disk.

    "val" is the selection part too, where it was carved and the data set has no split of that name.
    """
    if split == SELECTION or (split == "val" and not config.val_split and "val" not in dataset.splits):
        view = train_and_val(config, dataset, seed)[1]
        if view is None:
            raise UserError("this run has no validation part: config.data.val_fraction is 0")
        return view
    return select(config, dataset, split)


@dataclasses.dataclass(frozen=True)
class Stored:
    """Arrays on disk or in memory that a reader takes its batches from.

    Attributes:
      key: the same for readers of the same arrays.
      records: int64 [N], which record each of the view's examples is.
      read: records int64 [M] -> values [M, ...].
      unpack: values [B, ...], numpy or JAX -> the arrays of a batch.
    """

    key: tuple
    records: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]
    unpack: Callable[[np.ndarray], Batch]


class RowReader:
    """Rows int [B] of a view -> a batch, by `reader(rows)`; what is read is the subclass's own."""

    stored: Stored | None = None  # None where a batch is computed, such as decoded photographs

    def __init__(self, view: View):
        self.view = view
        self.labels = view.labels
        self.weights = None if view.targets is None else view.targets.weights

    def __len__(self) -> int:
        return len(self.view)

    def hold(self) -> bool:
        """Whether all values lie in memory, so that a batch is taken from an array; a small reader reads them now."""
        return False

    def batch(self, rows: np.ndarray, **arrays: np.ndarray) -> Batch:
        """`arrays` [B, ...] with the labels of the rows, their weights if there are any, and an all-true mask."""
        weights = {} if self.weights is None else {"weight": self.weights[rows]}
        return arrays | {"labels": self.labels[rows], "mask": np.ones(len(rows), bool)} | weights


def train_iterator(
    reader: RowReader,
    batch_size: int,
    *,
    seed: int,
    threads: int = 2,
    difficult: str = "ignore",
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless shuffled batches of this host; every epoch in another order, all from `seed`. Its state can be saved.

    The global batch is drawn first and then divided, so it is the same on any number of hosts, and so is the state.

    Args:
      batch_size: global; this host yields batch_size / process_count examples.
      difficult: what an unknown label counts as: "ignore" (stays -1), "positive" or "negative".

    Raises:
      UserError: fewer examples than a batch, or a batch that the hosts cannot share equally.
    """
    if len(reader) < batch_size:
        raise UserError(
            f"{reader.view.where()} has {len(reader)} training examples, "
            f"fewer than config.train.batch_size = {batch_size}"
        )
    if batch_size % process_count:
        raise UserError(f"config.train.batch_size = {batch_size} cannot be divided over {process_count} hosts")
    check_choice("data.difficult", difficult, DIFFICULT)

    order, share = EpochOrder(len(reader), seed), batch_size // process_count

    def read(step: int, steps: int = 1) -> Batch:
        firsts = (i * batch_size + process_index * share for i in range(step, step + steps))  # this host's parts
        batch = reader(np.concatenate([order.rows(first, first + share) for first in firsts]))
        return batch | {"labels": replace_unknown(batch["labels"], difficult)}

    if reader.hold():
        return _GatheredBatches(read, share)
    options = grain.ReadOptions(num_threads=max(1, threads), prefetch_buffer_size=2 * max(1, threads))
    return iter(grain.MapDataset.range(_ENDLESS).map(read).to_iter_dataset(options))


class _GatheredBatches(grain.DatasetIterator):
    """Batches from arrays in memory, many steps at once: a thread gathers the next ones while these are used.

    For a small head grain's own iterator takes longer than its step. Positions are grain's.

    Args:
      read: (step, number of steps) -> their batches in one.
      share: examples of a batch.
    """

    def __init__(self, read: Callable[[int, int], Batch], share: int):
        super().__init__()
        self._read, self._share = read, share
        self._pool = ThreadPoolExecutor(1)
        size = sum(array.nbytes for array in read(0, 1).values())
        self._steps = int(np.clip(_CHUNK_BYTES // max(size, 1), 1, _CHUNK_STEPS))
        self.set_state({"next_index": 0})

    def __next__(self) -> Batch:
        if not self._ready:
            self._ready.extend(self._ahead.result())
            self._ahead = self._pool.submit(self._gather, self._next + len(self._ready))
        self._next += 1
        return self._ready.popleft()

    def _gather(self, step: int) -> list[Batch]:
        whole, share = self._read(step, self._steps), self._share
        starts = range(0, self._steps * share, share)
        return [{name: array[start : start + share] for name, array in whole.items()} for start in starts]

    def get_state(self) -> dict[str, Any]:
        """The number of the next step."""
        return {"next_index": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a step; what was gathered ahead is dropped."""
        self._next, self._ready = int(state["next_index"]), collections.deque()
        self._ahead = self._pool.submit(self._gather, self._next)


def replace_unknown(labels: np.ndarray, difficult: str) -> np.ndarray:
    """Labels int8 with what `config.data.difficult` makes of the unknown ones."""
    return np.where(labels == -1, np.int8(DIFFICULT[difficult]), labels)


def eval_batches(
    reader: RowReader, batch_size: int, *, threads: int = 2, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Every example once, in order over the hosts' shares; all hosts yield equally many batches of equal size.

    The rest of the last batch repeats row 0 with mask False.
    """
    per_host = -(-batch_size // process_count)
    steps = -(-len(reader) // (per_host * process_count))

    def read(step: int) -> Batch:
        start = (step * process_count + process_index) * per_host
        rows = np.arange(start, start + per_host)
        mask = rows < len(reader)
        rows = np.where(mask, rows, 0)
        return reader(rows) | {"mask": mask, "id": reader.view.ids[rows]}

    options = grain.ReadOptions(num_threads=max(1, threads), prefetch_buffer_size=2 * max(1, threads))
    return iter(grain.MapDataset.range(steps).map(read).to_iter_dataset(options))
