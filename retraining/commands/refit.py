"""Fit again in other surroundings, for `check`: the same arguments must give the same model.

Run as a process of its own, too, with little in its environment: python refit.py TASK. TASK names
a JSON file with the keys of `main`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # beside this file stand modules with common names
    sys.path[:] = json.loads(Path(sys.argv[1]).read_bytes())["sys_path"]

from retraining.confined import last_line
from retraining.errors import stop_request
from retraining.files import hash_bytes
from retraining.settings import Settings
from retraining.text import printable
from retraining.training import Training, load_training_module

if TYPE_CHECKING:
    import pandas as pd

OTHER_SEED = 7


class DoesNotFit(Exception):
    """The other process failed; the message is the last line that it said."""


def answers_of(training: Training, model: Any, rows: pd.DataFrame) -> str:
    """Return a digest of all that a model says of one recording, to the last bit."""
    import numpy as np

    said = [training.predict(model, rows)]
    if hasattr(model, "predict_proba"):
        with training.mistakes_told("predict_proba"):
            said.append(model.predict_proba(rows[training.columns_of(rows)]))
    text = json.dumps([np.asarray(one).tolist() for one in said], default=str)
    return hash_bytes(text.encode())


# --- In this process ---


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Work in an empty folder, with other global random numbers."""
    import numpy as np

    states = random.getstate(), np.random.get_state()
    with (
        tempfile.TemporaryDirectory(prefix="pipeline-check-") as folder,
        contextlib.chdir(folder),
    ):
        _seed_global_numbers()
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _seed_global_numbers() -> None:
    import numpy as np

    random.seed(OTHER_SEED)
    np.random.seed(OTHER_SEED)


@contextlib.contextmanager
def environment_watched(path: Path) -> Iterator[set[str]]:
    """Give the names of the variables that code of one file asks for meanwhile."""
    kind, names = type(os.environ), set[str]()
    original: Callable[[Any, str], str] = kind.__getitem__

    def noting(environment: Any, name: str) -> str:
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__") in ("os", "collections.abc"):
            frame = frame.f_back
        if frame.f_code.co_filename == str(path):
            names.add(str(name))
        return original(environment, name)

    # There is no other way to see it: modules hold the very object.
    kind.__getitem__ = noting  # type: ignore[method-assign]
    try:
        yield names
    finally:
        kind.__getitem__ = original  # type: ignore[method-assign]


# --- In another one ---


def fitted_beside(training: Training, paths: Sequence[Path], random_state: int) -> list[str]:
    """Fit in a process of its own; return what its model says of each recording.

    Raises
    ------
    DoesNotFit
        If that fails.
    """
    with tempfile.TemporaryDirectory(prefix="pipeline-check-") as name:
        folder = Path(name)
        task = {
            "sys_path": sys.path,
            "module": str(training.path),
            "recordings": [str(path) for path in paths],
            "random_state": random_state,
            "limits": dataclasses.asdict(training.limits),
            "answers": str(folder / "answers.json"),
        }
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        environment = {
            "HOME": os.environ.get("HOME", name),
            "PATH": os.defpath,
            "PYTHONHASHSEED": str(OTHER_SEED),
        }
        done = subprocess.run(
            [sys.executable, "-P", __file__, str(folder / "task.json")],
            cwd=folder,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            stop_request.obey()
            last = last_line(done.stderr)
            raise DoesNotFit(printable(last.removeprefix("retraining.errors.PipelineError: "), 300))
        return list(json.loads((folder / "answers.json").read_bytes()))


def main() -> int:
    """Fit, write what the model says of each recording, and return the exit status."""
    from threadpoolctl import threadpool_limits

    from retraining.cross_validation import fit_on

    task = json.loads(Path(sys.argv[1]).read_bytes())
    training = load_training_module(Settings(training_module=task["module"], **task["limits"]))
    paths = [Path(name) for name in task["recordings"]]
    _seed_global_numbers()
    with threadpool_limits(limits=1):
        model = fit_on(training, paths, task["random_state"])
        read = (training.read(path)[0] for path in paths)
        answers = [answers_of(training, model, rows) for rows in read]
    Path(task["answers"]).write_text(json.dumps(answers), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
