"""Once: put the first, pre-trained model into the registry as production.

1. Load model/stem_classifier_postprocessing_v1.pkl; wrap a model of the first generation.
2. Score it on used_gts/.
3. Create the store if there is none, register the model with its manifest.
4. Set the alias `production`.

Usage::

    python register_first_model.py [--home HOME] [--force]

If there is a production version already: say which, change nothing, exit 0; `--force` replaces
it. Exit status: 0 done; 1 error; 2 usage; 75 try again later; 128 + n stopped by signal n.
"""

from __future__ import annotations

import datetime
import io
import logging
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cycle_records
import gts_folder
import model_registry
import notifications
import pipeline_recovery
from command_line import OneLineParser, add_settings, print_result, run_command
from model_registry import ModelRegistry
from pipeline_settings import EXIT_DONE, PipelineError, Settings, check_home
from training_module import ERROR, Training, load_training_module

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("pipeline")

USED_SETTINGS = (
    *("home", "tracking_uri", "model_name", "training_module", "max_file_mb"),
    *("random_state", "n_folds"),
    *("on_promotion", "hook_timeout"),
)
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def read_trusted_pickle(path: Path) -> bytes:
    """Return the bytes of a pickle that nobody else can have written.

    Parameters
    ----------
    path
        The first model.

    Raises
    ------
    PipelineError
        If it is missing, no regular file, owned by somebody else or writable by others: a
        pickle runs code when it is loaded.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise PipelineError(
            f"there is no {path}; put the pre-trained model there, or train one with the training "
            "module"
        ) from error
    except OSError as error:
        raise PipelineError(f"{path} cannot be read as a regular file: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PipelineError(f"{path} is not a regular file")
        if status.st_uid not in (os.getuid(), 0):
            raise PipelineError(f"{path} belongs to another user; chown it if you trust it")
        if status.st_mode & OTHERS_MAY_WRITE:
            raise PipelineError(f"{path} can be written by others; if you trust it: chmod go-w")
        return stream.read()


def unpickle(content: bytes, path: Path, training: Training) -> Any:
    """Return the pickled model as one of raw rows.

    Parameters
    ----------
    content
        The pickle.
    path
        For messages.
    training
        The training module, which knows what can be used.

    Raises
    ------
    PipelineError
        If it does not load or is no model that can be used.
    """
    import joblib

    try:
        model = joblib.load(io.BytesIO(content))
    except Exception as error:
        raise PipelineError(
            f"{path} does not load: {error}; was it written with these packages?"
        ) from error
    try:
        return training.as_row_model(model)
    except ValueError as error:
        raise PipelineError(f"{path}: {error}") from error


def register_first_model(settings: Settings, *, force: bool = False) -> str:
    """Register the first model and make it production; return what was done in one line.

    Parameters
    ----------
    settings
        Of this home.
    force
        Replace a production version.

    Raises
    ------
    PipelineError
        With one line for the operator; nothing is half changed.
    """
    check_home(settings)
    training = load_training_module(settings)
    path = settings.home / training.first_model_path
    with gts_folder.exclusive_lock(settings, "register"):
        pipeline_recovery.tidy(settings)
        content = None
        if settings.database is not None and not settings.database.exists():
            content = read_trusted_pickle(path)
            unpickle(content, path, training)
        model_registry.create_store(settings)
        registry = model_registry.open_registry(settings, create=True)
        production = registry.production_number()
        if production is not None and not force:
            return f"version {production} is production already; nothing changed (--force replaces)"
        content = content or read_trusted_pickle(path)
        with pipeline_recovery.unfinished_until_done(settings, "register") as cycle_id:
            number, mean_error = _register(registry, settings, training, content, cycle_id)
            measured = f"{mean_error:.1f} {training.error_unit} on used_gts/"
            registry.promote(
                number,
                replaces=production,
                event=model_registry.EVENT_REGISTRATION,
                why=f"first model {path.name}, {measured}",
                tags={
                    model_registry.TAG_CYCLE: cycle_id,
                    model_registry.TAG_UNIT: training.error_unit,
                },
                mean_errors=(None, mean_error),
            )
            notifications.announce_change(settings, registry, cycle_id)
    return f"registered version {number} as production: mean error {measured}"


def _register(
    registry: ModelRegistry, settings: Settings, training: Training, content: bytes, cycle_id: str
) -> tuple[int, float]:
    """Score and register the model; return its version's number and mean error."""
    import pandas as pd

    path = settings.home / training.first_model_path
    pickle_hash = gts_folder.hash_bytes(content)
    logger.info("%s has SHA-256 %s", path.name, pickle_hash)
    model = unpickle(content, path, training)
    recordings = _read_used(settings, training)
    errors = pd.concat(training.errors(model, rows) for rows, _ in recordings.values())
    mean_error = float(errors[ERROR].mean())
    example = pd.concat([rows.head(5) for rows, _ in list(recordings.values())[:2]])
    manifest = cycle_records.training_manifest(
        {name: sha256 for name, (_, sha256) in recordings.items()},
        {name: len(rows) for name, (rows, _) in recordings.items()},
    )
    registry.create_experiment_and_model()
    tags = {model_registry.TAG_CYCLE: cycle_id}
    with registry.run(model_registry.FIRST_RUN, tags) as run_id:
        registry.log_numbers(
            {
                "mean_error": mean_error,
                "max_error": float(errors[ERROR].max()),
                "recordings": len(errors),
            },
            {
                "model": type(model).__name__,
                "pickle": path.name,
                "pickle_sha256": pickle_hash,
            },
        )
        registry.log_table(errors, "errors_by_recording.json")
        registry.log_dataset(manifest, "used_gts", "baseline")
        version = registry.register(
            model,
            run_id=run_id,
            input_example=example[training.columns_of(example)].reset_index(drop=True),
            training=training,
            manifest=manifest,
            tags={**tags, "pickle_sha256": pickle_hash},
        )
    registry.load_and_try(version, training)
    today = datetime.date.today().isoformat()
    registry.describe(
        version.number,
        f"first model {path.name}, registered {today}: {mean_error:.1f} {training.error_unit} on "
        "used_gts/, "
        "which it may have been trained on",
    )
    return version.number, mean_error


def _read_used(settings: Settings, training: Training) -> dict[str, tuple[pd.DataFrame, str]]:
    """Return name -> (rows, SHA-256) of used_gts/."""
    recordings = {}
    for name in gts_folder.waiting_names(settings.used_gts):
        try:
            recordings[name] = training.read(settings.used_gts / name, settings.max_file_mb)
        except ValueError as error:
            what = getattr(error, "what", error)
            raise PipelineError(f"used_gts/{name}: {what}; mend it or take it out") from error
    if not recordings:
        raise PipelineError(
            f"{settings.used_gts} holds no CSV; put the recordings there that the model was "
            "trained on: they are its baseline, and later retrainings use them"
        )
    return recordings


def main(arguments: list[str] | None = None) -> int:
    """Register the first model and return the exit status.

    Parameters
    ----------
    arguments
        Command line without the program's name; `sys.argv` by default.
    """
    parser = OneLineParser(
        prog="register_first_model.py",
        description="Put the first, pre-trained model into the registry as production.",
    )
    parser.add_argument("--force", action="store_true", help="replace a production version")
    add_settings(parser, only=USED_SETTINGS)
    options = parser.parse_args(arguments)

    def command(settings: Settings) -> int:
        message = register_first_model(settings, force=options.force)
        print_result(message, {}, as_json=False)
        return EXIT_DONE

    return run_command(command, options)


if __name__ == "__main__":
    sys.exit(main())
