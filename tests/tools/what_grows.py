"""Measure what a home grows by: one healthy night, one with a loser, one with a promotion.

Whole cycles of the default module with its real classifier on made-up recordings, in a home of its
own. Prints the bytes that each place grew by in each kind of night.

Usage::

    python tests/tools/what_grows.py
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "tools")]

from conftest import make_home
from sample_gts import write_recordings

from pipeline_orchestrator import run_orchestrator
from register_first_model import register_first_model
from retraining.commands.prune import prune
from retraining.commands.train_first import train_first
from retraining.settings import Settings

RECORDINGS = 15


def place_of(path: Path) -> str:
    """Return which row of the table a file of a home belongs to."""
    parts = path.parts
    if "artifacts" in parts:
        if "models" in parts:
            return "model.skops" if path.name == "model.skops" else "a version's other files"
        return "artifacts of runs"
    if parts[0] == "mlflow_server":
        return "store"
    return parts[0]


def sizes(home: Path) -> Counter[str]:
    """Return bytes by place."""
    found: Counter[str] = Counter()
    for path in home.rglob("*"):
        if path.is_file():
            found[place_of(path.relative_to(home))] += path.stat().st_size
    return found


def main() -> int:
    """Live the nights and print what each brought."""
    with tempfile.TemporaryDirectory(prefix="what-grows-") as name:
        home = make_home(Path(name, "home"))
        write_recordings(home / "used_gts", 18, "old", seed=1, prefix="old")
        settings = Settings(home=home, min_new_files=RECORDINGS)
        train_first(settings)
        register_first_model(settings)
        before = sizes(home)
        nights: tuple[tuple[str, dict[str, Any], int], ...] = (
            ("healthy", {"threshold": 1000.0}, 2),
            ("not promoted", {"min_improvement": 90.0}, 3),
            ("not promoted, again", {"min_improvement": 90.0}, 4),
            ("promoted", {}, 5),
        )
        for title, values, seed in nights:
            write_recordings(home / "new_gts", RECORDINGS, "new", seed=seed, prefix=f"n{seed}")
            night = Settings(home=home, min_new_files=RECORDINGS, **values)
            result = run_orchestrator(night)
            after = sizes(home)
            print(f"{title} ({result.outcome.value}):")
            for place in sorted(after):
                print(f"  {place:<28} {(after[place] - before[place]) / 1e3:>10,.1f} kB")
            before = after
        print(prune(settings, 0)[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
