"""One worker of a sweep."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxmlic import distributed, progress, storage
from jaxmlic.config import Entry
from jaxmlic.errors import UserError
from jaxmlic.experiments import runs
from jaxmlic.experiments.stacked import groups
from jaxmlic.experiments.stacked.lanes import reads_arrays
from jaxmlic.experiments.sweeps import results
from jaxmlic.experiments.sweeps.claims import Claims
from jaxmlic.training import run_folder

_WAIT_SECONDS = 2.0  # between two looks at runs that other workers hold


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of a sweep: an entry with a seed, its config and folder."""

    entry: Entry
    seed: int
    config: ConfigDict
    folder: Path

    @property
    def title(self) -> str:
        """How messages and claims name it."""
        return f"{self.entry.name}, seed {self.seed}"


class Worker:
    """Does the jobs that no other worker holds.

    Attributes:
      rows, failed: of the jobs done, by title.
      stopped_in, stopped_by: where a signal stopped it, and which.
    """

    def __init__(self, jobs: Sequence[Job], claims: Claims, most: int, report: Callable[[str], None]):
        self.rows: dict[str, dict] = {}
        self.failed: dict[str, dict] = {}
        self.stopped_in, self.stopped_by = "", None
        self._jobs, self._claims, self._most, self._report = jobs, claims, most, report
        self._before = {job.title: run_folder.failure(job.folder) for job in jobs}  # of earlier calls: tried again
        self._waiting = list(jobs)
        self._started, self._made = time.monotonic(), 0

    def work(self) -> None:
        """Returns when every job is done, by whichever worker, or when a signal came."""
        named = ""
        while self._waiting and not self.stopped_in:
            left = len(self._waiting)
            self._settle()
            if self._most > 1 and self._train_together():
                continue
            for job in list(self._waiting):
                if self._is_ready(job) and not self.stopped_in and self._claims.take(job.title):
                    self._train(job)
                    if self._most > 1:  # others may be ready now, to train together
                        break
            if self._waiting and len(self._waiting) == left and not self.stopped_in:
                titles = "; ".join(job.title for job in self._waiting)
                if titles != named:
                    self._report(f"waiting for other workers, {len(self._waiting)} left: {titles}")
                named = titles
                time.sleep(_WAIT_SECONDS)

    def _settle(self) -> None:
        """Takes what is complete, what failed elsewhere, and second stages without a first from the waiting jobs."""
        for job in list(self._waiting):
            if job not in self._waiting or self._claims.is_held(job.title):
                continue
            found = runs.result_of(job.folder, job.config)
            reason = run_folder.failure(job.folder)
            if found is not None:
                self._finish(job, found)
            elif reason and reason != self._before[job.title]:
                self._fail(job, reason["reason"], keep=False)

    def _is_ready(self, job: Job) -> bool:
        """Whether a job can start; one whose first stage will never be there fails."""
        if job not in self._waiting:
            return False
        if not job.entry.start_from or run_folder.result(job.config.start_from) is not None:
            return True
        first = f"{job.entry.start_from}, seed {job.seed}"
        if not self._claims.is_held(first) and first not in [other.title for other in self._waiting]:
            self._report(self._title(job))
            self._fail(
                job,
                f"it starts from the run in {job.config.start_from}, which is not complete: let "
                f"{job.entry.start_from!r} run first",
            )
        return False

    def _train(self, job: Job) -> None:
        self._report(self._title(job))
        try:
            run_folder.forget_failure(job.folder)
            found, stopped_by = runs.run_one(job.config, job.folder, self._report, job.entry.name)
        except runs.FAILURES as error:
            if isinstance(error, BrokenPipeError) or distributed.describe_loss(error)[0]:
                raise
            if not distributed.all_fail():
                distributed.end_all(f"{job.title}: {storage.reason(error)}")
            self._fail(job, storage.reason(error))
        else:
            if found is None:
                self.stopped_in, self.stopped_by = job.title, stopped_by
            else:
                self._made += 1
                self._finish(job, found)
        finally:
            self._claims.release(job.title)

    def _train_together(self) -> bool:
        """Claims jobs on stored features, as many as may train at once, and trains them; False where none ended."""
        before = len(self._waiting)
        mine: list[Job] = []
        for job in list(self._waiting):
            fits = len(mine) < self._most and self._is_ready(job) and run_folder.result(job.folder) is None
            if fits and _reads_arrays(job) and self._claims.take(job.title):
                run_folder.forget_failure(job.folder)
                mine.append(job)
        if len(mine) > 1:
            self._report(f"{self._title(mine[0])} to {mine[-1].title}: {len(mine)} runs")
            requests = [groups.Request(job.title, job.config, job.folder, job.entry.name) for job in mine]
            failures, self.stopped_by = groups.train(requests, self._report)
            for job in mine:
                if job.title in failures:
                    self._fail(job, failures[job.title])
                elif self.stopped_by is None:
                    found = runs.result_of(job.folder, job.config)
                    if found is not None:
                        self._made += 1
                        self._finish(job, found)
            self.stopped_in = mine[0].title if self.stopped_by is not None else ""
        for job in mine:
            self._claims.release(job.title)
        return len(self._waiting) < before

    def _title(self, job: Job) -> str:
        done = len(self.rows) + len(self.failed)
        text = f"[{done + 1}/{len(self._jobs)}] {job.title}"
        if not self._made:
            return text
        pace = (time.monotonic() - self._started) / self._made
        left = pace * (len(self._jobs) - done)
        return f"{text}  ({progress.clock(pace)} a run, {progress.clock(left)} left)"

    def _finish(self, job: Job, found: dict) -> None:
        self.rows[job.title] = results.row(job.entry, job.seed, found)
        self._waiting.remove(job)

    def _fail(self, job: Job, reason: str, keep: bool = True) -> None:
        """keep: whether the reason goes into the run's folder, for other workers and the tables."""
        self.failed[job.title] = results.failed_row(job.entry, job.seed, reason)
        self._waiting.remove(job)
        if keep:
            run_folder.note_failure(job.folder, reason)
            self._report(f"jaxmlic: {job.title}: {reason}")


def _reads_arrays(job: Job) -> bool:
    """Whether others can train beside it; a mistake in its config is its own failure, when it trains alone."""
    try:
        return reads_arrays(job.config)
    except UserError:
        return False
