"""Write a large recording, and measure how much memory it takes to read one.

Usage::

    python tests/tools/large_files.py FILE LIMITS

Prints the peak memory, as a multiple of the file's size, of all that intake and training make of
it; LIMITS are settings as JSON. To be started anew for each file; needs Linux.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "tools")]


def write_large(path: Path, n_rows: int, n_objects: int) -> Path:
    """Write a recording of so many rows, as a tracker would; return its path."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(0)
    object_id = np.arange(n_rows) * n_objects // n_rows
    rows = {
        "object_id": object_id,
        "centroids_x": random.uniform(0, 1900, n_rows),
        "centroids_y": random.uniform(0, 1000, n_rows),
        "aspect_ratio": random.uniform(1, 5, n_rows),
        "area": random.uniform(100, 9000, n_rows),
        "frames": np.arange(n_rows),
        "scores": random.uniform(0, 1, n_rows),
        "counted": True,
        "ground_truth": object_id % 3 > 0,
    }
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6f")
    return path


def peak_memory(path: Path, limits: Mapping[str, float]) -> float:
    """Return the peak memory of reading a file in a new process, in its sizes."""
    words = [sys.executable, __file__, str(path), json.dumps(limits)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
    return float(done.stdout)


def main() -> int:
    """Read a file and print what it took."""
    from sample_gts import write_recordings

    from retraining.identity import observe
    from retraining.settings import Settings
    from retraining.training import load_training_module

    path = Path(sys.argv[1])
    training = load_training_module(Settings(**json.loads(sys.argv[2])))

    def use(file: Path) -> None:
        rows, _ = training.read(file)
        training.data_quality_note(rows)
        observe(training, rows)
        training.examples(rows)

    with tempfile.TemporaryDirectory() as name:  # brings all that is imported late
        use(write_recordings(Path(name), 1)[0])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak, which the imports made
    before = kilobytes("VmRSS")
    try:
        use(path)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
    print((kilobytes("VmHWM") - before) * 1024 / path.stat().st_size)
    return 0


def kilobytes(name: str) -> int:
    """Return a figure of this process's memory, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1])


if __name__ == "__main__":
    sys.exit(main())
