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
    python pipeline_orchestrator.py COMMAND ...

`--help` lists the other commands. The verdict is one line on standard output, the log goes to
standard error. Exit status: 0 done, whatever the verdict; 1 error; 2 usage; 75 try again later;
128 + n stopped by signal n.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from retraining import command_line, dask_cluster, ground_truth, records
from retraining.command_line import Command, print_result
from retraining.commands import COMMANDS
from retraining.cycle import Batch, Challenger, Champion, Cycle, CycleResult, Monitoring, Probation
from retraining.errors import EXIT_DONE, PipelineError, TryLaterError
from retraining.files import waiting_names
from retraining.recorder import DryRun, Recorder
from retraining.registry import Registry, open_registry
from retraining.registry.facts import TAG_MODULE, Manifest
from retraining.settings import Settings, check_home
from retraining.text import number_text, printable
from retraining.training import ERROR, TrainedModel, Training, load_training_module

if TYPE_CHECKING:
    import pandas as pd

    from retraining.gate import Verdict

logger = logging.getLogger("pipeline")


# --- 1. Trigger ---


def take_in_batch(cycle: Cycle, recorder: Recorder) -> Batch:
    """Read the new files once; invalid ones and duplicates leave the batch.

    Raises
    ------
    PipelineError
        If no file can be used and production came from a module of another name: somebody named
        the wrong one, and the files are not to blame.
    """
    training, champion = cycle.training, cycle.champion
    intake = ground_truth.take_in(cycle.settings, training, champion.manifest.names)
    made_by = champion.version.read.text(TAG_MODULE, training.name)
    if intake.refusals and not intake.files and made_by != training.name:
        raise PipelineError(
            f"{training.path.name} can use none of the new files, the first of them "
            f"{intake.refusals[0].what}; version {champion.number} was made by "
            f"{printable(made_by)}.py: name the right one with --training-module; no file was moved"
        )
    recorder.reject(cycle.settings, intake.refusals)
    quality = {one.name: one.data_quality for one in intake.files if one.data_quality}
    return Batch(intake.files, intake.fingerprint, quality)


# --- 2. Monitor ---


def load_champion(registry: Registry, training: Training) -> Champion:
    """Load the production model, verified; one that other code made predicts with its own."""
    version = registry.production.champion()
    model = registry.models.load(version, training)
    return Champion(version, model, registry.versions.manifest(version))


def monitor(training: Training, champion: Champion, batch: Batch) -> Monitoring:
    """Score the production model on the new recordings."""
    from retraining import gate

    errors = _score(training, champion.model, batch)
    low, high = gate.mean_interval(errors[ERROR])
    return Monitoring(errors, float(errors[ERROR].mean()), low, high)


def end_probation(cycle: Cycle) -> Probation | None:
    """Compare a newly promoted version with the one before, when it first meets new recordings.

    Returns
    -------
    Probation or None
        Whether the version before is better, by the standard of a promotion. None if the champion
        is not on probation, or if the version before can no longer be loaded or scored.
    """
    registry, training, champion = cycle.registry, cycle.training, cycle.champion
    number = registry.production.on_probation_against(champion.version)
    if number is None:
        return None
    try:
        version = registry.versions.get(number)
        model = registry.models.load(version, training)
        manifest = registry.versions.manifest(version)
        errors = _score(training, model, cycle.batch)
    except TryLaterError:
        raise
    except PipelineError as error:
        logger.warning("version %d has no probation: %s", champion.number, error)
        return None
    verdict = _judge(
        cycle,
        errors[ERROR].reindex(cycle.errors.index),
        no_model_errors=_no_model_errors(cycle),
        n_leaked=sum(one.sha256 in manifest.names for one in cycle.batch.files),
    )
    state = "lost" if verdict.promote else "passed"
    logger.info("version %d is on probation against version %d: %s", champion.number, number, state)
    return Probation(version, errors, verdict)


def _score(training: Training, model: Any, batch: Batch) -> pd.DataFrame:
    import pandas as pd

    parts = ([one.rows for one in part] for part in batch.parts())
    return pd.concat([training.errors(model, part) for part in parts])


# --- 3. Decide ---


def should_retrain(monitoring: Monitoring, threshold: float, decide: str) -> bool:
    """Say whether the production model is no longer good enough.

    Parameters
    ----------
    decide
        Whether the mean error itself ("point") or the lower end of its interval ("bound") must
        pass the threshold.
    """
    decisive = monitoring.interval_low if decide == "bound" else monitoring.mean_error
    # Negated, so that an error which is no number retrains instead of looking healthy.
    return not decisive <= threshold


# --- 4. Retrain ---


def retrain(cycle: Cycle, recorder: Recorder) -> Challenger:
    """Train a challenger on all recordings, in the run `ModelRetraining`, and register it."""
    with recorder.retraining(cycle) as register:
        trained, manifest = _train(cycle, recorder)
        return Challenger(trained, manifest, register(trained, manifest))


def _train(cycle: Cycle, recorder: Recorder) -> tuple[TrainedModel, Manifest]:
    from retraining.cross_validation import Resources, train

    settings, tables = cycle.settings, recorder.tables(cycle)
    with (
        dask_cluster.joblib_backend(settings, cycle.training) as backend,
        ground_truth.training_folder(settings, cycle.batch.files) as (folder, hashes),
    ):
        trained, n_known = train(
            cycle.training,
            [folder / name for name in hashes],
            n_folds=settings.n_folds,
            random_state=settings.random_state,
            resources=Resources(settings.n_jobs, backend, tables, settings.max_file_mb),
        )
    if tables is not None:
        tables.trim()
    logger.info(
        "trained on %d recordings, %d of them read before: mean error %s %s out of fold",
        *(len(hashes), n_known, number_text(trained.mean_error), cycle.unit),
    )
    return trained, Manifest.of(hashes, trained.row_counts)


# --- 5. Compare ---


def compare(cycle: Cycle, challenger: Challenger) -> Verdict:
    """Judge both models on the same recordings, none of which either was trained on."""
    import numpy as np

    settings, champion, held_out = cycle.settings, cycle.champion, challenger.out_of_fold
    of_champion = cycle.registry.versions.out_of_fold_errors(champion.version, cycle.training)
    new = [cycle.batch.hashes[name] for name in cycle.errors.index]
    # Old recordings of which both models have an honest error serve as proof of no forgetting.
    used = sorted(set(of_champion) & set(held_out) - set(new))
    return _judge(
        cycle,
        [held_out[sha256] for sha256 in new if sha256 in held_out],
        earlier_looks=cycle.registry.judgements.earlier_looks(champion.version),
        peeking=settings.peeking,
        max_regression=settings.max_regression,
        no_model_errors=_no_model_errors(cycle),
        used_errors=(
            np.array([of_champion[sha256] for sha256 in used]),
            np.array([held_out[sha256] for sha256 in used]),
        )
        if used
        else None,
        n_leaked=sum(sha256 in champion.manifest.names for sha256 in new),
    )


def _judge(cycle: Cycle, rival_errors: Any, **limits: Any) -> Verdict:
    """Ask the gate; where it cannot compare there is no promotion, but an error."""
    from retraining import gate

    try:
        return gate.judge(
            cycle.errors[ERROR],
            rival_errors,
            significance=cycle.settings.significance,
            min_improvement=cycle.settings.min_improvement,
            unit=cycle.unit,
            **limits,
        )
    except gate.NoVerdict as error:
        raise PipelineError(
            f"no verdict, production stays version {cycle.champion.number}: {error}; "
            "look at what the training module returned"
        ) from error


def _no_model_errors(cycle: Cycle) -> pd.Series[float] | None:
    """Return the errors without a model, in the order of monitoring; None if not applicable."""
    import pandas as pd

    errors = [cycle.training.errors_without_a_model(one.rows) for one in cycle.batch.files]
    known = [table[ERROR] for table in errors if table is not None]
    return pd.concat(known).reindex(cycle.errors.index) if known else None


# --- 6. Promote ---


def promote(cycle: Cycle, challenger: Challenger, verdict: Verdict, recorder: Recorder) -> None:
    """Verify the registered challenger, then move the aliases.

    Raises
    ------
    PipelineError
        If the stored model differs from what was trained, or somebody moved the alias.
    """
    training, version = cycle.training, challenger.version
    if version is not None:
        # What serving systems will load, not what is in memory, is what must be right.
        stored = cycle.registry.models.load_and_try(version, training)
        trained_errors = _score(training, challenger.result.model, cycle.batch)
        if not _score(training, stored, cycle.batch).equals(trained_errors):
            raise PipelineError(
                f"version {version.number} does not predict what was trained; production stays "
                f"version {cycle.champion.number}; check the artifact store"
            )
    recorder.promote(cycle, verdict)


# --- The flow ---


def run_orchestrator(
    settings: Settings, *, dry_run: bool = False, force: bool = False
) -> CycleResult:
    """Run one cycle.

    Parameters
    ----------
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
    recorder = DryRun() if dry_run else Recorder()
    with recorder.lock(settings):
        with recorder.failures_told(settings):
            result = _triggered_cycle(settings, recorder, force=force)
        recorder.end(settings, result)
    return result


def _triggered_cycle(settings: Settings, recorder: Recorder, *, force: bool) -> CycleResult:
    """Begin a cycle if there are enough files; nothing heavy is imported before."""
    # By name alone: a night without news costs one listing of a folder.
    n_names = len(waiting_names(settings.new_gts))
    if n_names < settings.min_new_files:
        return records.waiting(settings, n_names)
    recorder.step("1. trigger: %d new files", n_names)
    registry = open_registry(settings)
    recorder.remember(settings, registry)
    training = load_training_module(settings)
    champion = load_champion(registry, training)
    with recorder.unfinished(settings) as cycle_id:
        cycle = Cycle(settings, registry, training, champion, cycle_id)
        with recorder.failure_explained(cycle):
            result = _cycle(cycle, recorder, force=force)
    return dataclasses.replace(result, recordings=cycle.recordings(), unit=cycle.unit)


def _cycle(cycle: Cycle, recorder: Recorder, *, force: bool) -> CycleResult:
    """Run the steps; each is a function of its own section above."""
    settings, champion = cycle.settings, cycle.champion
    # Names were enough to begin; only valid files that production does not know count.
    batch = cycle.batch = take_in_batch(cycle, recorder)
    if len(batch.files) < settings.min_new_files:
        return records.waiting(settings, len(batch.files))
    # The same question is not answered, and paid for, every night.
    cycle.lost_batches = cycle.registry.judgements.lost_batches(champion.version)
    earlier = "" if force else cycle.registry.judgements.before(cycle.question)
    if earlier:
        return records.already_judged(cycle, earlier)

    recorder.step("2. monitor: version %d on %d recordings", champion.number, len(batch.files))
    for name, note in batch.data_quality.items():
        logger.warning("data quality: %s: %s", printable(name), printable(note))
    monitoring = cycle.monitoring = monitor(cycle.training, champion, batch)
    # Before the run is written: a batch counts as met once it is, and probation ends with it.
    cycle.probation = end_probation(cycle)
    recorder.monitored(cycle)
    if cycle.lost_probation:
        recorder.roll_back(cycle)
        result = recorder.concluded(cycle, records.rolled_back(cycle))
        recorder.announce(cycle)
        return result

    recorder.step("3. decide: mean error %s %s", number_text(monitoring.mean_error), cycle.unit)
    if not should_retrain(monitoring, cycle.threshold, settings.decide):
        return recorder.concluded(cycle, records.healthy(cycle))

    recorder.step("4. retrain on used_gts/ and new_gts/")
    challenger = cycle.challenger = retrain(cycle, recorder)

    recorder.step("5. compare champion and challenger on %d recordings", len(batch.files))
    verdict = cycle.verdict = compare(cycle, challenger)
    # Before anything else may fail: a look at a champion counts, whatever becomes of this night.
    recorder.judged(cycle, verdict)
    if not verdict.promote:
        result = records.judged(cycle, verdict)
        if result.stuck:
            logger.warning("%s", result.stuck)
        return recorder.concluded(cycle, result)

    recorder.step("6. promote the challenger")
    promote(cycle, challenger, verdict, recorder)
    result = recorder.concluded(cycle, records.judged(cycle, verdict))
    recorder.announce(cycle)

    # Last: truth is the alias and its manifest, from which the next start can do it again.
    recorder.step("7. archive %d files", len(batch.files))
    recorder.archive(cycle, challenger.manifest)
    return result


# --- The command line ---


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="change nothing, say what would happen"
    )
    parser.add_argument("--force", action="store_true", help="judge a batch again")
    parser.add_argument("--verbose", action="store_true", help="list the recordings as well")
    parser.add_argument(
        "--quiet", action="store_true", help="print only what somebody must look at"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _work(settings: Settings, options: argparse.Namespace) -> int:
    result = run_orchestrator(settings, dry_run=options.dry_run, force=options.force)
    if options.verbose and result.recordings:
        sys.stderr.write(records.recordings_table(result.recordings, result.unit))
    if not options.quiet:
        facts = {
            "outcome": result.outcome.value,
            "message": result.message,
            "stuck": result.stuck,
            **result.facts,
            "by_recording": [dataclasses.asdict(one) for one in result.recordings],
        }
        print_result(result.message, facts, as_json=options.json, tone=result.outcome.tone)
    return EXIT_DONE


RUN = Command("run", "one cycle; the default", _add_flags, _work)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Parameters
    ----------
    arguments
        Command line without the program's name; `sys.argv` by default.
    """
    return command_line.main(
        [RUN, *COMMANDS],
        arguments,
        prog="pipeline_orchestrator.py",
        description="Monitor the production model, retrain it when it degrades, promote only "
        "what is better. Without a command: run.",
    )


if __name__ == "__main__":
    sys.exit(main())
