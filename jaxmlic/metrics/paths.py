"""What the order in which a decoder emits its labels tells: the first label's accuracy, and how often it repeats."""

import numpy as np


def path_metrics(paths: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of label paths, as fractions; NaN where undefined.

    Args:
      paths: int [N, T], labels in the order in which they were emitted, padded with C (END).
      labels: int8 [N, C] in {1, 0, -1}.

    Returns:
      The two by name.

      - `top1_step`: share of the images with a positive whose first label is one: the top-1 accuracy of one recurrent
        step (Multi-order RNN, Table 4). A path without labels and a first label that is unknown count as wrong.
      - `repeats`: share of all labels on paths that their path had before.
    """
    num_labels = labels.shape[1]
    positive = np.pad(labels == 1, ((0, 0), (0, 1)))  # [N, C + 1], END is never right
    counted = positive.any(axis=1)
    right = np.take_along_axis(positive, paths[:, :1], axis=1)[:, 0]  # [N]
    before = (paths[:, :, None] == paths[:, None, :]) & np.tri(paths.shape[1], k=-1, dtype=bool)  # [N, T, T]
    real = paths < num_labels
    repeated = before.any(axis=2) & real
    return {
        "top1_step": float(right[counted].mean()) if counted.any() else float("nan"),
        "repeats": float(repeated.sum() / real.sum()) if real.any() else float("nan"),
    }
