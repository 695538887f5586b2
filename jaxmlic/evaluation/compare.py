"""Score files side by side, `jaxmlic compare`: the same images, the same protocols, and how far chance could go."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from jaxmlic import metrics
from jaxmlic.errors import UserError, unknown
from jaxmlic.evaluation import ensemble, score_facts, score_file
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.labels.names import check_same_classes
from jaxmlic.metrics import bootstrap
from jaxmlic.metrics.weighted import NUMBERS, WeightedReport

TESTS = ("bootstrap", "permutation")
LEVEL, SIGNIFICANT = 0.95, 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One score file.

    Attributes:
      name: short, for tables.
      path: the file.
      own: as it was written.
      common: the images that all files have, in the order of the first file's, with its labels and its columns.
      own_numbers: `metrics.evaluate` of `own` by its own protocol, threshold and classes.
    """

    name: str
    path: str
    own: ScoreFile
    common: ScoreFile
    own_numbers: dict


@dataclasses.dataclass(frozen=True)
class PairTest:
    """Is a number of the first model other than chance makes it, against the second?

    Attributes:
      a, b: names of the files; the difference is a - b.
      protocol, number: what is compared.
      difference: on all images.
      low, high: percentile interval of the differences over resamples of the images.
      p: two-sided p value.
      p_holm: adjusted for all tests of the comparison.
    """

    a: str
    b: str
    protocol: str
    number: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float = float("nan")


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found.

    Attributes:
      members: the files.
      num_images: that all of them have.
      notes: why numbers of the files differ.
      warnings: why a number should not be trusted.
      reports: {protocol: {name: what `metrics.evaluate` returned}}, on the common images.
      intervals: {protocol: {name: {number: (low, high)}}}.
      tests: of pairs.
      test: "bootstrap" or "permutation".
      draws: resamples, and arrangements.
    """

    members: list[Member]
    num_images: int
    notes: list[str]
    warnings: list[str]
    reports: dict[str, dict[str, dict]]
    intervals: dict[str, dict[str, dict[str, tuple[float, float]]]]
    tests: list[PairTest]
    test: str
    draws: int


def compare(
    paths: Sequence[str],
    names: Sequence[str],
    *,
    protocol: str | None = None,
    numbers: Sequence[str] = ("mAP", "CF1", "OF1"),
    probability: float | None = None,
    all_pairs: bool = False,
    test: str = "bootstrap",
    draws: int = 1000,
    seed: int = 0,
    start: Callable[[int], Callable[[int], None]] = lambda total: lambda done: None,
) -> Comparison:
    """Compares score files under named protocols on the images that all of them have.

    Args:
      paths: score files; one alone gets its intervals.
      names: short ones for tables, distinct.
      protocol: names with commas between them; "all" for `metrics.PROTOCOLS`; None for those of the files.
      numbers: those of NUMBERS that get intervals and tests.
      probability: from which on a label is predicted, in all files; None for each file's own threshold.
      all_pairs: test every pair, not only the first file against each other one.
      test: one of TESTS.
      draws: resamples of the images; 0 for no intervals and no tests.
      seed: of the draws.
      start: called once with the number of steps to do; what it returns gets each number of steps done.

    Raises:
      UserError: files that cannot be compared, unknown protocols or numbers.
    """
    for number in numbers:
        if number not in NUMBERS:
            raise unknown("number", number, NUMBERS)
    members, notes = load(paths, names)
    first = members[0]
    min_positives, untrained = ensemble.counted_classes(first.path, first.own)
    classes = np.array([name not in untrained for name in first.common.class_names], bool)
    rules = {"classes": classes, "min_positives": min_positives}
    found: dict[str, dict[str, metrics.Decisions]] = {}
    skipped: dict[str, list[str]] = {}
    for name in protocols_of(members, protocol):
        found[name] = {}
        for member in members:
            scores = member.common
            if not scores.decides(name):
                skipped.setdefault(name, []).append(member.name)
                continue
            threshold = _threshold(scores, probability)
            found[name][member.name] = metrics.decisions(
                scores.scores, scores.labels, name, threshold=threshold, chosen=scores.chosen, **rules
            )
    found = {name: own for name, own in found.items() if own}
    if not found:
        raise UserError(
            f"protocol {', '.join(skipped)}: none of the files has {' or '.join(map(_chooser, skipped))} labels; "
            "choose another with --protocol"
        )
    notes += [
        f"protocol {name}: {', '.join(without)}: no {_chooser(name)[2:]} labels in the file"
        for name, without in skipped.items()
        if name in found
    ]
    reports = {
        name: {
            member.name: metrics.evaluate(
                member.common.scores,
                member.common.labels,
                name,
                threshold=_threshold(member.common, probability),
                chosen=member.common.chosen,
                **rules,
            )
            for member in members
            if member.name in own
        }
        for name, own in found.items()
    }
    shared = next(iter(next(iter(found.values())).values()))  # positives and classes are those of all
    warnings = score_facts.warnings([(m.name, m.own, m.common) for m in members], shared)
    intervals, tests = {}, []
    if draws:
        pairs = _pairs([member.name for member in members], all_pairs)
        permutations = len(pairs) if test == "permutation" else 0
        advance = start(draws * (len(members) + 4 * permutations))
        resampled = _resample(found, [member.name for member in members], len(first.common.ids), draws, seed, advance)
        intervals = {
            protocol: {
                name: {number: bootstrap.interval(values[number], LEVEL) for number in NUMBERS}
                for name, values in own.items()
            }
            for protocol, own in resampled.items()
        }
        tests = _test_pairs(found, reports, resampled, pairs, numbers, test, draws, seed, advance)
        needed = int(np.ceil(2 * len(tests) / SIGNIFICANT))
        if draws < needed:
            warnings.append(
                f"{draws:,} draws cannot give a p below {2 / (draws + 1):.2g}, hence none below {SIGNIFICANT} that is "
                f"adjusted for {len(tests)} tests: give --draws={needed}, or fewer --numbers and protocols"
            )
    return Comparison(members, len(first.common.ids), notes, warnings, reports, intervals, tests, test, draws)


def load(paths: Sequence[str], names: Sequence[str]) -> tuple[list[Member], list[str]]:
    """The files and what they have in common, and notes on where they differ.

    Raises UserError for files of other classes, without a common image, with an image twice, or given twice.
    """
    files = [score_file.load(path) for path in paths]
    for path, scores in zip(paths, files, strict=True):
        ids, counts = np.unique(scores.ids, return_counts=True)
        if (counts > 1).any():
            raise UserError(f"{path}: image {str(ids[counts > 1][0])!r} occurs twice; evaluate a split of its own")
        if sorted(scores.class_names) != sorted(files[0].class_names):
            check_same_classes(files[0].class_names, scores.class_names, paths[0], path)
    shared = files[0].ids
    for scores in files[1:]:
        shared = shared[np.isin(shared, scores.ids)]
    if not len(shared):
        raise UserError(
            f"{', '.join(paths)}: no image is in all of them; evaluate the runs on the same split of one data set"
        )
    notes, members = [], []
    for path, name, scores in zip(paths, names, files, strict=True):
        common, own_notes = align(files[0], scores, shared, names[0])
        notes += [f"{name}: {note}" for note in own_notes]
        members.append(Member(name, path, scores, common, _own_numbers(path, scores)))
    facts = [score_facts.facts(scores) for scores in files]
    return members, [*notes, *score_facts.differences(names, facts)]


def align(first: ScoreFile, other: ScoreFile, shared: np.ndarray, first_name: str) -> tuple[ScoreFile, list[str]]:
    """The `shared` images of a file with the first one's columns and labels, and notes on what was changed."""
    notes = []
    if other.class_names != first.class_names:
        moved = sum(a != b for a, b in zip(first.class_names, other.class_names, strict=True))
        notes.append(f"its classes are in another order; {moved} columns are put into that of {first_name}")
    if len(shared) < len(other.ids):
        notes.append(f"{len(other.ids):,} images, {len(shared):,} of them in all files: only these are compared")
    cells = np.ix_(_rows(other.ids, shared), [other.class_names.index(name) for name in first.class_names])
    labels = first.labels[_rows(first.ids, shared)]
    different = np.count_nonzero(other.labels[cells] != labels)
    if different:
        notes.append(
            f"{different:,} labels ({different / labels.size:.2%}) differ from those of {first_name}, which count below"
        )
    threshold = other.threshold if np.ndim(other.threshold) == 0 else other.threshold[cells[1][0]]
    return dataclasses.replace(
        other,
        scores=other.scores[cells],
        labels=labels,
        ids=shared,
        class_names=list(first.class_names),
        threshold=threshold,
        chosen=None if other.chosen is None else other.chosen[cells],
    ), notes


def protocols_of(members: Sequence[Member], wanted: str | None) -> list[str]:
    """Canonical names of the protocols to compare under; see `compare`."""
    if wanted == "all":
        return list(metrics.PROTOCOLS)
    given = wanted.split(",") if wanted else [member.own.protocol for member in members]
    return list(dict.fromkeys(metrics.get_protocol(name).name for name in given))


def _rows(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted id is in `ids`."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], wanted)]


def _chooser(protocol: str) -> str:
    return "a learned rule's" if metrics.get_protocol(protocol).by_rule else "a decoder's"


def _own_numbers(path: str, scores: ScoreFile) -> dict:
    min_positives, untrained = ensemble.counted_classes(path, scores)
    classes = np.array([name not in untrained for name in scores.class_names], bool)
    protocol = scores.protocol
    if not scores.decides(protocol):
        kind = _chooser(protocol)[2:]
        raise UserError(f"{path}: reports by protocol {protocol} but holds no {kind} labels; evaluate its run again")
    return metrics.evaluate(
        scores.scores,
        scores.labels,
        protocol,
        threshold=scores.threshold,
        chosen=scores.chosen,
        classes=classes,
        min_positives=min_positives,
    )


def _threshold(scores: ScoreFile, probability: float | None) -> float | np.ndarray | None:
    if probability is None:
        return scores.threshold
    return (
        probability if score_facts.are_probabilities(scores.scores) else float(np.log(probability / (1 - probability)))
    )


def _pairs(names: Sequence[str], all_pairs: bool) -> list[tuple[str, str]]:
    firsts = names if all_pairs else names[:1]
    return [(a, b) for i, a in enumerate(firsts) for b in names[i + 1 :]]


def _resample(found, names: Sequence[str], num_images: int, draws: int, seed: int, advance) -> dict:
    """{protocol: {name: {number: float64 [draws]}}}, all on the same resamples."""
    own_protocols = {name: [protocol for protocol, own in found.items() if name in own] for name in names}
    present = [name for name in names if own_protocols[name]]
    reports = [WeightedReport([found[protocol][name] for protocol in own_protocols[name]]) for name in present]
    drawn = bootstrap.bootstrap(reports, num_images, draws, seed, advance)
    resampled: dict[str, dict[str, dict[str, np.ndarray]]] = {protocol: {} for protocol in found}
    for name, values in zip(present, drawn, strict=True):
        for protocol, own in zip(own_protocols[name], values, strict=True):
            resampled[protocol][name] = own
    return resampled


def _test_pairs(found, reports, resampled, pairs, numbers, test: str, draws: int, seed: int, advance) -> list[PairTest]:
    tests: dict[tuple, PairTest] = {}
    for a, b in pairs:
        shared = [protocol for protocol, own in found.items() if a in own and b in own]
        null = {}
        if test == "permutation" and shared:
            arrangements = bootstrap.permute_pairs(
                [found[protocol][a] for protocol in shared],
                [found[protocol][b] for protocol in shared],
                draws,
                seed,
                lambda done: advance(4 * done),
            )
            null = dict(zip(shared, arrangements, strict=True))
        for protocol in shared:
            for number in numbers:
                difference = reports[protocol][a][number] - reports[protocol][b][number]
                drawn = resampled[protocol][a][number] - resampled[protocol][b][number]
                low, high = bootstrap.interval(drawn, LEVEL)
                if test == "permutation":
                    exact = bootstrap.is_exact(len(found[protocol][a].scores), draws)
                    p = bootstrap.permutation_p(difference, null[protocol][number], exact)
                else:
                    p = bootstrap.bootstrap_p(drawn)
                # Protocols share rules: the same mAP under another decision is no further test.
                tests.setdefault(
                    (a, b, number, difference, low, high), PairTest(a, b, protocol, number, difference, low, high, p)
                )
    adjusted = bootstrap.holm([one.p for one in tests.values()])
    return [dataclasses.replace(one, p_holm=p) for one, p in zip(tests.values(), adjusted, strict=True)]
