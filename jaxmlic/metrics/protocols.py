"""Multi-label metrics under named protocols, in numpy only.

The same word means different numbers in different papers, so every report names the protocol it was made by. A protocol
is an AP rule and a decision rule, written `AP+DECISION`; the usual parts may be left out (`top3_forced` means
`all_point+top3_forced`). Scores are ranked as float32. Labels are int8 in {1 present, 0 absent, -1 unknown}; an unknown
cell is neither a positive, nor a negative, nor counted as predicted, and an image without a positive label does not
enter the means over images. Two papers count otherwise, which the name then says: `top3_forced+unknown_wrong` counts an
unknown label that is picked as a wrong decision, `all_point+empty_zero` an image without a positive label as 0.
"""

import dataclasses
import re
import types
from collections.abc import Collection, Mapping

from jaxmlic.errors import UserError, did_you_mean

_AP_DESCRIPTIONS = {
    "all_point": "all-point AP, not interpolated",
    "voc10": "all-point AP under the precision envelope (VOC 2010 on)",
    "voc07_11pt": "11-point AP (VOC 2007 devkit)",
}


LEARNED = ("learned", "transductive")

_EXTRA = {
    "unknown_wrong": "a picked label that is unknown counts as wrong",
    "empty_zero": "an image without a positive label has precision and recall 0",
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How scores become numbers.

    Attributes:
      name: canonical name, for instance `top3_forced` or `voc07_11pt+top3_forced`.
      ap: `all_point`, `voc10` or `voc07_11pt`.
      decision: `threshold`, `forced`, `thresholded`, `path`, `learned` or `transductive`.
      k: number of labels of a top-k decision, else None.
      description: one line for people.
      unknown_wrong: an unknown label that is picked is a wrong decision (the ensemble paper's VOC 2007 rows).
      empty_zero: precision and recall of an image without a positive label are 0 (Multi-order RNN's code).
    """

    name: str
    ap: str
    decision: str
    k: int | None
    description: str
    unknown_wrong: bool = False
    empty_zero: bool = False

    @property
    def by_rule(self) -> bool:
        """Whether a rule decides that was learned on other images (`jaxmlic thresholds`)."""
        return self.decision in LEARNED

    @property
    def needs_chosen(self) -> bool:
        """Whether scores alone do not decide."""
        return self.decision == "path" or self.by_rule

    @property
    def plain(self) -> str:
        """The name of the protocol without a learned rule: the k best scores, or those from the threshold up."""
        if not self.by_rule:
            return self.name
        extra = [rule for rule in _EXTRA if getattr(self, rule)]
        return _make_protocol(self.ap, "threshold" if self.k is None else "forced", self.k, extra).name


def _make_protocol(ap: str, decision: str, k: int | None, extra: Collection[str] = ()) -> Protocol:
    decision_name = f"top{k}_{decision}" if k is not None else decision
    main = [part for part in (ap, decision_name) if part not in ("all_point", "threshold")] or ["all_point"]
    name = "+".join([*main, *(rule for rule in _EXTRA if rule in extra)])
    count = "the labels" if k is None else f"always {k} labels of an image"
    decided = {
        "threshold": "a label counts as predicted from the threshold up",
        "forced": f"always the {k} best labels of an image count as predicted",
        "thresholded": f"a label counts as predicted if among the {k} best of its image and from the threshold up",
        "path": "the labels that the decoder emitted count as predicted",
        "learned": f"{count} that a rule learned on other images chooses, each image on its own, count as predicted",
        "transductive": f"{count} that a learned rule chooses knowing all images of the batch count as predicted",
    }[decision]
    described = "; ".join([_AP_DESCRIPTIONS[ap], decided, *(text for rule, text in _EXTRA.items() if rule in extra)])
    return Protocol(name, ap, decision, k, described, **{rule: rule in extra for rule in _EXTRA})


_NAMED = (
    _make_protocol("all_point", "threshold", None),
    _make_protocol("voc10", "threshold", None),
    _make_protocol("voc07_11pt", "threshold", None),
    _make_protocol("all_point", "forced", 3),  # the ensemble paper; CNN-RNN's k = 3 tables on NUS-WIDE
    _make_protocol("all_point", "thresholded", 3),  # ML-GCN's top-3 columns
    _make_protocol("all_point", "forced", 5),  # Corel-5K: always five words
    _make_protocol("all_point", "path", None),
    _make_protocol("all_point", "forced", 3, ("unknown_wrong",)),  # the ensemble paper on VOC 2007
    _make_protocol("all_point", "threshold", None, ("empty_zero",)),  # Multi-order RNN's code on MS-COCO
)
PROTOCOLS: Mapping[str, Protocol] = types.MappingProxyType({p.name: p for p in _NAMED})


def get_protocol(name: str) -> Protocol:
    """The protocol called `name`: an AP rule, a decision rule, or `AP+DECISION`, and further rules after a plus.

    AP rules: `all_point`, `voc10`, `voc07_11pt`. Decision rules: `threshold`, `path`, `learned`, `transductive`, and
    `top<k>_` forced, thresholded, learned or transductive with any k >= 1. Further rules:
    `unknown_wrong`, `empty_zero`. Names that mean the same protocol give the same canonical name.

    Raises:
      UserError: `name` is none of these.
    """
    ap = decision = None
    extra: list[str] = []
    for part in str(name).split("+"):
        top = re.fullmatch(r"top([1-9]\d*)_(forced|thresholded|learned|transductive)", part)
        if part in _AP_DESCRIPTIONS and ap is None and decision is None:
            ap = part
        elif part in ("threshold", "path", *LEARNED) and decision is None:
            decision = (part, None)
        elif top and decision is None:
            decision = (top[2], int(top[1]))
        elif part in _EXTRA and part not in extra:
            extra.append(part)
        else:
            raise UserError(
                f"unknown protocol {str(name)!r}{did_you_mean(name, PROTOCOLS)}; known: {', '.join(PROTOCOLS)}, "
                "any top<k>_ with forced, thresholded, learned or transductive, and AP+DECISION such as "
                " voc07_11pt+top3_forced"
            )
    return _make_protocol(ap or "all_point", *(decision or ("threshold", None)), extra)
