"""How an exported run decides: its thresholds or its learned rule, with their calibration, in numpy alone."""

import numpy as np


def make(stored):
    """The function (scores float32 [B, C]) -> (logits of the probabilities [B, C], chosen bool [B, C]).

    stored: what thresholds.json or decision.json holds; None for probability 0.5.
    """
    if stored is None:
        return lambda scores: (scores, scores >= 0)
    if "rule" not in stored:
        bound, scale, offset = (np.array(stored[name]) for name in ("values", "scale", "offset"))
        return lambda scores: (scores * scale + offset, scores >= bound.astype(np.float32))
    rule, pooled = stored["rule"], stored["calibration"]

    def decide(scores):
        logits = calibrated(pooled, scores)
        values = (1 / (1 + np.exp(-logits)) * rule["scale"] + rule["offset"]).astype(np.float32)
        if rule["k"] is None:
            return logits, values > 0
        chosen = np.zeros(values.shape, bool)
        np.put_along_axis(chosen, np.argsort(-values, axis=1, kind="stable")[:, : rule["k"]], True, axis=1)
        return logits, chosen

    return decide


def calibrated(pooled, scores):
    """Logits float64 [B, C] of scores [B, C] by the logistic regression of decision.json: docs/decisions.md."""
    z = np.clip(pooled["slope"] * scores.astype(np.float64) + pooled["intercept"], *pooled["bounds"])
    chance, log_chance = 1 / (1 + np.exp(-z)), -np.logaddexp(0, -z)
    highest = log_chance.max(axis=1, keepdims=True)
    share = log_chance - highest - np.log(np.exp(log_chance - highest).sum(axis=1, keepdims=True))
    own = (z - pooled["mean"]) / pooled["deviation"]
    frequent = np.broadcast_to(np.log(pooled["frequency"]), z.shape)
    above = [np.maximum(z - knot, 0) for knot in pooled["knots"]]
    plain = [z, log_chance, share, chance, log_chance**2, own, own**2, *above, frequent, frequent**2]
    crossed = [frequent * x for x in (log_chance, chance, own, *above[::2])]
    *coefficients, constant = pooled["coefficients"]
    return np.stack(plain + crossed, axis=-1) @ np.array(coefficients) + constant
