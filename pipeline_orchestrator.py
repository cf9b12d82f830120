"""Keep the production model good enough: one cycle of monitoring and retraining, made for cron.

0. Tidy: finish what an interrupted cycle left.
1. Trigger: enough new ground truth files?
2. Monitor: score the production model on them; a new one is on probation.
3. Decide: is its mean error above the threshold?
4. Retrain on the old and the new recordings.
5. Compare champion and challenger on recordings that neither was trained on.
6. Promote the challenger if it is really better.
7. Archive the new files.

Usage::

    python pipeline_orchestrator.py [run] [--dry-run] [--force] [--quiet | --verbose] [--json]
    python pipeline_orchestrator.py status [--max-age HOURS] [--json]
    python pipeline_orchestrator.py history [--at TIME]
    python pipeline_orchestrator.py rollback [--to VERSION]
    python pipeline_orchestrator.py requeue [NAME ...]
    python pipeline_orchestrator.py reproduce VERSION [--json]
    python pipeline_orchestrator.py lineage FILE [--json]
    python pipeline_orchestrator.py upgrade-store

The verdict is one line on standard output, the log goes to standard error. Exit status: 0 done,
whatever the verdict; 1 error; 2 usage; 75 try again later; 128 + n stopped by signal n.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cycle_pages
import cycle_records
import dask_cluster
import gts_folder
import model_registry
import notifications
import pipeline_recovery
import pipeline_status
import version_lineage
from command_line import (
    OneLineParser,
    add_settings,
    print_result,
    run_command,
    stop_request,
)
from cycle_records import (
    Batch,
    Challenger,
    Champion,
    CycleResult,
    Findings,
    Monitoring,
    Outcome,
    Probation,
)
from feature_cache import FeatureCache
from model_registry import Manifest, ModelRegistry
from pipeline_settings import (
    EXIT_DONE,
    EXIT_ERROR,
    EXIT_STATUSES,
    PipelineError,
    Settings,
    TryLaterError,
    check_home,
)
from training_module import ERROR, TrainedModel, Training, load_training_module

if TYPE_CHECKING:
    import pandas as pd

    from champion_gate import Verdict

logger = logging.getLogger("pipeline")


# --- Between the steps ---


def _step(name: str, *values: Any) -> None:
    """Begin a step: the place where a cycle may be stopped."""
    stop_request.obey()
    logger.info(name, *values)


# --- 1. Trigger ---


def take_in_batch(
    settings: Settings, training: Training, champion: Champion, *, dry_run: bool
) -> Batch:
    """Read the new files once; invalid ones and duplicates leave the batch.

    Parameters
    ----------
    settings
        Name the folders.
    training
        The training module: its reader.
    champion
        What it was trained on is not new.
    dry_run
        Only say which files are bad.

    Raises
    ------
    PipelineError
        If no file can be used and production came from a module of another name: somebody named
        the wrong one, and the files are not to blame.
    """
    intake = gts_folder.take_in(settings, training, champion.manifest.names)
    made_by = champion.version.tags.get(model_registry.TAG_MODULE, training.name)
    if intake.refusals and not intake.files and made_by != training.name:
        raise PipelineError(
            f"{training.path.name} can use none of the new files, the first of them "
            f"{intake.refusals[0].what}; version {champion.version.number} was made by "
            f"{made_by}.py: name the right one with --training-module; no file was moved"
        )
    if dry_run:
        for refusal in intake.refusals:
            logger.warning("would reject %r: %s", refusal.name, refusal.what)
    else:
        gts_folder.reject(settings, intake.refusals)
    quality = {one.name: one.data_quality for one in intake.files if one.data_quality}
    return Batch(intake.files, intake.fingerprint, quality)


# --- 2. Monitor ---


def load_champion(registry: ModelRegistry, training: Training) -> Champion:
    """Load the production model, verified.

    Parameters
    ----------
    registry
        Where it is.
    training
        The training module. A champion that other code made predicts with its own.
    """
    version = registry.champion()
    model = registry.load(version, training)
    return Champion(version, model, registry.manifest(version))


def monitor(training: Training, champion: Champion, batch: Batch) -> Monitoring:
    """Score the production model on the new recordings.

    Parameters
    ----------
    training
        The training module: its metric.
    champion
        The production model.
    batch
        The new recordings.
    """
    import champion_gate

    errors = _score(training, champion.model, batch)
    low, high = champion_gate.mean_interval(errors[ERROR])
    return Monitoring(errors, float(errors[ERROR].mean()), low, high)


def end_probation(findings: Findings, monitoring: Monitoring, batch: Batch) -> Probation | None:
    """Compare a newly promoted version with the one before, when it first meets new recordings.

    Parameters
    ----------
    findings
        Of the cycle: its settings, registry, training module and champion.
    monitoring
        The champion's errors on the batch.
    batch
        The new recordings.

    Returns
    -------
    Probation or None
        Whether the version before is better, by the standard of a promotion. None if the champion
        is not on probation, or if the version before can no longer be loaded or scored.
    """
    registry, training, champion = findings.registry, findings.training, findings.champion
    number = registry.on_probation_against(champion.version)
    if number is None:
        return None
    try:
        version = registry.version(number)
        model, manifest = registry.load(version, training), registry.manifest(version)
        errors = _score(training, model, batch)
    except TryLaterError:
        raise
    except PipelineError as error:
        logger.warning("version %d has no probation: %s", champion.version.number, error)
        return None
    verdict = _judge(
        findings,
        monitoring.errors[ERROR],
        errors[ERROR].reindex(monitoring.errors.index),
        no_model_errors=_no_model_errors(training, batch, monitoring),
        n_leaked=sum(one.sha256 in manifest.names for one in batch.files),
    )
    logger.info(
        "version %d is on probation against version %d: %s",
        champion.version.number,
        number,
        "lost" if verdict.promote else "passed",
    )
    return Probation(version, errors, verdict)


def roll_back(
    registry: ModelRegistry,
    champion: Champion,
    probation: Probation,
    tags: Mapping[str, str],
) -> None:
    """Make the version before production again.

    Parameters
    ----------
    registry
        Has the aliases.
    champion
        Must still be production.
    probation
        Has the version before, which was loaded, verified and scored.
    tags
        For the run, the cycle's id among them.
    """
    verdict, before = probation.verdict, probation.version.number
    logger.warning("version %d lost its probation: back to %d", champion.version.number, before)
    registry.promote(
        before,
        replaces=champion.version.number,
        event=model_registry.EVENT_PROBATION,
        why=f"probation: {verdict.explain()}",
        tags=tags,
        mean_errors=(verdict.champion_mean_error, verdict.challenger_mean_error),
    )


def _score(training: Training, model: Any, batch: Batch) -> pd.DataFrame:
    import pandas as pd

    parts = (pd.concat([one.rows for one in part], ignore_index=True) for part in batch.parts())
    return pd.concat([training.errors(model, rows) for rows in parts])


# --- 3. Decide ---


def should_retrain(monitoring: Monitoring, settings: Settings) -> bool:
    """Say whether the production model is no longer good enough.

    Parameters
    ----------
    monitoring
        Of the production model.
    settings
        The threshold, and whether the mean error or the lower end of its interval must pass it.
    """
    decisive = monitoring.interval_low if settings.decide == "bound" else monitoring.mean_error
    return not decisive <= settings.threshold


# --- 4. Retrain ---


def retrain(
    findings: Findings, batch: Batch, tags: Mapping[str, str], *, dry_run: bool
) -> Challenger:
    """Train a challenger on all recordings; in the run `ModelRetraining` unless it is a dry run.

    Parameters
    ----------
    findings
        Of the cycle: its settings, training module, and the registry that gets the version.
    batch
        The new recordings, trained on together with used_gts/.
    tags
        Cycle, batch, champion and settings.
    dry_run
        Train, but record nothing.
    """
    settings, registry, training = findings.settings, findings.registry, findings.training
    if dry_run:
        result, manifest = _train(settings, training, batch, dry_run=True)
        return Challenger(result, manifest, None)
    with registry.run(model_registry.RETRAINING_RUN, tags) as run_id:
        result, manifest = _train(settings, training, batch, dry_run=False)
        stop_request.obey()
        cycle_records.record_training(registry, settings, result, manifest, batch)
        version = registry.register(
            result.model,
            run_id=run_id,
            input_example=result.input_example,
            training=training,
            manifest=manifest,
            tags=tags,
        )
    logger.info("registered version %d", version.number)
    return Challenger(result, manifest, version)


def _train(
    settings: Settings, training: Training, batch: Batch, *, dry_run: bool
) -> tuple[TrainedModel, Manifest]:
    version = training.feature_version()
    cache = FeatureCache(settings.home, version, settings.cache_mb, read_only=dry_run)
    with (
        dask_cluster.joblib_backend(settings, training) as backend,
        gts_folder.training_folder(settings, batch.files) as (folder, hashes),
    ):
        result = training.train(
            folder,
            n_folds=settings.n_folds,
            random_state=settings.random_state,
            n_jobs=settings.n_jobs,
            backend=backend,
            tables=cache if version and settings.cache_mb else None,
        )
    cache.trim()
    logger.info(
        "trained on %d recordings, %d of them read before: mean error %.2f %s out of fold",
        len(hashes),
        cache.n_hits,
        result.mean_error,
        training.error_unit,
    )
    return result, cycle_records.training_manifest(hashes, result.row_counts)


# --- 5. Compare ---


def compare(
    findings: Findings,
    monitoring: Monitoring,
    challenger: Challenger,
    batch: Batch,
    champion_out_of_fold: Mapping[str, float],
    earlier_looks: Sequence[int],
) -> Verdict:
    """Judge both models on the same recordings, none of which either was trained on.

    Parameters
    ----------
    findings
        Of the cycle: its settings, training module and champion.
    monitoring
        The champion's errors on the batch.
    challenger
        Brings out-of-fold errors of every recording.
    batch
        The new recordings.
    champion_out_of_fold
        SHA-256 -> error of the champion's own cross-validation; may be empty.
    earlier_looks
        Number of recordings each time that this champion was judged before.
    """
    import numpy as np

    held_out = challenger.out_of_fold
    used = sorted(set(champion_out_of_fold) & set(held_out) - {one.sha256 for one in batch.files})
    new = [batch.hashes[name] for name in monitoring.errors.index]
    settings, manifest = findings.settings, findings.champion.manifest
    return _judge(
        findings,
        monitoring.errors[ERROR],
        [held_out[sha256] for sha256 in new if sha256 in held_out],
        earlier_looks=earlier_looks,
        peeking=settings.peeking,
        max_regression=settings.max_regression,
        no_model_errors=_no_model_errors(findings.training, batch, monitoring),
        used_errors=(
            np.array([champion_out_of_fold[sha256] for sha256 in used]),
            np.array([held_out[sha256] for sha256 in used]),
        )
        if used
        else None,
        n_leaked=sum(one.sha256 in manifest.names for one in batch.files),
    )


def _judge(findings: Findings, *errors: Any, **limits: Any) -> Verdict:
    """Ask the gate; where it cannot compare there is no promotion, but an error."""
    import champion_gate

    try:
        return champion_gate.judge(
            *errors,
            significance=findings.settings.significance,
            min_improvement=findings.settings.min_improvement,
            unit=findings.training.error_unit,
            **limits,
        )
    except champion_gate.NoVerdict as error:
        raise PipelineError(
            f"no verdict, production stays version {findings.champion.version.number}: {error}; "
            "look at what the training module returned"
        ) from error


def _no_model_errors(
    training: Training, batch: Batch, monitoring: Monitoring
) -> pd.Series[float] | None:
    """Return the errors without a model, in the order of monitoring; None if not applicable."""
    import pandas as pd

    errors = [training.errors_without_a_model(one.rows) for one in batch.files]
    known = [table[ERROR] for table in errors if table is not None]
    return pd.concat(known).reindex(monitoring.errors.index) if known else None


# --- 6. Promote ---


def promote(
    findings: Findings,
    challenger: Challenger,
    batch: Batch,
    verdict: Verdict,
    tags: Mapping[str, str],
) -> None:
    """Verify the registered challenger, then move the aliases.

    Parameters
    ----------
    findings
        Of the cycle: its registry, its training module, and the champion that must still be
        production.
    challenger
        Its registered model must predict what was trained.
    batch
        On these recordings.
    verdict
        For the history.
    tags
        For the run.

    Raises
    ------
    PipelineError
        If the stored model differs, or somebody moved the alias.
    """
    registry, training, champion = findings.registry, findings.training, findings.champion
    version = challenger.version
    if version is None:
        raise ValueError("a challenger of a dry run cannot be promoted")
    stored = registry.load_and_try(version, training)
    trained_errors = _score(training, challenger.result.model, batch)
    if not _score(training, stored, batch).equals(trained_errors):
        raise PipelineError(
            f"version {version.number} does not predict what was trained; production stays "
            f"version {champion.version.number}; check the artifact store"
        )
    registry.promote(
        version.number,
        replaces=champion.version.number,
        event=model_registry.EVENT_PROMOTION,
        why=verdict.explain(),
        tags=tags,
        mean_errors=(verdict.champion_mean_error, verdict.challenger_mean_error),
    )


# --- The flow ---


def run_orchestrator(
    settings: Settings, *, dry_run: bool = False, force: bool = False
) -> CycleResult:
    """Run one cycle.

    Parameters
    ----------
    settings
        Of this home.
    dry_run
        Change no file, no run and no version; say what would happen.
    force
        Judge a batch again that was judged before.

    Raises
    ------
    PipelineError
        With one line for the operator; nothing is half changed.
    """
    check_home(settings)
    if dry_run:
        with gts_folder.lock_without_writing(settings):
            return _triggered_cycle(settings, dry_run=True, force=force)
    with gts_folder.exclusive_lock(settings, "run"):
        with notifications.failure_noted(settings):
            pipeline_recovery.tidy(settings)
            result = _triggered_cycle(settings, dry_run=False, force=force)
        cycle_pages.note_quiet_night(settings, result)
        notifications.note_end(settings, result.outcome.value, result.message, result.stuck)
    return result


def _triggered_cycle(settings: Settings, *, dry_run: bool, force: bool) -> CycleResult:
    """Begin a cycle if there are enough files; nothing heavy is imported before."""
    n_names = len(gts_folder.waiting_names(settings.new_gts))
    if n_names < settings.min_new_files:
        return cycle_records.waiting(settings, n_names)
    _step("1. trigger: %d new files", n_names)
    registry = model_registry.open_registry(settings)
    training = load_training_module(settings)
    champion = load_champion(registry, training)
    findings = Findings(settings, registry, training, champion)
    if dry_run:
        result = _cycle(findings, "dry-run", dry_run=True, force=force)
    else:
        with (
            pipeline_recovery.unfinished_until_done(settings, "run") as cycle_id,
            cycle_pages.failure_explained(findings),
        ):
            result = _cycle(findings, cycle_id, dry_run=False, force=force)
    return dataclasses.replace(result, recordings=findings.recordings(), unit=training.error_unit)


def _cycle(findings: Findings, cycle_id: str, *, dry_run: bool, force: bool) -> CycleResult:
    """Run the steps; each is a function of its own section above."""
    settings, registry = findings.settings, findings.registry
    training, champion = findings.training, findings.champion
    batch = findings.batch = take_in_batch(settings, training, champion, dry_run=dry_run)
    if len(batch.files) < settings.min_new_files:
        return cycle_records.waiting(settings, len(batch.files))
    same_question = {
        model_registry.TAG_BATCH: batch.fingerprint,
        model_registry.TAG_CHAMPION: str(champion.version.number),
        model_registry.TAG_SETTINGS: settings.verdict_fingerprint(training.code_sha256),
    }
    lost_batches = registry.lost_batches(champion.version)
    earlier = "" if force else registry.judged_before(same_question)
    if earlier:
        return cycle_records.already_judged(settings, champion, batch, earlier, lost_batches)
    tags = {
        model_registry.TAG_CYCLE: cycle_id,
        model_registry.TAG_UNIT: training.error_unit,
        **same_question,
    }

    _step("2. monitor: version %d on %d recordings", champion.version.number, len(batch.files))
    for name, note in batch.data_quality.items():
        logger.warning("data quality: %s: %s", name, note)
    monitoring = findings.monitoring = monitor(training, champion, batch)
    probation = findings.probation = end_probation(findings, monitoring, batch)
    if not dry_run:
        history = findings.history = cycle_pages.monitored_batches(registry, tags)
        findings.monitoring_run = cycle_records.record_monitoring(
            registry, settings, monitoring, batch, tags, history, probation
        )
    if findings.lost_probation:
        result = cycle_records.rolled_back(
            champion, batch, findings.lost_probation, dry_run=dry_run
        )
        if not dry_run:
            roll_back(registry, champion, findings.lost_probation, tags)
            cycle_pages.conclude(findings, result)
            notifications.announce_change(settings, registry, cycle_id)
        return result

    _step("3. decide: mean error %.2f %s", monitoring.mean_error, training.error_unit)
    if not should_retrain(monitoring, settings):
        result = cycle_records.healthy(findings, batch, monitoring)
        cycle_pages.conclude(findings, result)
        return result

    _step("4. retrain on used_gts/ and new_gts/")
    challenger = findings.challenger = retrain(findings, batch, tags, dry_run=dry_run)

    _step("5. compare champion and challenger on %d recordings", len(batch.files))
    verdict = findings.verdict = compare(
        findings,
        monitoring,
        challenger,
        batch,
        registry.out_of_fold_errors(champion.version, training),
        registry.earlier_looks(champion.version),
    )
    result = cycle_records.judged(settings, champion, challenger, batch, verdict, lost_batches)
    if challenger.version is None:
        return result
    registry.record_verdict(
        challenger.version, verdict.as_dict(), cycle_records.version_description(verdict)
    )
    if not verdict.promote:
        cycle_pages.conclude(findings, result)
        return result

    _step("6. promote version %d", challenger.version.number)
    promote(findings, challenger, batch, verdict, tags)
    cycle_pages.conclude(findings, result)
    notifications.announce_change(settings, registry, cycle_id)

    _step("7. archive %d files", len(batch.files))
    pipeline_recovery.archive(settings, challenger.manifest.names)
    return result


# --- The command line ---

TONES = {
    Outcome.HEALTHY: "good",
    Outcome.PROMOTED: "good",
    Outcome.NOT_PROMOTED: "look",
    Outcome.ROLLED_BACK: "look",
}


def _run_command(settings: Settings, options: argparse.Namespace) -> int:
    result = run_orchestrator(settings, dry_run=options.dry_run, force=options.force)
    if options.verbose and result.recordings:
        sys.stderr.write(cycle_records.recordings_table(result.recordings, result.unit))
    if not options.quiet:
        facts = {
            "outcome": result.outcome.value,
            "message": result.message,
            "stuck": result.stuck,
            **result.facts,
            "by_recording": [dataclasses.asdict(one) for one in result.recordings],
        }
        print_result(
            result.message, facts, as_json=options.json, tone=TONES.get(result.outcome, "")
        )
    return EXIT_DONE


def _status_command(settings: Settings, options: argparse.Namespace) -> int:
    state = pipeline_status.status(settings, options.max_age)
    print_result(pipeline_status.as_text(state), state, as_json=options.json)
    return EXIT_ERROR if state["problems"] else EXIT_DONE


def _history_command(settings: Settings, options: argparse.Namespace) -> int:
    changes = pipeline_status.history(settings)
    if options.at is None:
        text = "\n".join(pipeline_status.change_line(one) for one in changes)
        print_result(text, {"changes": changes}, as_json=options.json)
        return EXIT_DONE
    change = pipeline_status.production_at(changes, options.at)
    found = f"version {change['to']}" if change else "none"
    uncertain = bool(changes) and changes[0]["event"] == "unrecorded"
    if uncertain:
        found += f", or {changes[0]['to']}: {changes[0]['why']}, at an unknown time"
    facts = {
        "at": options.at,
        "production": change["to"] if change else None,
        "uncertain": uncertain,
    }
    print_result(f"production at {options.at}: {found}", facts, as_json=options.json)
    return EXIT_DONE


def _rollback_command(settings: Settings, options: argparse.Namespace) -> int:
    print_result(pipeline_recovery.rollback(settings, options.to), {}, as_json=False)
    return EXIT_DONE


def _requeue_command(settings: Settings, options: argparse.Namespace) -> int:
    print_result(pipeline_recovery.requeue(settings, options.names), {}, as_json=False)
    return EXIT_DONE


def _upgrade_command(settings: Settings, _options: argparse.Namespace) -> int:
    print_result(pipeline_recovery.upgrade_store(settings), {}, as_json=False)
    return EXIT_DONE


def _reproduce_command(settings: Settings, options: argparse.Namespace) -> int:
    result = version_lineage.reproduce(settings, options.version)
    print_result(version_lineage.reproduction_text(result), result, as_json=options.json)
    return EXIT_DONE if result["identical"] else EXIT_ERROR


def _lineage_command(settings: Settings, options: argparse.Namespace) -> int:
    found = version_lineage.lineage(settings, options.file)
    print_result(version_lineage.lineage_text(found), found, as_json=options.json)
    return EXIT_DONE


COMMANDS = {
    "run": (_run_command, "one cycle; the default"),
    "status": (_status_command, "production version, last cycles, files waiting"),
    "history": (_history_command, "every change of production"),
    "rollback": (_rollback_command, "make an earlier version production again"),
    "requeue": (_requeue_command, "put mended files from new_gts/rejected/ back"),
    "reproduce": (_reproduce_command, "train a version again and compare its predictions"),
    "lineage": (_lineage_command, "the versions that were trained on a recording"),
    "upgrade-store": (_upgrade_command, "migrate the embedded store, with a backup"),
}


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="pipeline_orchestrator.py",
        description="Monitor the production model, retrain it when it degrades, promote only "
        "what is better. Without a command: run.",
        epilog="exit status: "
        + "; ".join(f"{status}: {meaning}" for status, meaning in EXIT_STATUSES.items()),
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    parsers = {}
    for name, (_, text) in COMMANDS.items():
        parsers[name] = commands.add_parser(name, help=text, description=text)
        add_settings(parsers[name])
    run = parsers["run"]
    run.add_argument("--dry-run", action="store_true", help="change nothing, say what would happen")
    run.add_argument("--force", action="store_true", help="judge a batch again")
    run.add_argument("--verbose", action="store_true", help="list the recordings as well")
    run.add_argument("--quiet", action="store_true", help="print only what somebody must look at")
    for name in ("run", "status", "history", "reproduce", "lineage"):
        parsers[name].add_argument("--json", action="store_true", help="print JSON")
    parsers["status"].add_argument(
        "--max-age", type=float, metavar="HOURS", help="exit 1 if no run ended within so many hours"
    )
    parsers["history"].add_argument(
        "--at", metavar="TIME", help="which version was production then, such as 2026-05-01T12:00"
    )
    parsers["rollback"].add_argument(
        "--to", type=int, metavar="VERSION", help="default: the version before"
    )
    parsers["reproduce"].add_argument("version", type=int, metavar="VERSION", help="its number")
    parsers["lineage"].add_argument("file", metavar="FILE", help="a path, or a name in the home")
    parsers["requeue"].add_argument("names", nargs="*", metavar="NAME", help="default: all")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status.

    Parameters
    ----------
    arguments
        Command line without the program's name; `sys.argv` by default.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or (words[0] not in COMMANDS and words[0] not in ("-h", "--help")):
        words = ["run", *words]
    options = _parser().parse_args(words)
    command = COMMANDS[options.command][0]
    return run_command(lambda settings: command(settings, options), options)


if __name__ == "__main__":
    sys.exit(main())
