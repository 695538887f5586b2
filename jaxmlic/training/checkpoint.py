"""Checkpoints: state, data position and score in one step folder (Orbax), the best and the last two kept.

Into gs:// Orbax writes by itself; the object commit_success.txt, written last, makes a checkpoint whole. Into s3:// it
cannot write, so there it works in a local folder, whose step folders are copied (see `storage.Mirror`).
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import absl.logging
import grain
import jax
import orbax.checkpoint as ocp

from jaxmlic import distributed, storage
from jaxmlic.errors import UserError
from jaxmlic.training.run_states import CHECKPOINTS

_policy = ocp.checkpoint_managers

# The replicas of an array save a slice each; for a small array that only compiles a program for every slice.
_MIN_SLICE_BYTES = 4 << 20


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's warnings of what is on purpose: its handler replaced, a folder read only, metadata not there."""
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(min(verbosity, absl.logging.ERROR))
    try:
        yield
    finally:
        absl.logging.set_verbosity(verbosity)


def _save_small_arrays_whole() -> None:
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES)
    with _quiet():
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


_save_small_arrays_whole()


class Damaged(UserError):
    """A checkpoint that cannot be read."""


def check_place(workdir: str | Path) -> None:
    """UserError where checkpoints cannot be written: no permission, several processes and s3://."""
    storage.check_writable(workdir)
    _check_access(workdir, os.R_OK | os.W_OK | os.X_OK, "written")
    if _needs_mirror(workdir) and distributed.count() > 1:
        raise UserError(
            f"{workdir}: the checkpoints of {distributed.count()} processes cannot be written to s3://; use a "
            "--workdir in gs:// or in a folder that all of them share"
        )


def _check_access(workdir: str | Path, mode: int, what: str) -> None:
    folder = storage.resolve(workdir) / CHECKPOINTS
    if not storage.is_bucket(workdir) and os.path.isdir(folder) and not os.access(folder, mode):
        raise UserError(f"{folder}: cannot be {what} (Permission denied); run as its owner, or change its permissions")


def _needs_mirror(workdir: str | Path) -> bool:
    return str(workdir).startswith("s3:")


class Checkpoints:
    """The checkpoints of one run folder.

    `metric` names the score that the best one has most of. Saves are synchronous up to the copy off the device and
    finish in the background; `close` waits. A checkpoint exists only once it is whole (Orbax renames it into place),
    and older ones are removed only after that. The last two are kept, so that there is another where a file of the
    last one was lost; with `keep_steps` also those whose step is a multiple of that.
    """

    def __init__(self, workdir: str | Path, metric: str = "mAP", read_only: bool = False, keep_steps: int = 0):
        self.folder = storage.resolve(workdir) / CHECKPOINTS
        self.metric = metric
        self._mirror = storage.Mirror(self.folder) if _needs_mirror(workdir) else None
        if self._mirror:
            self._copying, self._copied = ThreadPoolExecutor(1), Future()
            self._copied.set_result(None)
            self._mirror.pull()
        if read_only and not self.folder.is_dir():
            raise UserError(f"{workdir} holds no checkpoints; train there first: jaxmlic train --workdir={workdir} ...")
        if read_only:
            _check_access(workdir, os.R_OK | os.X_OK, "read")
        best = _policy.BestN(get_metric_fn=lambda metrics: metrics[metric], n=1, keep_checkpoints_without_metrics=False)
        kept = [_policy.LatestN(2), best, *([_policy.EveryNSteps(keep_steps)] if keep_steps else [])]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_policy.AnyPreservationPolicy(kept),
            best_fn=lambda metrics: metrics[metric],
            best_mode="max",
            **({"read_only": True, "create": False, "save_interval_steps": 0} if read_only else {}),
        )
        self._local = self._mirror.path if self._mirror else self.folder  # where Orbax reads and writes
        self._notes = self._check_scores(read_only)
        with _quiet():
            self.manager = ocp.CheckpointManager(self._local, options=options)
        written = getattr(self.manager, "_wait_for_checkpointers", None)
        if written and distributed.count() > 1:
            # Where a process cannot write, Orbax raises in its own thread after a barrier that others, which wait for
            # this one's part at another barrier, do not come to for twenty minutes.
            self.manager._wait_for_checkpointers = lambda: self._guarded(written)

    def save(self, step: int, state: Any, iterator: Any | None, metrics: dict[str, float] | None = None) -> None:
        """Saves `state` (a tree of arrays) and the position of the grain `iterator` (None where nothing will continue)
        under `step`, once; a checkpoint without a score is replaced by one with it.

        Raises UserError when the disk is full; the checkpoints that were there stay.
        """
        if step in self.manager.all_steps():
            if metrics is None or self.has_score(step):
                return
            self.wait()
            self._guarded(lambda: self.manager.delete(step))
            if self._mirror:
                self._mirror.forget([str(step)])
        data = {} if iterator is None else {"data": grain.checkpoint.CheckpointSave(iterator)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), **data)
        if self._mirror:
            self._copied.result()
        self._guarded(lambda: self.manager.save(step, args=args, metrics=metrics))
        if self._mirror:
            self._copied = self._copying.submit(self._copy)

    def _copy(self) -> None:
        self._guarded(self.manager.wait_until_finished)
        self._mirror.push()

    def wait(self) -> None:
        """Returns when everything saved so far is whole in the run folder."""
        if self._mirror:
            self._copied.result()
        self._guarded(self.manager.wait_until_finished)

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, the first one first."""
        return sorted(self.manager.all_steps())

    def latest(self) -> int | None:
        """Step of the last whole checkpoint, or None."""
        return self.manager.latest_step()

    def has_score(self, step: int) -> bool:
        """Whether the checkpoint of a step has a score."""
        self.wait()
        return self.manager.metrics(step) is not None

    def best(self) -> int | None:
        """Step with the best metric; without any metric the last one; None without checkpoints."""
        step = self.manager.best_step()
        return self.latest() if step is None else step

    def restore(self, step: int, target: Any, iterator: Any | None = None) -> Any:
        """The state saved under `step`, laid out as `target` (arrays or ShapeDtypeStructs with shardings).

        With `iterator`, its position is restored in place. Devices and hosts may be others than those that saved.

        Raises:
          Damaged: a file of it is missing or cannot be read.
          UserError: it is of another model.
        """
        self._check_layout(step, target)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        try:
            with _quiet():
                state = self.manager.restore(step, args=items)["state"]
            if iterator is not None:
                # All hosts read the same global batches, so any one's position is everybody's.
                saved = min((self._local / str(step) / "data").glob("process_*-of-*.json"))
                iterator.set_state(json.loads(saved.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(step, error) from None
        return state

    def restore_latest(
        self, target: Any, iterator: Any, report: Callable[[str], None] = lambda line: None
    ) -> tuple[int, Any]:
        """(step, state) of the last checkpoint that can be read; see `restore`.

        Damaged ones after it are renamed, so that training can save these steps anew; `report` gets a line about each.
        Raises Damaged where none can be read.
        """
        for note in self._notes:
            report(note)
        steps = self.steps()[::-1]
        for number, step in enumerate(steps):
            state, mistake = None, ""
            try:
                state = self.restore(step, target, iterator)
            except Damaged as error:
                mistake = str(error)
            mistakes = [text for text in distributed.texts(mistake) if text]
            if not mistakes:
                return step, state
            if number + 1 == len(steps):
                raise Damaged(mistakes[0])
            report(f"{mistakes[0]}; continuing from step {steps[number + 1]}, and {step} becomes {step}.damaged")
            self._set_aside([step])
            self.manager.reload()
        raise UserError(f"{self.folder} holds no checkpoint")

    def _check_scores(self, read_only: bool) -> list[str]:
        """Lines about the checkpoints whose scores cannot be read, which end Orbax's manager; they are renamed.

        Raises Damaged where nothing may be renamed, and where there are no others.
        """
        steps, damaged = [int(path.name) for path in self._local.glob("*") if path.name.isdigit()], {}
        for step in steps:
            path = self._local / str(step) / "metrics" / "metrics"
            try:
                if path.exists():
                    json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                damaged[step] = self._damaged(step, error)
        if damaged and (read_only or len(damaged) == len(steps)):
            raise damaged[max(damaged)]
        distributed.wait_for_all("scores read")
        self._set_aside(damaged)
        return [f"{error}; {step} becomes {step}.damaged" for step, error in damaged.items()]

    def _set_aside(self, steps: Collection[int]) -> None:
        """Renames damaged checkpoints, so that training can save their steps anew."""
        for step in steps if distributed.is_main() else ():
            places = (self._local / f"{step}.damaged{number or ''}" for number in itertools.count())
            (self._local / str(step)).rename(next(place for place in places if not place.exists()))
            if self._mirror:
                self._mirror.forget([str(step)])
        if steps:
            distributed.wait_for_all("damaged checkpoints")

    def _check_layout(self, step: int, target: Any) -> None:
        """Compares names and shapes before anything is read, so that a mismatch is one line of ours."""
        folder = self.folder / str(step)
        with _quiet(), ocp.StandardCheckpointer() as reader:
            try:
                found = shapes(reader.metadata(self._local / str(step) / "state").item_metadata.tree)
            except (OSError, ValueError, AttributeError) as error:
                raise self._damaged(step, error) from None
        wanted = shapes(target)
        lists = {
            "only in the model": sorted(wanted.keys() - found.keys()),
            "only in the checkpoint": sorted(found.keys() - wanted.keys()),
            "of another shape": sorted(k for k in wanted.keys() & found.keys() if wanted[k] != found[k]),
        }
        differences = [f"{len(names)} {what} (first: {names[0]})" for what, names in lists.items() if names]
        if differences:
            listed = ", ".join(differences)
            raise UserError(
                f"checkpoint {folder} does not fit this model: {listed}; use the code and config that made it"
            )

    def _damaged(self, step: int, error: Exception) -> Damaged:
        why = " ".join(str(error).split())[:200]
        return Damaged(f"checkpoint {self.folder / str(step)} is damaged ({why}); remove that folder to use the other")

    def close(self) -> None:
        """Waits for pending saves and lets go."""
        self.wait()
        self.manager.close()
        if self._mirror:
            self._copying.shutdown()

    def _guarded(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # the storage layers raise their own types around the system's error
            if is_disk_full(error):
                whole = (int(p.name) for p in self._local.glob("*") if p.name.isdigit())
                last = max(whole, default=None)
                kept = "no earlier checkpoint" if last is None else f"the last good checkpoint is step {last}"
                mistake = (
                    f"{self.folder}: no space left while saving a checkpoint; {kept}; free some space and run the same "
                    "command again to continue from there"
                )
            elif distributed.count() == 1:
                raise
            else:
                mistake = f"{self.folder}: no checkpoint with the other processes ({storage.reason(error)})"
            if distributed.count() > 1:  # which wait for this one's part
                distributed.end_all(mistake)
            raise UserError(mistake) from None


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{"params/classifier/bias": (20,), ...}, the same for a state and for what Orbax tells of a saved one."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(_key_name, path)): tuple(leaf.shape) for path, leaf in leaves}


def _key_name(key: Any) -> str:
    return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", None))))


def is_disk_full(error: BaseException | None) -> bool:
    """True if `error` or what caused it says that the disk (or quota, or file-size limit) is exhausted."""
    marks = ("no space left", "disk quota", "file too large", "resource_exhausted")
    while error is not None:
        if any(mark in str(error).lower() for mark in marks):
            return True
        error = error.__cause__ or error.__context__
    return False
