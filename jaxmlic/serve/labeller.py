"""Labels of images for many requests at a time: what waits is put into one batch of fixed size, by one program."""

import concurrent.futures
import dataclasses
import queue
import threading
from typing import Any

import numpy as np

from jaxmlic.run import Attention, Run, deciding
from jaxmlic.run.predicted import sigmoid

OWN_FORMS = ("weights", "steps")  # attention that the head computes itself; gradients would compile for every request


class FullError(Exception):
    """More images wait than may."""


@dataclasses.dataclass(frozen=True)
class _Waiting:
    pixels: np.ndarray  # uint8 [S, S, 3]
    found: concurrent.futures.Future


class Labeller:
    """A run, and the thread that predicts with it.

    Attributes:
      run: its head is given pixels.
      attention_form: the head's own, "" where it has none.
    """

    def __init__(self, run: Run, batch_size: int, waiting: int):
        run.check_pixel_model()
        self.run = run
        self.attention_form = next((form for form in run.attention_forms if form in OWN_FORMS), "")
        self._deciding, self._batch_size = deciding.of_run(run), batch_size
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(waiting)
        self._adding, self._looking = threading.Lock(), threading.Lock()
        side = run.config.data.image_size
        self._predict(np.zeros((1, side, side, 3), np.uint8))  # compiles before anybody waits
        self._thread = threading.Thread(target=self._work, name="labeller", daemon=True)
        self._thread.start()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the run has and is not used, for the user."""
        return self._deciding.notes

    @property
    def decision(self) -> str:
        """What decides: "decoder", "rule", "thresholds" or "probability 0.5"."""
        return self._deciding.kind

    def submit(self, images: list[np.ndarray]) -> list[concurrent.futures.Future]:
        """Futures of each image's `describe`d prediction. FullError, and nothing is done, where too many wait."""
        waiting = [_Waiting(pixels, concurrent.futures.Future()) for pixels in images]
        with self._adding:  # nobody else fills the room that is counted
            if self._queue.maxsize - self._queue.qsize() < len(waiting):
                raise FullError
            for one in waiting:
                self._queue.put_nowait(one)
        return [one.found for one in waiting]

    def attention(self, encoded: bytes) -> Attention:
        """Where the head looks in an image, as its file has it; one request at a time."""
        with self._looking:
            return self.run.attention(encoded, self.attention_form)

    def close(self) -> None:
        """Ends the thread; what waits is labelled before."""
        with self._adding:
            self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, last = [first], False
            while len(batch) < self._batch_size and not last:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                last = more is None
                batch += [] if more is None else [more]
            batch = [one for one in batch if one.found.set_running_or_notify_cancel()]
            try:
                found = self._predict(np.stack([one.pixels for one in batch])) if batch else []
            except Exception as error:  # of the device; every request must get an answer
                for one in batch:
                    one.found.set_exception(error)
            else:
                for one, labels in zip(batch, found, strict=True):
                    one.found.set_result(labels)
            if last:
                return

    def _predict(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """Of uint8 [N, S, S, 3], for each image: labels with probabilities, most probable first, all scores, path."""
        found = self.run.predict_pixels(pixels, self._batch_size)
        names, chosen = self.run.class_names, self._deciding.choose(found)
        chances = sigmoid(self._deciding.logits(found.scores))
        described = []
        for i in range(len(pixels)):
            order = np.argsort(-chances[i], kind="stable").tolist()
            one: dict[str, Any] = {
                "labels": [
                    {"name": names[c], "probability": round(float(chances[i, c]), 6)} for c in order if chosen[i, c]
                ],
                "probabilities": {names[c]: round(float(chances[i, c]), 6) for c in order},
                "scores": {names[c]: float(found.scores[i, c]) for c in order},
            }
            if found.path is not None:
                one["path"] = [names[c] for c in found.path[i].tolist() if c < len(names)]
            described.append(one)
        return described
