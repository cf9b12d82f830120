"""What `python train_classification_model.py` runs: train a first model and write its pickle.

Beside the pickle goes what is known of its errors, so that registration need not score a model on
what it was trained on. That file holds numbers, no code.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import math
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retraining.command_line import (
    OneLineParser,
    add_settings,
    print_result,
    run_command,
    words_of,
)
from retraining.errors import EXIT_DONE, PipelineError, TryLaterError
from retraining.files import (
    WRITABLE_BY_OTHERS,
    UnusableFile,
    hash_file,
    make_folder,
    open_regular,
    waiting_names,
    written_whole,
)
from retraining.settings import OF_FIRST_TRAINING, Settings
from retraining.text import number_text, printable
from retraining.training import ERROR, TrainedModel, Training, load_training_module

if TYPE_CHECKING:
    import pandas as pd

ERRORS_SUFFIX = ".out_of_fold.json"
OWNER_ONLY = 0o600
NEVER_SEEN = "each recording scored by a model that never saw it"

logger = logging.getLogger("pipeline")


def main(arguments: list[str] | None, module_name: str) -> int:
    """Train with a module beside the scripts, and return the exit status."""
    parser = OneLineParser(
        prog=f"{module_name}.py",
        description="Train a first model and write its pickle for register_first_model.py.",
    )
    parser.add_argument("folder", nargs="?", type=Path, help="recordings (default: HOME/used_gts)")
    parser.add_argument("--force", action="store_true", help="replace an existing pickle")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_settings(parser, only=OF_FIRST_TRAINING)
    words = words_of(arguments)
    if words[:1] == ["predict"]:
        parser.error(
            "predict is a command of pipeline_orchestrator.py: python "
            "pipeline_orchestrator.py predict FILE..."
        )
    options = parser.parse_args(words)
    return run_command(functools.partial(_work, options=options, module_name=module_name), options)


def _work(settings: Settings, options: argparse.Namespace, module_name: str) -> int:
    settings = dataclasses.replace(settings, training_module=module_name)
    path, trained, unit = train_first(settings, options.folder, force=options.force)
    for name, note in trained.data_quality.items():
        sys.stderr.write(f"data quality: {printable(name)}: {printable(note)}\n")
    lines = [
        *as_table(trained.out_of_fold, unit).splitlines(),
        f"mean error {number_text(trained.mean_error, 2)} {unit}, {NEVER_SEEN}",
        f"wrote {path}",
    ]
    facts = {
        "mean_error": trained.mean_error,
        "unit": unit,
        "by_recording": trained.out_of_fold.reset_index().to_dict("records"),
        "pickle": str(path),
    }
    print_result(lines, facts, as_json=options.json)
    return EXIT_DONE


def train_first(
    settings: Settings, folder: Path | None = None, *, force: bool = False
) -> tuple[Path, TrainedModel, str]:
    """Train on a folder, by default used_gts/; return the pickle's path, the model and the unit.

    Raises
    ------
    PipelineError
        If there is a pickle already, or the recordings do not suffice; then nothing is written.
    """
    training = load_training_module(settings)
    path = settings.home / training.first_model_path
    if path.exists() and not force:
        raise PipelineError(f"{path} exists; --force replaces it")
    trained, hashes = train_on_folder(settings, training, folder or settings.used_gts)
    _write(path, trained)
    # After the pickle: until then an older one names another pickle, and is not believed.
    known = KnownErrors.of(trained, hashes, training, settings, hash_file(path))
    with written_whole(errors_path(path), mode=OWNER_ONLY) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(known), indent=1), encoding="utf-8")
    return path, trained, training.error_unit


def train_on_folder(
    settings: Settings, training: Training, folder: Path
) -> tuple[TrainedModel, dict[str, str]]:
    """Train on every recording of a folder; return the model, and name -> SHA-256.

    Raises
    ------
    PipelineError
        If the recordings do not suffice.
    """
    from retraining import intake
    from retraining.cross_validation import Reader, Resources, too_few_recordings, train

    if not folder.is_dir():
        raise PipelineError(f"{folder} is not a folder; name the folder of your ground truth files")
    paths = [folder / name for name in waiting_names(folder)]
    reader = Reader(training, None)
    lacking = too_few_recordings(reader, paths, settings.n_folds)
    if lacking:
        raise PipelineError(f"{folder} holds {lacking}")
    hashes = {path.name: hash_file(path) for path in paths}
    known = intake.known_files(settings, training, paths)
    trained, _ = train(
        training,
        paths,
        n_folds=settings.n_folds,
        random_state=settings.random_state,
        resources=Resources(n_jobs=settings.n_jobs),
        twins=intake.twins(known, {sha256: name for name, sha256 in hashes.items()}),
    )
    if {path.name: hash_file(path) for path in paths} != hashes:
        raise TryLaterError(f"a recording in {folder} changed while this ran; run again")
    return trained, hashes


def as_table(errors: pd.DataFrame, unit: str) -> str:
    """Return a table of errors for a person, with as many digits as they need."""
    texts = errors.assign(error=[number_text(each) for each in errors[ERROR]])
    return texts.rename(columns={ERROR: f"{ERROR} [{unit}]"}).to_string()


def _write(path: Path, trained: TrainedModel) -> None:
    """Write the pickle, whole or not at all."""
    import joblib

    make_folder(path.parent)
    with written_whole(path, mode=OWNER_ONLY) as temporary:
        joblib.dump(trained.model, temporary)


# --- What is known of the errors of a pickle ---


@dataclass(frozen=True)
class KnownErrors:
    """The out-of-fold errors of a pickled model, and how it was trained.

    Parameters
    ----------
    pickle_sha256
        Of the pickle that all this belongs to.
    errors
        SHA-256 of a recording -> error by a model that never saw it.
    error_name
        Of the metric.
    code_sha256
        Of the training module.
    before_labels
        JSON of what is left for the time before labels come; empty if nothing is.
    """

    pickle_sha256: str
    errors: Mapping[str, float]
    error_name: str
    code_sha256: str
    n_folds: int
    random_state: int
    before_labels: str = ""

    @classmethod
    def of(
        cls,
        trained: TrainedModel,
        hashes: Mapping[str, str],
        training: Training,
        settings: Settings,
        pickle_sha256: str,
    ) -> KnownErrors:
        """Return what a training knows; `hashes` are name -> SHA-256 of its recordings."""
        from retraining.calibration import BeforeLabels

        errors = trained.out_of_fold[ERROR]
        return cls(
            pickle_sha256=pickle_sha256,
            errors={sha256: float(errors[name]) for name, sha256 in hashes.items()},
            error_name=training.error_name,
            code_sha256=training.code_sha256,
            n_folds=settings.n_folds,
            random_state=settings.random_state,
            before_labels=BeforeLabels.of(trained, training, hashes).to_bytes().decode(),
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> KnownErrors:
        """Read what was written beside a pickle.

        Raises
        ------
        ValueError
            If it is something else.
        """
        from retraining.calibration import BeforeLabels

        try:
            known = cls(**json.loads(content))
            BeforeLabels.from_bytes(known.before_labels.encode())
            errors = {str(sha256): float(error) for sha256, error in known.errors.items()}
            if not all(math.isfinite(error) and error >= 0 for error in errors.values()):
                raise ValueError("an error is no number from 0")
            folds, seed = int(known.n_folds), int(known.random_state)
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error
        return dataclasses.replace(known, errors=errors, n_folds=folds, random_state=seed)


def errors_path(pickle: Path) -> Path:
    """Return where the out-of-fold errors of a pickle lie."""
    return pickle.with_name(f"{pickle.name}{ERRORS_SUFFIX}")


def errors_of_pickle(pickle: Path, pickle_sha256: str, training: Training) -> KnownErrors | None:
    """Return the errors of a pickle of our own training, on what it learnt; else None."""
    path = errors_path(pickle)
    if not path.exists():
        return None
    try:
        known = KnownErrors.from_bytes(read_trusted(path))
    except (ValueError, PipelineError) as error:
        logger.warning("%s is not used: %s", path, error)
        return None
    belongs = {
        "it belongs to another pickle": known.pickle_sha256 == pickle_sha256,
        "it counts other errors": known.error_name == training.error_name,
    }
    for what, holds in belongs.items():
        if not holds:
            logger.warning("%s is not used: %s", path, what)
            return None
    return known


def read_trusted(path: Path) -> bytes:
    """Return the bytes of a file that nobody else can have written.

    Raises
    ------
    PipelineError
        If it is no regular file, owned by somebody else or writable by others.
    """
    try:
        with open_regular(path) as (stream, status):
            if status.st_uid not in (os.getuid(), 0):
                raise PipelineError(f"{path} belongs to another user; chown it if you trust it")
            if stat.S_IMODE(status.st_mode) & WRITABLE_BY_OTHERS:
                raise PipelineError(f"{path} can be written by others; if you trust it: chmod go-w")
            return stream.read()
    except UnusableFile as error:
        raise PipelineError(f"{path} cannot be read as a regular file: it {error.what}") from error
