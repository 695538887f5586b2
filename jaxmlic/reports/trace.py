"""The steps of a prediction as text: Fig. 3 of Multi-order RNN, and the paths of a beam."""

from jaxmlic.reports.tables import table
from jaxmlic.run.steps import END


def text(described: dict) -> str:
    """Lines such as `t=1  temple (0.69)*  person (0.43)` in columns, then a line a path."""
    rows = [
        [f"t={t}", *(f"{e['label']} ({e['probability']:.2f}){'*' if e.get('pooled') else ''}" for e in step["top"])]
        for t, step in enumerate(described["steps"], 1)
    ]
    lines = [table(rows, "<", indent=2)]
    for number, path in enumerate(described.get("paths", ()), 1):
        labels = ", ".join([*path["labels"], END])
        lines.append(f"  path {number}  {path['probability']:.4f} (log {path['log_probability']:.3f})  {labels}")
    return "\n".join(lines)
