"""Once: put the first model into the registry as production.

1. Load the pre-trained model/stem_classifier_postprocessing_v1.pkl, and wrap a model of the first
   generation; or, with `--train`, train one on used_gts/ and need no pickle.
2. Its errors on used_gts/ are the baseline: each by a model that never saw the recording, if it was
   trained here; else by the model itself, which was trained on them.
3. Create the store if there is none, register the model with its manifest.
4. Set the alias `production`.

Usage::

    python register_first_model.py [--train] [--home HOME] [--force]

If there is a production version already: say which, change nothing, exit 0; `--force` replaces
it. Exit status: 0 done; 1 error; 2 usage; 75 try again later; 128 + n stopped by signal n.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retraining import command_line, records, recovery
from retraining.command_line import OneLineParser, add_settings, print_result
from retraining.commands.first_version import FirstVersion, make_production
from retraining.commands.train_first import (
    NEVER_SEEN,
    errors_of_pickle,
    read_trusted,
    train_on_folder,
)
from retraining.errors import EXIT_DONE, PipelineError, TryLaterError
from retraining.files import exclusive_lock, hash_bytes, waiting_names
from retraining.registry import Registry, open_registry
from retraining.registry.facts import (
    TAG_CHAMPION,
    Dataset,
    Manifest,
    RegisteredVersion,
    RunRecord,
)
from retraining.registry.store import create_store
from retraining.settings import OF_FIRST_MODEL, Settings, check_home
from retraining.text import error_text
from retraining.training import (
    ERROR,
    FILE,
    TrainedModel,
    Training,
    load_training_module,
    unreadable_file,
)

logger = logging.getLogger("pipeline")


@dataclass(frozen=True)
class FirstModel:
    """A model that may become the first production, and its baseline.

    Parameters
    ----------
    trained
        With its errors on used_gts/.
    manifest
        Those recordings.
    source
        Where it comes from, in words.
    out_of_fold
        Whether each error is by a model that never saw the recording.
    params
        Of its run.
    tags
        Of its version.
    before_labels
        What was left beside a pickle; else the training tells.
    """

    trained: TrainedModel
    manifest: Manifest
    source: str
    out_of_fold: bool
    params: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    before_labels: bytes = b""

    def measured(self, unit: str) -> str:
        """Return its baseline in words."""
        how = NEVER_SEEN if self.out_of_fold else "trained on them"
        return f"{error_text(self.trained.mean_error, unit)} on used_gts/, {how}"


# --- A model that was trained before ---


def from_pickle(
    settings: Settings, training: Training, younger: Collection[str] = ()
) -> FirstModel:
    """Load the first model and find out its errors on used_gts/.

    Parameters
    ----------
    younger
        SHA-256 of recordings that came after it.

    Raises
    ------
    PipelineError
        If there is none, if it cannot be trusted or used, or if a recording cannot be read.
    """
    path = settings.home / training.first_model_path
    content = read_trusted_pickle(path)
    sha256 = hash_bytes(content)
    logger.info("%s has SHA-256 %s", path.name, sha256)
    known = errors_of_pickle(path, sha256, training)
    model = _unpickled(content, path, training)
    if known is None:
        trained, hashes = _scored(settings, training, model, lambda sha256: sha256 not in younger)
    else:
        trained, hashes = _scored(settings, training, model, known.errors.__contains__)
    params: dict[str, Any] = {"pickle": path.name, "pickle_sha256": sha256}
    if known is not None and set(known.errors) != set(hashes.values()):
        logger.warning(
            "what is known of %s is not used: it was trained on %d recordings, %d of them are in "
            "used_gts/",
            *(path.name, len(known.errors), len(hashes)),
        )
        known = None
    if known is not None:
        errors = trained.out_of_fold[[ERROR]].copy()
        errors[ERROR] = [known.errors[hashes[name]] for name in errors.index]
        trained = dataclasses.replace(trained, out_of_fold=errors)
        # With other code these two would promise what nobody can reproduce.
        if known.code_sha256 == training.code_sha256:
            params |= {"n_folds": known.n_folds, "random_state": known.random_state}
    return FirstModel(
        trained=trained,
        manifest=_manifest(settings, training, trained, hashes),
        source=path.name,
        out_of_fold=known is not None,
        params=params,
        tags={"pickle_sha256": sha256},
        before_labels=known.before_labels.encode() if known else b"",
    )


def read_trusted_pickle(path: Path) -> bytes:
    """Return the bytes of a pickle that nobody else can have written: loading it runs its code.

    Raises
    ------
    PipelineError
        If it is missing, no regular file, owned by somebody else or writable by others.
    """
    try:
        return read_trusted(path)
    except FileNotFoundError as error:
        raise PipelineError(
            f"there is no {path}; put the pre-trained model there, or train one: "
            "python register_first_model.py --train"
        ) from error


def _unpickled(content: bytes, path: Path, training: Training) -> Any:
    """Return the pickled model as one of raw rows."""
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


def _scored(
    settings: Settings, training: Training, model: Any, is_learnt: Callable[[str], bool]
) -> tuple[TrainedModel, dict[str, str]]:
    """Score a model on what it learnt of used_gts/; return it, and name -> SHA-256.

    Parameters
    ----------
    is_learnt
        Says of a content whether it learnt that: a manifest claims nothing else.
    """
    import pandas as pd

    from retraining.cross_validation import EXAMPLE_RECORDINGS, input_example

    hashes: dict[str, str] = {}
    row_counts: dict[str, int] = {}
    errors: list[pd.DataFrame] = []
    first: list[pd.DataFrame] = []
    left_out = 0
    for name in waiting_names(settings.used_gts):
        try:
            rows, sha256 = training.read(settings.used_gts / name)
        except ValueError as error:
            raise PipelineError(
                f"used_gts/{unreadable_file(name, error)}; mend it or take it out"
            ) from error
        if not is_learnt(sha256):
            left_out += 1
            continue
        hashes[name] = sha256
        row_counts[name] = len(rows)
        errors.append(training.errors(model, [rows]))
        if len(first) < EXAMPLE_RECORDINGS:
            first.append(rows)
    if not errors:
        raise PipelineError(
            f"{settings.used_gts} holds no CSV that the model learnt; put the recordings there "
            "that it was trained on: they are its baseline, and later retrainings use them; or "
            "train one: python register_first_model.py --train"
        )
    if left_out:
        logger.info("%d recordings of used_gts/ are left out: the pickle learnt none", left_out)
    table = pd.concat(errors).rename_axis(FILE)
    trained = TrainedModel(
        model=model,
        out_of_fold=table,
        in_sample=table,
        input_example=input_example(training, first),
        row_counts=row_counts,
        data_quality={},
        examples=pd.DataFrame(),
        importance=None,
    )
    return trained, hashes


def _manifest(
    settings: Settings, training: Training, trained: TrainedModel, hashes: Mapping[str, str]
) -> Manifest:
    """Return what a model was trained on; the home knows these recordings from now on."""
    from retraining.intake import known_files

    known = known_files(settings, training, [settings.used_gts / name for name in hashes])
    known.save()
    return Manifest.of(hashes, trained.row_counts, known.identity)


# --- A model that is trained now ---


def trained_now(
    settings: Settings, training: Training, _younger: Collection[str] = ()
) -> FirstModel:
    """Train on all of used_gts/.

    Raises
    ------
    PipelineError
        If the recordings do not suffice.
    """
    trained, hashes = train_on_folder(settings, training, settings.used_gts)
    return FirstModel(
        trained=trained,
        manifest=_manifest(settings, training, trained, hashes),
        source=f"trained on {len(hashes)} recordings",
        out_of_fold=True,
        params={"n_folds": settings.n_folds, "random_state": settings.random_state},
    )


# --- Registering ---


def register_first_model(settings: Settings, *, force: bool = False, train: bool = False) -> str:
    """Register the first model and make it production; return what was done in one line.

    Parameters
    ----------
    force
        Replace a production version.
    train
        Train the model on used_gts/ instead of loading its pickle.

    Raises
    ------
    PipelineError
        With one line for the operator; nothing is half changed.
    """
    check_home(settings)
    training = load_training_module(settings)
    make = trained_now if train else from_pickle
    with exclusive_lock(settings, "register"):
        recovery.tidy(settings)
        first = None
        if settings.database is not None and not settings.database.exists():
            first = make(settings, training)  # a mistake leaves no store behind
        create_store(settings)
        registry = open_registry(settings, create=True)
        production = registry.production.number()
        if production is not None and not force:
            hint = " (--force replaces)" if _is_first_model(registry, production) else ""
            return f"version {production} is production already; nothing changed{hint}"
        _refuse_to_step_back(registry, production, force=force)
        first = first or make(settings, training, _learnt_by_cycles_alone(registry))
        version = make_production(
            settings, registry, training, _first_version(registry, training, first), production
        )
    measured = first.measured(training.error_unit)
    return f"registered version {version.number} as production: mean error {measured}"


def _learnt_by_cycles_alone(registry: Registry) -> set[str]:
    """Return SHA-256 of what cycles learnt and no first model did: it came after the pickle."""
    by_cycles: set[str] = set()
    by_first: set[str] = set()
    for version, manifest in registry.versions.manifests():
        learnt = by_cycles if TAG_CHAMPION in version.tags else by_first
        learnt |= {*manifest.names} if manifest else set()
    return by_cycles - by_first


def _is_first_model(registry: Registry, number: int) -> bool:
    """Say whether a version is a first model that this home registered: no cycle made it."""
    version = registry.versions.get(number)
    with contextlib.suppress(PipelineError):
        registry.vouches.check(version)
        return TAG_CHAMPION not in version.tags
    return False


def _refuse_to_step_back(registry: Registry, production: int | None, *, force: bool) -> None:
    """Refuse to put a first model in the place of what is better, and can be used.

    Raises
    ------
    PipelineError
        If cycles or another home made production, or somebody only took its alias away.
    """
    number = production
    if number is None:
        number = next(registry.production.to_go_back_to(None), None)
        if number is not None and not force:
            registry.production.champion()  # says what became of it, and what puts it back
    if number is None:
        return
    version = registry.versions.get(number)
    registry.vouches.check(version)
    if TAG_CHAMPION not in version.tags:  # a first model, too
        return
    try:
        learnt = registry.learnt_by(version)
        with registry.models.verified_files(version):
            pass
    except TryLaterError:
        raise
    except PipelineError as error:
        logger.warning("version %d cannot be used: %s", number, error)
        return
    raise PipelineError(
        f"version {number} was made by a cycle, from {len(learnt.files)} recordings; a first model "
        "in its place would forget them. To train anew on all that is there: python "
        "pipeline_orchestrator.py run --retrain; to go back to the version before: "
        "python pipeline_orchestrator.py rollback; to begin anew beside it: another --model-name"
    )


def _first_version(registry: Registry, training: Training, first: FirstModel) -> FirstVersion:
    def store(run_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        return registry.versions.register(
            first.trained,
            run_id=run_id,
            training=training,
            manifest=first.manifest,
            out_of_fold=records.out_of_fold_table(first.trained, first.manifest)
            if first.out_of_fold
            else b"",
            before_labels=_before_labels(first, training),
            tags={**tags, **first.tags},
        )

    return FirstVersion(
        store=store,
        record=_record(first),
        source=first.source,
        measured=first.measured(training.error_unit),
        # Of what it was trained on it would be 0 in the history for ever.
        mean_error=first.trained.mean_error if first.out_of_fold else None,
    )


def _before_labels(first: FirstModel, training: Training) -> bytes:
    """Return what is known of it before labels come; what its own training left beside a pickle."""
    return first.before_labels or records.before_labels(first.trained, training, first.manifest)


def _record(first: FirstModel) -> RunRecord:
    """Return what the run keeps; errors of what it was trained on are no evidence for later."""
    errors = first.trained.out_of_fold
    return RunRecord(
        metrics={
            "mean_error": first.trained.mean_error,
            "max_error": float(errors[ERROR].max()),
            "recordings": len(errors),
        },
        params={"model": type(first.trained.model).__name__, **first.params},
        tables={"errors_by_recording.json": errors},
        datasets=[Dataset(first.manifest, "used_gts", "baseline")],
    )


def main(arguments: list[str] | None = None) -> int:
    """Register the first model and return the exit status."""
    parser = OneLineParser(
        prog="register_first_model.py",
        description="Put the first model into the registry as production.",
    )
    parser.add_argument("--force", action="store_true", help="replace a production version")
    parser.add_argument(
        "--train", action="store_true", help="train it on used_gts/ instead of loading its pickle"
    )
    add_settings(parser, only=OF_FIRST_MODEL)
    options = parser.parse_args(command_line.words_of(arguments))

    def work(settings: Settings) -> int:
        message = register_first_model(settings, force=options.force, train=options.train)
        print_result(message, {}, as_json=False)
        return EXIT_DONE

    return command_line.run_command(work, options)


if __name__ == "__main__":
    sys.exit(main())
