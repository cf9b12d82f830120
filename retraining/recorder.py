"""Do what a cycle decides: move files, write runs and versions, move aliases, tell, keep pages.

The flow is the same in a dry run; only its recorder is another one, which writes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from retraining import ground_truth, notices, pruning, records, recovery, unlabelled, vouching
from retraining.cycle import Batch, Cycle, CycleResult
from retraining.errors import StoppedBySignal, stop_request
from retraining.estimates import Estimated
from retraining.files import exclusive_lock, lock_without_writing
from retraining.journal import Journal
from retraining.kept_tables import KeptTables, tables_of
from retraining.outcome import Outcome
from retraining.registry import Registry, open_registry, places
from retraining.registry.facts import (
    EVENT_PROBATION,
    EVENT_PROMOTION,
    LOOK_FILE,
    MONITORING_RUN,
    RETRAINING_RUN,
    TAG_DESCRIPTION,
    TAG_MESSAGE,
    TAG_OUTCOME,
    Manifest,
    RegisteredVersion,
)
from retraining.registry.store import as_pipeline_error
from retraining.report import keep
from retraining.settings import Settings
from retraining.text import printable
from retraining.training import TrainedModel
from retraining.unlabelled import Production

if TYPE_CHECKING:
    from retraining.gate import Verdict
    from retraining.intake import Intake

WITH_A_VERDICT = (Outcome.PROMOTED, Outcome.NOT_PROMOTED, Outcome.ROLLED_BACK)
Register = Callable[[TrainedModel, Manifest], RegisteredVersion | None]

logger = logging.getLogger("pipeline")


class Recorder:
    """Writes what a cycle does."""

    keeps_tables = True

    # --- Around a run ---

    def lock(self, settings: Settings) -> contextlib.AbstractContextManager[None]:
        """Keep all other commands that change anything out."""
        return exclusive_lock(settings, "run")

    @contextlib.contextmanager
    def failures_told(self, settings: Settings) -> Iterator[None]:
        """Tidy up what an interrupted command left; note a failure and call for attention."""
        with notices.failure_noted(settings):
            recovery.tidy(settings)
            yield

    def end(self, settings: Settings, result: CycleResult) -> None:
        """Note that a run came to its end, and call for attention to what is new."""
        keep.keep_quiet_night(settings, result)
        notices.note_end(settings, result.outcome.value, result.message, result.stuck, result.alarm)

    def estimate(self, settings: Settings, production: Production) -> Estimated | None:
        """Estimate what nobody has checked yet; a night never fails of it."""
        with _no_night_fails_of_it(settings, "nothing new is estimated before labels come"):
            return unlabelled.estimate(settings, production)
        return unlabelled.last_estimate(settings)

    def prune(self, settings: Settings, result: CycleResult) -> None:
        """Let the losers before the newest go, after a verdict; a night never fails of it."""
        if not settings.keep_losers or result.outcome not in WITH_A_VERDICT:
            return
        what = "nothing more was pruned, the next verdict tries again"
        with _no_night_fails_of_it(settings, what):
            found = pruning.prune(settings, open_registry(settings), keep=settings.keep_losers)
            if found.versions:
                logger.info("pruned %s freed", found.in_words)

    def unfinished(self, settings: Settings) -> contextlib.AbstractContextManager[str]:
        """Give an id for the cycle; an interruption leaves a note of it."""
        return recovery.unfinished_until_done(settings, "run")

    @contextlib.contextmanager
    def failure_explained(self, cycle: Cycle) -> Iterator[None]:
        """Leave a page if the cycle fails between monitoring and its verdict; the error goes on."""
        try:
            yield
        except StoppedBySignal:
            raise
        except Exception as error:
            if cycle.monitoring_run and cycle.result is None:
                keep.keep_failure_page(cycle, error)
            raise

    def remember(self, settings: Settings, registry: Registry) -> None:
        """Begin the journal of a home that has none, with what verifies; make sure of the runs."""
        registry.runs.experiment_id()
        vouching.seed(settings, registry)

    # --- The steps ---

    def step(self, name: str, *values: Any) -> None:
        """Begin a step: the place where a cycle may be stopped."""
        stop_request.obey()
        logger.info(name, *values)

    def took_in(self, cycle: Cycle, found: Intake, batch: Batch) -> Batch:
        """Remember what was seen, and move all files but the new ones to where they belong."""
        settings, journal = cycle.settings, Journal(cycle.settings.home)
        cycle.known.save()
        # Before a file is moved: what was begun is finished, whatever dies here.
        if found.arrivals or found.replacements:
            journal.append(*found.arrivals, *found.replacements)
        ground_truth.reject(settings, found.refusals)
        ground_truth.archive_learnt(settings, found.learnt, cycle.champion.manifest.names)
        for one in found.replacements:
            ground_truth.finish_replacement(settings, one)
        for note in batch.notes:
            logger.info("%s", printable(note))
        files = (dataclasses.replace(one, path=settings.new_gts / one.name) for one in batch.files)
        return dataclasses.replace(batch, files=tuple(files))

    def tables(self, cycle: Cycle) -> KeptTables | None:
        """Return what was read of recordings before."""
        return tables_of(cycle.settings, cycle.training.maker(), read_only=not self.keeps_tables)

    def monitored(self, cycle: Cycle) -> None:
        """Write the run `ModelMonitoring`."""
        cycle.history = keep.monitored_batches(cycle.registry, cycle.tags)
        with cycle.registry.runs.open(MONITORING_RUN, cycle.tags) as run_id:
            cycle.registry.runs.log(run_id, records.monitoring_record(cycle))
        cycle.monitoring_run = run_id

    @contextlib.contextmanager
    def retraining(self, cycle: Cycle) -> Iterator[Register]:
        """Open the run `ModelRetraining`, and give what registers the challenger in it."""
        with cycle.registry.runs.open(RETRAINING_RUN, cycle.tags) as run_id:

            def register(trained: TrainedModel, manifest: Manifest) -> RegisteredVersion | None:
                stop_request.obey()
                record = records.training_record(cycle, trained, manifest)
                cycle.registry.runs.log(run_id, record)
                version = cycle.registry.versions.register(
                    trained,
                    run_id=run_id,
                    training=cycle.training,
                    manifest=manifest,
                    out_of_fold=records.out_of_fold_table(trained, manifest),
                    before_labels=records.before_labels(trained, cycle.training, manifest),
                    tags=cycle.tags,
                )
                vouching.vouch_for(cycle.settings, cycle.registry, version)
                logger.info("registered version %d", version.number)
                return version

            yield register

    def judged(self, cycle: Cycle, verdict: Verdict) -> None:
        """Remember the look, then store the verdict with the challenger's version."""
        if cycle.look is not None:
            Journal(cycle.settings.home).append(cycle.look)
            cycle.registry.runs.log_file(cycle.look.to_bytes(), LOOK_FILE, cycle.monitoring_run)
        if cycle.rival is not None:
            judgements, facts = cycle.registry.judgements, verdict.as_dict()
            compared = judgements.with_comparison(cycle.rival, facts)
            vouching.vouch_for(cycle.settings, cycle.registry, compared)
            judgements.record(compared, facts, records.version_description(verdict))

    def promote(self, cycle: Cycle, verdict: Verdict) -> None:
        """Move the aliases to the challenger."""
        self._move(cycle, EVENT_PROMOTION, verdict.explain(), verdict)

    def roll_back(self, cycle: Cycle) -> None:
        """Make the version before production again, which was loaded, verified and scored."""
        if cycle.lost_probation is None:
            return
        verdict, before = cycle.lost_probation.verdict, cycle.lost_probation.version.number
        logger.warning("version %d lost its probation: back to %d", cycle.champion.number, before)
        self._move(cycle, EVENT_PROBATION, f"probation: {verdict.explain()}", verdict)

    def _move(self, cycle: Cycle, event: str, why: str, verdict: Verdict) -> None:
        if cycle.rival is None:
            raise ValueError("there is no other version")
        cycle.registry.production.move_to(
            cycle.rival.number,
            replaces=cycle.champion.number,
            event=event,
            why=why,
            tags=cycle.tags,
            mean_errors=(verdict.champion_mean_error, verdict.challenger_mean_error),
        )

    def concluded(self, cycle: Cycle, result: CycleResult) -> CycleResult:
        """Keep the page of a cycle whose verdict is final, then note how the cycle ended.

        Notes
        -----
        The page, on which nothing depends, comes first. The journal, which later nights ask what
        was judged, comes before the run, which they ask who is on probation: `recovery` completes
        the one from the other.
        """
        cycle.result = result
        keep.keep_page(cycle)
        Journal(cycle.settings.home).append(records.judged_entry(cycle, result))
        tags = {
            TAG_OUTCOME: result.outcome.value,
            TAG_MESSAGE: printable(result.message),
            TAG_DESCRIPTION: printable(result.message),
        }
        for key, value in tags.items():
            cycle.registry.runs.set_tag(cycle.monitoring_run, key, value)
        return result

    def announce(self, cycle: Cycle) -> None:
        """Tell programs outside that production changed."""
        notices.announce_change(cycle.settings, cycle.registry, cycle.id)

    def archive(self, cycle: Cycle, manifest: Manifest) -> None:
        """Move the new files that production knows now to used_gts/."""
        recovery.archive(cycle.settings, manifest.names)


@contextlib.contextmanager
def _no_night_fails_of_it(settings: Settings, what: str) -> Iterator[None]:
    try:
        yield
    except StoppedBySignal:
        raise
    except Exception as error:
        logger.warning("%s: %s", what, as_pipeline_error(error, settings) or error)


class DryRun(Recorder):
    """Writes nothing: says what would happen."""

    keeps_tables = False

    def lock(self, settings: Settings) -> contextlib.AbstractContextManager[None]:
        """Keep changing commands out while only looking."""
        return lock_without_writing(settings)

    @contextlib.contextmanager
    def failures_told(self, settings: Settings) -> Iterator[None]:
        """Tell nobody."""
        places.check(settings)
        yield

    def end(self, settings: Settings, result: CycleResult) -> None:
        """Note nothing."""

    def estimate(self, settings: Settings, production: Production) -> Estimated | None:
        """Estimate nothing anew."""
        return unlabelled.last_estimate(settings)

    def prune(self, settings: Settings, result: CycleResult) -> None:
        """Remove nothing."""

    def unfinished(self, _settings: Settings) -> contextlib.AbstractContextManager[str]:
        """Give an id; an interruption leaves nothing behind."""
        return contextlib.nullcontext("dry-run")

    def step(self, name: str, *values: Any) -> None:
        """Begin a step, of which only the looking is done."""
        super().step(f"dry run: {name}", *values)

    def remember(self, settings: Settings, registry: Registry) -> None:
        """Begin no journal."""

    def took_in(self, cycle: Cycle, found: Intake, batch: Batch) -> Batch:
        """Say which files are bad, and let those that would be moved stand in where they belong."""
        for refusal in found.refusals:
            logger.warning("would reject %r: %s", printable(refusal.name), printable(refusal.what))
        settings = cycle.settings
        stand_ins = {name: settings.new_gts / name for name in found.learnt}
        stand_ins |= {
            one.name: settings.home / one.source
            for one in found.replacements
            if settings.home / one.folder == settings.used_gts
        }
        notes = tuple(f"dry run, nothing changed: {note}" for note in batch.notes)
        return dataclasses.replace(batch, notes=notes, stand_ins=stand_ins)

    def monitored(self, cycle: Cycle) -> None:
        """Write no run."""

    @contextlib.contextmanager
    def retraining(self, _cycle: Cycle) -> Iterator[Register]:
        """Register nothing."""
        yield lambda _trained, _manifest: None

    def judged(self, cycle: Cycle, verdict: Verdict) -> None:
        """Store no verdict."""

    def promote(self, cycle: Cycle, verdict: Verdict) -> None:
        """Move no alias."""

    def roll_back(self, cycle: Cycle) -> None:
        """Move no alias."""

    def concluded(self, cycle: Cycle, result: CycleResult) -> CycleResult:
        """Say that nothing was changed, where something would have been."""
        if result.outcome is Outcome.HEALTHY:
            return result
        return dataclasses.replace(
            result,
            message=f"dry run, nothing changed: {result.message}",
            facts={**result.facts, "production": cycle.champion.number},
        )

    def announce(self, cycle: Cycle) -> None:
        """Tell nobody."""

    def archive(self, cycle: Cycle, manifest: Manifest) -> None:
        """Move nothing."""
