"""Multi-label metrics under named protocols, in numpy only.

The same word means different numbers in different papers, so every report names the protocol it was made by. A protocol
is an AP rule and a decision rule, written `AP+DECISION`; the usual parts may be left out (`top3_forced` means
`all_point+top3_forced`). Scores are ranked as float32. Labels are int8 in {1 present, 0 absent, -1 unknown}; an unknown
cell is neither a positive, nor a negative, nor counted as predicted.
"""

import dataclasses
import re
import types
from collections.abc import Mapping

from jaxmlic.errors import UserError, did_you_mean

_AP_DESCRIPTIONS = {
    "all_point": "all-point AP, not interpolated",
    "voc10": "all-point AP under the precision envelope (VOC 2010 on)",
    "voc07_11pt": "11-point AP (VOC 2007 devkit)",
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How scores become numbers.

    Attributes:
      name: canonical name, for instance `top3_forced` or `voc07_11pt+top3_forced`.
      ap: `all_point`, `voc10` or `voc07_11pt`.
      decision: `threshold`, `forced`, `thresholded` or `path`.
      k: number of labels of a forced or thresholded top-k decision, else None.
      description: one line for people.
    """

    name: str
    ap: str
    decision: str
    k: int | None
    description: str


def _make_protocol(ap: str, decision: str, k: int | None) -> Protocol:
    decision_name = f"top{k}_{decision}" if k is not None else decision
    name = "+".join(p for p in (ap, decision_name) if p not in ("all_point", "threshold")) or "all_point"
    decided = {
        "threshold": "a label counts as predicted from the threshold up",
        "forced": f"always the {k} best labels of an image count as predicted",
        "thresholded": f"a label counts as predicted if among the {k} best of its image and from the threshold up",
        "path": "the labels that the decoder emitted count as predicted",
    }[decision]
    return Protocol(name, ap, decision, k, f"{_AP_DESCRIPTIONS[ap]}; {decided}")


_NAMED = (
    _make_protocol("all_point", "threshold", None),
    _make_protocol("voc10", "threshold", None),
    _make_protocol("voc07_11pt", "threshold", None),
    _make_protocol("all_point", "forced", 3),  # the ensemble paper; CNN-RNN's k = 3 tables on NUS-WIDE
    _make_protocol("all_point", "thresholded", 3),  # ML-GCN's top-3 columns
    _make_protocol("all_point", "forced", 5),  # Corel-5K: always five words
    _make_protocol("all_point", "path", None),
)
PROTOCOLS: Mapping[str, Protocol] = types.MappingProxyType({p.name: p for p in _NAMED})


def get_protocol(name: str) -> Protocol:
    """The protocol called `name`: an AP rule, a decision rule, or `AP+DECISION`.

    AP rules: `all_point`, `voc10`, `voc07_11pt`. Decision rules: `threshold`, `path`, `top<k>_forced` and
    `top<k>_thresholded` with any k >= 1. Names that mean the same protocol give the same canonical name.

    Raises:
      UserError: `name` is none of these.
    """
    ap = decision = None
    for part in str(name).split("+"):
        top = re.fullmatch(r"top([1-9]\d*)_(forced|thresholded)", part)
        if part in _AP_DESCRIPTIONS and ap is None and decision is None:
            ap = part
        elif part in ("threshold", "path") and decision is None:
            decision = (part, None)
        elif top and decision is None:
            decision = (top[2], int(top[1]))
        else:
            raise UserError(
                f"unknown protocol {str(name)!r}{did_you_mean(name, PROTOCOLS)}; known: {', '.join(PROTOCOLS)}, "
                "any top<k>_forced or top<k>_thresholded, and AP+DECISION such as voc07_11pt+top3_forced"
            )
    return _make_protocol(ap or "all_point", *(decision or ("threshold", None)))
