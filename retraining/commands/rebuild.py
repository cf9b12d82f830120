"""Train a version again with its own code and compare it with what is stored.

Run by `reproduce` as a process of its own, which finds the packaged code before all other:
python -P rebuild.py TASK. TASK names a JSON file with the keys of `rebuild`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any


def rebuild(task: dict[str, Any]) -> dict[str, Any]:
    """Train on the recordings of a folder; return how far the predictions are from the stored ones.

    Parameters
    ----------
    task
        `code` (folder), `module` (name), `package` (folder of `retraining`), `recordings` (folder),
        `stored` (skops file), `columns` (of the model), `n_folds`, `random_state`, `n_jobs` and
        `limits` (of a recording).

    Returns
    -------
    dict
        `recordings`, `predictions` (rows), `probabilities` (whether both models give them),
        `largest_difference` (of a probability or a number; of other predictions 1 if any differs)
        and `different` (rows). Only `types`, the names of both, if the stored model is of another
        type than what its code trains: then equal predictions would prove nothing.
    """
    import skops.io

    # The packaged code before, our package behind everything else: beside it lies the training
    # module of today, which often has the same name.
    sys.path.insert(0, task["code"])
    sys.path.append(task["package"])
    module = importlib.import_module(task["module"])
    paths = sorted(Path(task["recordings"]).iterdir())
    rebuilt = _trained(module, paths, task)
    stored = skops.io.load(task["stored"], trusted=list(module.TRUSTED_TYPES))
    types = [type(one).__qualname__ for one in (stored, rebuilt)]
    if types[0] != types[1]:
        return {"types": types}
    found: dict[str, Any] = {"recordings": 0, "predictions": 0, "different": 0}
    found["probabilities"] = hasattr(rebuilt, "predict_proba") and hasattr(stored, "predict_proba")
    found["largest_difference"] = 0.0
    for path in paths:
        rows = module.parse_ground_truth(path.read_bytes(), path.name)
        rows = rows if "file" in rows else rows.assign(file=path.name)
        rows = rows[[name for name in task["columns"] if name in rows]]
        apart = _differences(rebuilt, stored, rows, of_probabilities=found["probabilities"])
        found["recordings"] += 1
        found["predictions"] += len(rows)
        found["different"] += int((apart > 0).sum())
        found["largest_difference"] = max(found["largest_difference"], float(apart.max(initial=0)))
    return found


def _trained(module: Any, paths: list[Path], task: dict[str, Any]) -> Any:
    """Return the model that a version's own code makes of its recordings."""
    if hasattr(module, "fit"):
        from retraining.cross_validation import fit_on
        from retraining.files import hash_file
        from retraining.settings import Limits
        from retraining.training import Training

        code = Path(module.__file__)
        training = Training(module, code, hash_file(code), Limits(**task["limits"]))
        return fit_on(training, paths, task["random_state"])
    # A version from before modules stopped to split and score by themselves.
    train = module.train_classification_model
    given = {name: task[name] for name in ("n_folds", "random_state")}
    if "n_jobs" in inspect.signature(train).parameters:
        given["n_jobs"] = task["n_jobs"]
    return train(Path(task["recordings"]), **given).model


def _differences(one: Any, other: Any, rows: Any, *, of_probabilities: bool) -> Any:
    """Return by how much two models differ on each row."""
    import numpy as np

    if of_probabilities:
        return _apart(one.predict_proba(rows), other.predict_proba(rows)).max(axis=1)
    first, second = np.asarray(one.predict(rows)), np.asarray(other.predict(rows))
    if first.dtype.kind in "if" and second.dtype.kind in "if":
        return _apart(first, second)
    return (first != second).astype(float)


def _apart(first: Any, second: Any) -> Any:
    """Return absolute differences; 1 where only one of both is missing."""
    import numpy as np

    apart = np.abs(first - second)
    one_missing = np.isnan(first) != np.isnan(second)
    return np.where(np.isnan(apart), one_missing.astype(float), apart)


def main() -> int:
    """Read the task, write the result beside it, and return the exit status."""
    path = Path(sys.argv[1])
    result = rebuild(json.loads(path.read_text(encoding="utf-8")))
    path.with_name("result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
