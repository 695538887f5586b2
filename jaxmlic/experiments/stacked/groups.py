"""Runs handed over by a sweep: opened, divided into groups and trained, each group in one program."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxmlic import sharding, storage
from jaxmlic.errors import UserError
from jaxmlic.experiments import runs
from jaxmlic.experiments.stacked import numbers
from jaxmlic.experiments.stacked.fit import Group
from jaxmlic.experiments.stacked.lanes import Lane, open_lane


@dataclasses.dataclass(frozen=True)
class Request:
    """A run on stored features: how messages name it, its config and folder, and what trackers put it under."""

    title: str
    config: ConfigDict
    workdir: Path
    group: str


def train(requests: Sequence[Request], report: Callable[[str], None]) -> tuple[dict[str, str], int | None]:
    """Trains and evaluates the runs: (why runs failed, by title; the signal that stopped it or None).

    A run whose shapes or structure no other has trains alone.
    """
    first = requests[0].config.train
    sharding.use_cpu_devices(first.cpu_devices, first.batch_size)
    mesh = sharding.make_mesh(jax.devices()[:1])
    failures, lanes, by_title = {}, [], {request.title: request for request in requests}
    try:
        for request in requests:
            try:
                lane, notes = open_lane(request.title, request.config, request.workdir, request.group, mesh)
            except UserError as error:
                failures[request.title] = str(error)
                continue
            lanes.append(lane)
            for note in notes:
                report(f"{request.title}: {note}")
        for group in numbers.divide(lanes):
            if len(group) > 1:
                stopped = _train_group(group, report)
                failures |= {lane.title: lane.failure for lane in group if lane.failure}
            else:
                stopped = _train_alone(by_title[group[0].title], group[0], failures, report)
            if stopped is not None:
                return failures, stopped
        return failures, None
    finally:
        for lane in lanes:
            lane.close()


def _train_group(lanes: Sequence[Lane], report: Callable[[str], None]) -> int | None:
    try:
        group = Group(lanes, report)
        stopped = group.fit()
        for lane in lanes:
            runs.draw_curves(lane.workdir, report)
        if stopped is None:
            group.evaluate()
        return stopped
    except runs.FAILURES as error:  # such as a full disk or device
        for lane in lanes:
            lane.failure = lane.failure or storage.reason(error)
        return None


def _train_alone(request: Request, lane: Lane, failures: dict[str, str], report: Callable[[str], None]) -> int | None:
    report(f"{lane.title} trains alone: no other run has its structure")
    lane.close()
    try:
        return runs.run_one(request.config, request.workdir, report, request.group)[1]
    except runs.FAILURES as error:
        failures[request.title] = storage.reason(error)
        return None
