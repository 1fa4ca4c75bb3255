"""What an evaluation leaves behind: metrics.json on the disk and a table on the screen."""

import json
from collections.abc import Iterable
from pathlib import Path


def write_metrics(path: Path, metrics: dict) -> None:
    """Write flat numbers, and what they are of under `_meta`, as JSON."""
    path.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


def print_metrics(metrics: dict, hidden: Iterable[str] = ()) -> None:
    """One line a number, six digits of it; `_meta` and the hidden names are left out."""
    shown = {name: value for name, value in metrics.items() if name not in {"_meta", *hidden}}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        text = f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
        print(f"{name:<{width}} {text:>16}")
