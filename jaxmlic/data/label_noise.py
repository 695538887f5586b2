"""Wrong training labels on purpose: section 4.4 of CNN-LSTM-RMLC, and four further kinds of noise.

    random   the share `rate` of each class's positives is taken from its images and handed to others: every class has
             as many positives as before, every image as many labels, so that single-label data stay single-label
    images   the share `rate` of the images gets new labels, as many as it had, each known label as likely as any other,
             its own included: the noise of the paper's reference [31]
    missing  the share `rate` of each class's positives becomes negative: what annotators overlook
    flip     the share `rate` of each class's known entries, positive or negative, becomes the other
    unknown  the share `rate` of each class's known entries becomes unknown (-1): labels that nobody recorded

An unknown label (-1) stays unknown. The paper: labels "in a randomly selected subset are updated stochastically,
ensuring ... balanced class label occurrences", and the subset grows with the rate: with one seed, the positives that
a rate takes away are among those of every higher rate.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from jaxmlic.data.loader import Targets, View
from jaxmlic.errors import UserError, check_choice

_TRIES = 32  # places tried at random before all are looked at


def add(config: ConfigDict, view: View, seed: int) -> View:
    """The training view with `config.noise` of `config.noise_rate` in its labels, or as it is for a rate of 0.

    Args:
      config: config.data.
      view: the training examples, whatever is held out for validation gone already.
      seed: for `config.noise_seed` = -1.

    Raises:
      UserError: an unknown kind of noise, a rate outside 0..1, a seed below -1, labels that are no stored ones.
    """
    check_choice("data.noise", config.noise, KINDS)
    if not 0 <= config.noise_rate <= 1:
        raise UserError(f"config.data.noise_rate = {config.noise_rate}; it lies in 0 <= rate <= 1")
    if config.noise_seed < -1:
        raise UserError(f"config.data.noise_seed = {config.noise_seed}; it is 0 or more, or -1 for config.seed")
    if config.noise_rate == 0:
        return view
    if view.targets is not None:
        raise UserError("config.data.noise_rate disturbs stored labels: leave config.data.pseudo_labels empty, or it 0")
    seed = seed if config.noise_seed == -1 else config.noise_seed
    return dataclasses.replace(view, targets=Targets(corrupt(view.labels, config.noise, config.noise_rate, seed)))


def corrupt(labels: np.ndarray, kind: str, rate: float, seed: int) -> np.ndarray:
    """A copy of labels int8 [N, C] with one of KINDS of noise; `rate` in 0..1, the same seed gives the same noise."""
    return KINDS[kind](np.asarray(labels), rate, np.random.default_rng(seed))


def random(labels: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """`rate` of each class's positives move to other images; the sums over rows and over columns stay what they were.

    Positives taken away change places by twos, or threes where no two can: an image loses its own class for one of
    which it has neither a positive nor an unknown label. What finds no partners stays, which takes a class that most
    images have.
    """
    rows, classes = _picked(labels == 1, rate, rng)
    noisy = labels.copy()
    held = classes.copy()  # the class that each place now holds

    def fits(places: np.ndarray | int, label: np.ndarray | int) -> np.ndarray:
        return (labels[rows[places], label] == 0) & (noisy[rows[places], label] == 0)

    def rotate(*places: int) -> None:
        """Each place gets what the next one held."""
        for place in places:
            noisy[rows[place], held[place]] = 0
        held[list(places)] = held[[*places[1:], places[0]]]
        for place in places:
            noisy[rows[place], held[place]] = 1

    def exchange(place: int) -> None:
        every = np.arange(len(rows))
        for others in (rng.integers(len(rows), size=_TRIES), every):
            givers = others[fits(place, held[others])]
            partners = givers[fits(givers, held[place])]
            if len(partners):
                return rotate(place, rng.choice(partners))
        takers = every[fits(every, held[place])]
        for giver in rng.permutation(givers):
            between = takers[fits(giver, held[takers])]
            if len(between):
                return rotate(place, giver, rng.choice(between))

    for place in rng.permutation(len(rows)).tolist():
        if held[place] == classes[place]:
            exchange(place)
    return noisy


def images(labels: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """`rate` of the images, rounded, get as many labels as they have, drawn uniformly from the known ones without
    replacement; a higher rate adds to them, and an image's draw does not depend on the rate."""
    picked = rng.permutation(len(labels))[: int(np.floor(rate * len(labels) + 0.5))]
    keys = rng.random(labels.shape)
    known = labels >= 0
    rank = np.argsort(np.argsort(np.where(known, keys, np.inf), axis=1, kind="stable"), axis=1, kind="stable")
    drawn = (rank < (labels == 1).sum(axis=1, keepdims=True)) & known
    noisy = labels.copy()
    noisy[picked] = np.where(known, drawn, labels)[picked]
    return noisy


def missing(labels: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """`rate` of each class's positives become negatives."""
    noisy = labels.copy()
    noisy[_picked(labels == 1, rate, rng)] = 0
    return noisy


def flip(labels: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """`rate` of each class's known entries become their opposite."""
    noisy = labels.copy()
    picked = _picked(labels >= 0, rate, rng)
    noisy[picked] = 1 - noisy[picked]
    return noisy


def unknown(labels: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """`rate` of each class's known entries become unknown."""
    noisy = labels.copy()
    noisy[_picked(labels >= 0, rate, rng)] = -1
    return noisy


KINDS: dict[str, Callable] = {
    "random": random,
    "images": images,
    "missing": missing,
    "flip": flip,
    "unknown": unknown,
}


def _picked(mask: np.ndarray, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the share `rate` of each column's True entries, rounded; a higher rate adds to them."""
    keys = np.where(mask, rng.random(mask.shape), np.inf)
    count = np.floor(rate * mask.sum(axis=0) + 0.5).astype(int)  # [C]
    rank = np.argsort(np.argsort(keys, axis=0, kind="stable"), axis=0, kind="stable")  # [N, C]
    return np.nonzero(rank < count[None])


def describe(view: View, config: ConfigDict) -> str:
    """One line: how many labels changed."""
    clean, noisy = view.stored_labels, view.labels
    taken, given = int(((clean == 1) & (noisy == 0)).sum()), int(((clean == 0) & (noisy == 1)).sum())
    images = int((clean != noisy).any(axis=1).sum())
    if config.noise == "unknown":
        return (
            f"noise 'unknown', rate {config.noise_rate:g}: {int((clean != noisy).sum()):,} of "
            f"{int((clean >= 0).sum()):,} training labels became unknown, in {images:,} of {len(view):,} images"
        )
    return (
        f"noise {config.noise!r}, rate {config.noise_rate:g}: of {int((clean == 1).sum()):,} training labels {taken:,} "
        f"were taken away and {given:,} wrong ones given, in {images:,} of {len(view):,} images"
    )
