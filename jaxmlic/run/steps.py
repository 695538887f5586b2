"""The steps of a prediction as values for JSON: Fig. 3 of Multi-order RNN, and the paths of a beam."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmlic.models.heads.contract import Trace

END = "END"
SHOWN = 5  # tokens a step, as in Fig. 3


def describe(trace: Trace, chosen: np.ndarray, names: Sequence[str], shown: int = SHOWN) -> dict:
    """One image's `Trace` (numpy, without the batch axis) as lists, floats and names.

    Args:
      trace: of the image; steps after its END are left out, and so are paths that do not exist.
      chosen: bool [C], the predicted labels; only these are marked where they were pooled, as in the figure.
      names: [C].
      shown: the tokens listed of each step, most probable first, equal ones by index.

    Returns:
      {"steps": [{"top": [{"label", "probability", "pooled"}], "taken"}], "paths": [{"labels", "log_probability",
      "probability"}]}, "paths" only where the head searches and "pooled" only where it pools.
    """
    tokens = [*names, END]
    steps = []
    for t, probabilities in enumerate(trace.probabilities):
        taken = int(trace.taken[t])
        top = []
        for i in np.argsort(-probabilities, kind="stable")[:shown]:
            entry = {"label": tokens[i], "probability": float(probabilities[i])}
            if trace.pooled is not None:
                entry["pooled"] = bool(trace.pooled[t, i] and chosen[i])
            top.append(entry)
        steps.append({"top": top, "taken": tokens[taken]})
        if taken == len(names):
            break
    described: dict[str, Any] = {"steps": steps}
    if trace.paths is not None and trace.log_probs is not None:
        described["paths"] = [
            {
                "labels": [names[int(i)] for i in path if i < len(names)],
                "log_probability": float(log_prob),
                "probability": float(np.exp(log_prob)),
            }
            for path, log_prob in zip(trace.paths, trace.log_probs, strict=True)
            if log_prob > -np.inf
        ]
    return described
