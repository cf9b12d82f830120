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
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retraining import command_line, dask_cluster, ground_truth, records
from retraining.command_line import Command, print_result
from retraining.commands import COMMANDS, replay
from retraining.cycle import Batch, Challenger, Champion, Cycle, CycleResult, Monitoring, Probation
from retraining.errors import EXIT_DONE, PipelineError, TryLaterError
from retraining.files import waiting_names
from retraining.journal import Journal
from retraining.looks import Past
from retraining.outcome import Outcome
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
    """Read the new files once; bad ones and those that are known in any form leave the batch.

    Raises
    ------
    PipelineError
        If no file can be used and production came from a module of another name: somebody named
        the wrong one, and the files are not to blame.
    """
    from retraining import intake

    training, champion = cycle.training, cycle.champion
    found = intake.take_in(
        cycle.settings,
        training,
        cycle.known,
        Journal(cycle.settings.home).read(),
        intake.Learnt(champion.manifest.names, _learnt_before(cycle.registry)),
    )
    made_by = champion.version.read.text(TAG_MODULE, training.name)
    if found.refusals and not found.usable and made_by != training.name:
        raise PipelineError(
            f"{training.path.name} can use none of the new files, the first of them "
            f"{found.refusals[0].what}; version {champion.number} was made by "
            f"{printable(made_by)}.py: name the right one with --training-module; no file was moved"
        )
    quality = {one.name: one.data_quality for one in found.files if one.data_quality}
    notes, judges = records.intake_notes(found), champion.version.run_id
    batch = Batch(found.files, found.fingerprint, quality, notes, judges=judges)
    return recorder.took_in(cycle, found, batch)


def _learnt_before(registry: Registry) -> Mapping[str, str]:
    """Return SHA-256 -> name of what the version before production was trained on."""
    number = registry.production.previous_number()
    if number is None:
        return {}
    try:
        return registry.learnt_by(registry.versions.get(number)).names
    except TryLaterError:
        raise
    except PipelineError as error:  # then it has no probation either
        logger.warning("what version %d learnt is not known: %s", number, error)
        return {}


# --- 2. Monitor ---


def load_champion(registry: Registry, training: Training) -> Champion:
    """Load the production model, verified; one that other code made predicts with its own."""
    version = registry.production.champion()
    model = registry.models.load(version, training)
    return Champion(version, model, registry.learnt_by(version))


def monitor(training: Training, champion: Champion, batch: Batch, decided: Batch) -> Monitoring:
    """Score the production model on the new recordings, of which the newest decide.

    Where they were listed for checking, their mean is that of the pool: see `marks.Selection`.
    """
    from retraining.resampling import mean_interval, weighted_mean

    errors = _score(training, champion.model, batch)
    decisive, weights = decided.with_offsets(errors[ERROR]), decided.selection.weights
    low, high = mean_interval(decisive, _sessions(decided, decisive), weights=weights, at_least=0.0)
    mean = max(weighted_mean(decisive, weights), 0.0)
    of_all = weighted_mean(batch.with_offsets(errors[ERROR]), batch.selection.weights)
    return Monitoring(errors, mean, low, high, max(of_all, 0.0))


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
        batch = cycle.batch.without(registry.learnt_by(version).names)
        if not batch.files:
            logger.info("version %d learnt these recordings: no probation yet", number)
            return None
        errors = _score(training, model, batch)
    except TryLaterError:
        raise
    except PipelineError as error:
        logger.warning("version %d has no probation: %s", champion.number, error)
        return None
    verdict = _judge(cycle, batch, errors[ERROR])
    state = "lost" if verdict.promote else "passed"
    logger.info("version %d is on probation against version %d: %s", champion.number, number, state)
    return Probation(version, errors, verdict)


def _score(training: Training, model: Any, batch: Batch) -> pd.DataFrame:
    import pandas as pd

    parts = ([one.rows for one in part] for part in batch.parts())
    return pd.concat([training.errors(model, part) for part in parts])


def _sessions(batch: Batch, errors: pd.DataFrame | pd.Series[float]) -> list[str]:
    """Return the session of each recording, in the order of its errors."""
    return [batch.sessions[name] for name in errors.index]


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
    from retraining import intake
    from retraining.cross_validation import Resources, train

    settings, tables = cycle.settings, recorder.tables(cycle)
    with (
        dask_cluster.joblib_backend(settings, cycle.training) as backend,
        ground_truth.training_folder(settings, cycle.batch.files, cycle.batch.stand_ins) as (
            folder,
            hashes,
        ),
    ):
        trained, n_known = train(
            cycle.training,
            [folder / name for name in hashes],
            n_folds=settings.n_folds,
            random_state=settings.random_state,
            resources=Resources(settings.n_jobs, backend, tables),
            twins=intake.twins(cycle.known, {sha256: name for name, sha256 in hashes.items()}),
        )
    if tables is not None:
        tables.trim()
    logger.info(
        "trained on %d recordings, %d of them read before: mean error %s %s out of fold",
        *(len(hashes), n_known, number_text(trained.mean_error), cycle.unit),
    )
    return trained, Manifest.of(hashes, trained.row_counts, cycle.known.identity)


# --- 5. Compare ---


def compare(cycle: Cycle, challenger: Challenger) -> Verdict:
    """Judge both models on the same recordings, none of which either was trained on.

    The newest ones are compared; all others tell whether the challenger forgets.
    """
    import pandas as pd

    settings, champion, held_out = cycle.settings, cycle.champion, challenger.out_of_fold
    window, weights, hashes = cycle.window, cycle.decided.weights, cycle.batch.hashes
    new = {name: hashes[name] for name in window.names if hashes[name] in held_out}
    used = champion_on_others(cycle, challenger)
    learnt = champion.manifest.names
    return _judge(
        cycle,
        window,
        pd.Series([held_out[sha256] for sha256 in new.values()], index=list(new), dtype=float),
        threshold=cycle.threshold,
        decided=[weights.get(name, 0.0) for name in window.names],
        known=cycle.decided.selection.known,
        decide=settings.decide,
        repeated_looks=cycle.past.repeated_looks(
            champion.number, challenger.manifest.digest, cycle.question, window.recordings
        ),
        max_regression=settings.max_regression,
        used_errors=(used.to_numpy(), used.index.map(held_out).to_numpy()) if len(used) else None,
        used_sessions=[challenger.sessions[sha256] for sha256 in used.index],
        n_leaked=sum(one.was_learnt_as(learnt) for one in cycle.batch.files),
        nights=[one.night for one in window.files],
        window=settings.window,
        recordings_a_night=cycle.batch.a_night,
    )


def champion_on_others(cycle: Cycle, challenger: Challenger) -> pd.Series[float]:
    """Return the champion's honest errors on all recordings outside the window, by SHA-256."""
    import pandas as pd

    compared = cycle.window.names
    older = {one.sha256: one.name for one in cycle.batch.files if one.name not in compared}
    errors = cycle.errors[ERROR].loc[[*older.values()]].set_axis([*older])
    return pd.concat([champion_on_used(cycle, challenger), errors]).astype(float)


def champion_on_used(cycle: Cycle, challenger: Challenger) -> pd.Series[float]:
    """Return the champion's honest errors on the old recordings, by SHA-256.

    Out of fold where it learnt a recording as it is, and its own where it learnt it in no form, as
    after a rollback. One whose labels were corrected since serves no proof.
    """
    import pandas as pd

    champion, training = cycle.champion, cycle.training
    out_of_fold = cycle.registry.versions.out_of_fold_errors(champion.version, training)
    new = set(cycle.batch.hashes.values())
    used = {one.sha256: one for one in challenger.manifest.files if one.sha256 not in new}
    errors = {sha256: out_of_fold[sha256] for sha256 in used if sha256 in out_of_fold}
    direct = cycle.known.unrelated(
        [one for one in used if one not in errors], champion.manifest.names
    )
    files = ground_truth.files_of(cycle.settings, training, {one: used[one].name for one in direct})
    if files:
        scored = _score(training, champion.model, Batch(files, "", {}))
        errors |= {one.sha256: float(scored[ERROR][one.name]) for one in files}
    return pd.Series({sha256: errors[sha256] for sha256 in sorted(errors)}, dtype=float)


def _judge(cycle: Cycle, batch: Batch, rival_errors: pd.Series[float], **limits: Any) -> Verdict:
    """Ask the gate about a batch; where it cannot compare there is no promotion, but an error."""
    from retraining.gate import judge
    from retraining.resampling import NoVerdict

    errors = cycle.errors[ERROR].loc[batch.names]
    try:
        return judge(
            errors,
            rival_errors.reindex(errors.index.intersection(rival_errors.index)),
            sessions=_sessions(batch, errors),
            no_model_errors=_no_model_errors(cycle.training, batch),
            significance=cycle.settings.significance,
            min_improvement=cycle.settings.min_improvement,
            unit=cycle.unit,
            **limits,
        )
    except NoVerdict as error:
        raise PipelineError(
            f"no verdict, production stays version {cycle.champion.number}: {error}; "
            "look at what the training module returned"
        ) from error


def _no_model_errors(training: Training, batch: Batch) -> pd.Series[float] | None:
    """Return the errors without a model on a batch; None if not applicable."""
    import pandas as pd

    errors = [training.errors_without_a_model(one.rows) for one in batch.files]
    known = [table[ERROR] for table in errors if table is not None]
    return pd.concat(known) if known else None


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
        registered = cycle.registry.versions.get(version.number)
        stored = cycle.registry.models.load_and_try(registered, training)
        trained_errors = _score(training, challenger.result.model, cycle.batch)
        if not _score(training, stored, cycle.batch).equals(trained_errors):
            raise PipelineError(
                f"version {version.number} does not predict what was trained; production stays "
                f"version {cycle.champion.number}; check the artifact store"
            )
    recorder.promote(cycle, verdict)


# --- The flow ---


def run_orchestrator(
    settings: Settings, *, dry_run: bool = False, force: bool = False, retrain: bool = False
) -> CycleResult:
    """Run one cycle.

    Parameters
    ----------
    dry_run
        Change no file, no run and no version; say what would happen.
    force
        Judge a batch again that was judged before.
    retrain
        Train and judge on what is there, however few files, although production is healthy.

    Raises
    ------
    PipelineError
        With one line for the operator; nothing is half changed.
    """
    check_home(settings)
    recorder = DryRun() if dry_run else Recorder()
    with recorder.lock(settings):
        with recorder.failures_told(settings):
            result = _triggered_cycle(settings, recorder, force=force, anyway=retrain)
        recorder.end(settings, result)
        recorder.prune(settings, result)
    return result


def _triggered_cycle(
    settings: Settings, recorder: Recorder, *, force: bool, anyway: bool
) -> CycleResult:
    """Begin a cycle if there are enough files; nothing heavy is imported before."""
    # By name alone: a night without news costs one listing of a folder.
    n_names = len(waiting_names(settings.new_gts))
    if n_names < _fewest(settings, anyway=anyway):
        waiting = records.waiting(settings, n_names, anyway=anyway)
        # What nobody has checked yet needs a model only where something new came.
        estimate = recorder.estimate(settings, lambda: _production(settings, recorder))
        return dataclasses.replace(waiting, estimate=estimate)
    recorder.step("1. trigger: %d new files", n_names)
    from retraining.known_recordings import KnownRecordings

    registry, training, champion = _production(settings, recorder)
    estimate = recorder.estimate(settings, lambda: (registry, training, champion))
    if by_hand := registry.production.moved_by_hand(champion.version):
        logger.warning("%s", by_hand)
    with recorder.unfinished(settings) as cycle_id:
        known = KnownRecordings.of(settings.home, training)
        cycle = Cycle(settings, registry, training, champion, cycle_id, known)
        with recorder.failure_explained(cycle):
            result = _cycle(cycle, recorder, force=force, anyway=anyway)
    return dataclasses.replace(
        result,
        recordings=cycle.recordings(),
        unit=cycle.unit,
        notes=cycle.batch.notes,
        # Of a version that is production no more nobody asks, least of all by an alarm.
        estimate=None if result.outcome in (Outcome.PROMOTED, Outcome.ROLLED_BACK) else estimate,
    )


def _production(settings: Settings, recorder: Recorder) -> tuple[Registry, Training, Champion]:
    """Open the registry and load what it serves."""
    registry = open_registry(settings)
    recorder.remember(settings, registry)
    training = load_training_module(settings)
    return registry, training, load_champion(registry, training)


def _fewest(settings: Settings, *, anyway: bool) -> int:
    return 1 if anyway else settings.min_new_files


def _cycle(cycle: Cycle, recorder: Recorder, *, force: bool, anyway: bool) -> CycleResult:
    """Run the steps; each is a function of its own section above."""
    settings, champion = cycle.settings, cycle.champion
    # Names were enough to begin; only valid files that production does not know count.
    batch = cycle.batch = take_in_batch(cycle, recorder)
    if len(batch.files) < _fewest(settings, anyway=anyway):
        return records.waiting(settings, len(batch.files), anyway=anyway)
    # The same question is not answered, and paid for, every night.
    cycle.past = Past.of(
        Journal(settings.home).read(),
        settings.model_name,
        champion.number,
        champion.version.run_id,
    )
    earlier = cycle.past.answer(champion.number, cycle.question, batch.recordings)
    if earlier and not (force or anyway):
        return records.already_judged(cycle, earlier)

    recorder.step("2. monitor: version %d on %d recordings", champion.number, len(batch.files))
    for name, note in batch.data_quality.items():
        logger.warning("data quality: %s: %s", printable(name), printable(note))
    monitoring = cycle.monitoring = monitor(cycle.training, champion, batch, cycle.decided)
    # Before the run is written: a batch counts as met once it is, and probation ends with it.
    cycle.probation = end_probation(cycle)
    recorder.monitored(cycle)
    if cycle.lost_probation:
        recorder.roll_back(cycle)
        result = recorder.concluded(cycle, records.rolled_back(cycle))
        recorder.announce(cycle)
        return result

    recorder.step("3. decide: mean error %s %s", number_text(monitoring.mean_error), cycle.unit)
    if not (anyway or should_retrain(monitoring, cycle.threshold, settings.decide)):
        return recorder.concluded(cycle, records.healthy(cycle))

    recorder.step("4. retrain on used_gts/ and new_gts/")
    challenger = cycle.challenger = retrain(cycle, recorder)

    recorder.step("5. compare both on the newest %d recordings", len(cycle.window.files))
    verdict = cycle.verdict = compare(cycle, challenger)
    cycle.look = records.look(cycle, challenger, verdict)
    # Before anything else may fail: a look counts, whatever becomes of this night.
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
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="train and judge on what is there, however few files, although production is healthy",
    )
    parser.add_argument("--verbose", action="store_true", help="list the recordings as well")
    parser.add_argument(
        "--quiet", action="store_true", help="print only what somebody must look at"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _work(settings: Settings, options: argparse.Namespace) -> int:
    result = run_orchestrator(
        settings, dry_run=options.dry_run, force=options.force, retrain=options.retrain
    )
    if options.verbose and result.recordings:
        sys.stderr.write(records.recordings_table(result.recordings, result.unit))
    if not options.quiet:
        facts = {
            "outcome": result.outcome.value,
            "message": result.message,
            "stuck": result.stuck,
            "notes": [*result.notes],
            "estimate": dataclasses.asdict(result.estimate) if result.estimate else None,
            **result.facts,
            "by_recording": [dataclasses.asdict(one) for one in result.recordings],
        }
        lines = [result.message, *result.notes]
        if result.estimate:
            lines.append(result.alarm or result.estimate.in_words)
        print_result(lines, facts, as_json=options.json, tone=result.outcome.tone)
    return EXIT_DONE


RUN = Command("run", "one cycle; the default", _add_flags, _work)
REPLAY = replay.command(run_orchestrator)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Parameters
    ----------
    arguments
        Command line without the program's name; `sys.argv` by default.
    """
    return command_line.main(
        [RUN, *COMMANDS, REPLAY],
        arguments,
        prog="pipeline_orchestrator.py",
        description="Monitor the production model, retrain it when it degrades, promote only "
        "what is better. Without a command: run.",
    )


if __name__ == "__main__":
    sys.exit(main())
