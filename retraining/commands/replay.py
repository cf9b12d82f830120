"""`replay`: live a home's past again with other settings, and compare what comes of them.

Each combination of settings begins with the home's first version and the recordings that it
learnt, in a temporary home. What came since arrives in its order, and every night runs a real
cycle. Nothing is changed in the home itself.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retraining import ground_truth
from retraining.command_line import Command, combinations, print_result
from retraining.commands.first_version import FirstVersion, make_production
from retraining.commands.snapshot import Origin, Snapshot, take_snapshot
from retraining.cycle import CycleResult, RecordingResult, threshold_of
from retraining.errors import EXIT_DONE, PipelineError, StoppedBySignal, UsageError, stop_request
from retraining.files import write_durably
from retraining.journal import Arrival, Journal
from retraining.outcome import Outcome
from retraining.registry import open_registry
from retraining.registry.facts import (
    TAG_CODE,
    TAG_METRIC,
    TAG_MODULE,
    RegisteredVersion,
    RunRecord,
)
from retraining.settings import Settings, check_home
from retraining.text import error_text, moment, now, printable
from retraining.training import Training, load_training_module

COMPARED_SETTINGS = ("min_new_files", "window", "threshold", "decide")
NEVER_ABOVE = 100_000.0
"""The largest threshold that there is: production is scored, and nothing else happens."""
TEMPLATE = Path(__file__).with_name("replay.html")

Run = Callable[..., CycleResult]
"""Runs one cycle with some settings; see `pipeline_orchestrator.run_orchestrator`."""

logger = logging.getLogger("pipeline")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--champion",
        type=int,
        metavar="VERSION",
        help="version to begin with (default: the oldest one that verifies)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page as well (HTML)")


def _work(run: Run, settings: Settings, options: argparse.Namespace) -> int:
    if options.report and not options.report.parent.is_dir():
        raise UsageError(f"--report {options.report}: there is no folder {options.report.parent}")
    found = replay(settings, combinations(settings, options), run, options.champion)
    if options.report:
        write_durably(options.report, found.as_page(settings).encode())
    print_result(found.as_lines(), found.as_facts(), as_json=options.json)
    return EXIT_DONE


# --- What comes of it ---


@dataclass(frozen=True)
class Night:
    """What a night came to.

    Parameters
    ----------
    night
        From 1.
    arrived
        Number of recordings that were put into new_gts/.
    outcome, message
        Of its cycle.
    champion, production
        Production before and after it.
    challenger
        The version that production was compared with; None if there was none.
    """

    night: int
    arrived: int
    outcome: str
    message: str
    champion: int
    challenger: int | None
    production: int


@dataclass(frozen=True)
class LivedWith:
    """A recording, and the error of what was production when it was first monitored."""

    name: str
    version: int
    error: float


@dataclass(frozen=True)
class Life:
    """What came of one combination of settings.

    Parameters
    ----------
    threshold
        That held.
    lived_with
        In order of arrival.
    not_scored
        Name of a recording -> why it was never monitored.
    """

    settings: Settings
    threshold: float
    nights: Sequence[Night]
    lived_with: Sequence[LivedWith]
    not_scored: Mapping[str, str]
    minutes: float

    def count(self, *outcomes: Outcome) -> int:
        """Return how many nights ended like that."""
        found = Counter(one.outcome for one in self.nights)
        return sum(found[one.value] for one in outcomes)

    @property
    def mean_error(self) -> float | None:
        """Of the recordings, each by what was production then."""
        errors = [one.error for one in self.lived_with]
        return sum(errors) / len(errors) if errors else None

    def share_above(self, limit: float) -> float | None:
        """Return how many of 1 recording had a larger error."""
        above = [not one.error <= limit for one in self.lived_with]
        return sum(above) / len(above) if above else None

    def figures(self, limit: float) -> dict[str, Any]:
        """Return what is compared."""
        compared = {name: getattr(self.settings, name) for name in COMPARED_SETTINGS}
        return {
            **compared,
            "threshold": self.threshold,
            "retrainings": self.count(Outcome.PROMOTED, Outcome.NOT_PROMOTED),
            "promotions": self.count(Outcome.PROMOTED),
            "rollbacks": self.count(Outcome.ROLLED_BACK),
            "failures": self.count(Outcome.FAILED),
            "mean_error": self.mean_error,
            "share_above": self.share_above(limit),
            "minutes": self.minutes,
        }


@dataclass(frozen=True)
class Replayed:
    """A home's past, lived once for each combination.

    Parameters
    ----------
    version
        That it began with, as the home's registry numbers it.
    limit
        The home's own threshold: recordings above it are counted, whatever the combination.
    notes
        About the recordings and their order.
    """

    version: int
    n_learnt: int
    n_recordings: int
    n_nights: int
    unit: str
    limit: float
    notes: Sequence[str]
    lives: Sequence[Life]

    @property
    def headline(self) -> str:
        """What was replayed."""
        return (
            f"{self.n_recordings} recordings on {self.n_nights} nights, beginning with version "
            f"{self.version} and {self.n_learnt} recordings that it learnt"
        )

    @property
    def all_notes(self) -> list[str]:
        """Those of the recordings, and of those that were not scored."""
        not_scored = (
            f"not scored: {name}: {what}"
            for life in self.lives
            for name, what in life.not_scored.items()
        )
        return list(dict.fromkeys([*self.notes, *not_scored]))

    @property
    def table(self) -> list[dict[str, str]]:
        """One row for each combination: head -> cell."""
        rows = []
        for life in self.lives:
            figures = life.figures(self.limit)
            row = {
                "threshold": f"{life.threshold:g} {self.unit}",
                "min-new-files": str(figures["min_new_files"]),
                "window": str(figures["window"]),
                "decide": figures["decide"],
                "retrainings": str(figures["retrainings"]),
                "promotions": str(figures["promotions"]),
                "rollbacks": str(figures["rollbacks"]),
            }
            if any(one.count(Outcome.FAILED) for one in self.lives):
                row["failures"] = str(figures["failures"])
            mean, above = life.mean_error, figures["share_above"]
            row["mean error"] = "-" if mean is None else error_text(mean, self.unit)
            row[f"above {self.limit:g} {self.unit}"] = (
                "-" if above is None else f"{100 * above:.0f} %"
            )
            row["minutes"] = f"{life.minutes:.1f}"
            rows.append(row)
        return rows

    def as_lines(self) -> list[str]:
        """Return a table for a terminal, and the notes."""
        table = self.table
        widths = {head: max(len(head), *(len(row[head]) for row in table)) for head in table[0]}
        heads = {head: head for head in widths}
        lines = [
            "  ".join(row[head].rjust(width) for head, width in widths.items())
            for row in (heads, *table)
        ]
        return [self.headline, *lines, *(f"note: {one}" for one in self.all_notes)]

    def as_facts(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "version": self.version,
            "learnt": self.n_learnt,
            "recordings": self.n_recordings,
            "nights": self.n_nights,
            "unit": self.unit,
            "limit": self.limit,
            "notes": self.all_notes,
            "combinations": [
                {
                    **life.figures(self.limit),
                    "events": [asdict(one) for one in life.nights],
                    "by_recording": [asdict(one) for one in life.lived_with],
                }
                for life in self.lives
            ],
        }

    def as_page(self, settings: Settings) -> str:
        """Return a page of its own."""
        from retraining.report.page import render

        return render(
            TEMPLATE,
            model_name=settings.model_name,
            at=now(),
            moment=moment(now()),
            replayed=self,
            outcomes={one.value: one for one in Outcome},
        )


# --- Living ---


def replay(
    settings: Settings, combined: Sequence[Settings], run: Run, champion: int | None = None
) -> Replayed:
    """Live a home's past once with each of some settings.

    Parameters
    ----------
    settings
        Of the home.
    combined
        The same with other values of `COMPARED_SETTINGS`.
    run
        Runs one cycle.
    champion
        The version to begin with; None for the oldest one that verifies.

    Raises
    ------
    PipelineError
        If there is no version to begin with, or no recording that came after it.
    TryLaterError
        If files of the home move while they are copied.
    """
    check_home(settings)
    training = load_training_module(settings)
    lives: list[Life] = []
    with tempfile.TemporaryDirectory(prefix="pipeline-replay-") as name:
        snapshot = take_snapshot(settings, training, Path(name), champion)
        for number, each in enumerate(combined, 1):
            said = f"replay {number} of {len(combined)} ({_in_words(each, training)})"
            with snapshot.home(f"home-{number}") as home:
                lives.append(_live(run, snapshot, training, _alone(each, home), said))
        return Replayed(
            version=snapshot.origin.number,
            n_learnt=snapshot.n_learnt,
            n_recordings=len(snapshot.recordings),
            n_nights=len(snapshot.nights),
            unit=training.error_unit,
            limit=threshold_of(settings, training),
            notes=snapshot.notes,
            lives=lives,
        )


def _in_words(settings: Settings, training: Training) -> str:
    return (
        f"threshold {threshold_of(settings, training):g}, min-new-files {settings.min_new_files}, "
        f"window {settings.window}, {settings.decide}"
    )


def _alone(settings: Settings, home: Path) -> Settings:
    """Return the settings for another home, which has its own store and tells nobody."""
    return dataclasses.replace(
        settings,
        home=home,
        tracking_uri="",
        backend="local",
        scheduler="",
        on_promotion="",
        on_attention="",
    )


def _live(run: Run, snapshot: Snapshot, training: Training, settings: Settings, said: str) -> Life:
    """Live through all nights with the settings of a temporary home."""
    begin = time.monotonic()
    with _unsaid():
        production = _begin(settings, training, snapshot.origin)
    nights: list[Night] = []
    met: dict[str, LivedWith] = {}
    for number, files in enumerate(snapshot.nights, 1):
        stop_request.obey()
        _await_another_second(settings)
        for path in files:
            shutil.copy2(path, settings.new_gts)
        night, recordings = _night(run, settings, number, len(files), production)
        logger.info("%s: night %d of %d: %s", said, number, len(snapshot.nights), night.outcome)
        nights.append(night)
        _meet(met, production, recordings)
        production = night.production
    names = [path.name for path in snapshot.recordings]
    if not met.keys() >= {*names}:
        _meet(met, production, _monitored_at_last(run, settings))
    return Life(
        settings=settings,
        threshold=threshold_of(settings, training),
        nights=nights,
        lived_with=[met[name] for name in names if name in met],
        not_scored=_not_scored(settings, [name for name in names if name not in met]),
        minutes=(time.monotonic() - begin) / 60,
    )


def _meet(
    met: dict[str, LivedWith], production: int, recordings: Sequence[RecordingResult]
) -> None:
    """Note the errors of production on the recordings that no version has met before."""
    for one in recordings:
        met.setdefault(one.name, LivedWith(one.name, production, one.champion_error))


def _begin(settings: Settings, training: Training, origin: Origin) -> int:
    """Make a copy of the first version production; return its number in the new registry."""
    registry = open_registry(settings)
    of_module = {
        name: text
        for name, text in origin.version.tags.items()
        if name in (TAG_MODULE, TAG_CODE, TAG_METRIC)
    }

    def store(run_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        return registry.versions.adopt(
            origin.files,
            run_id=run_id,
            manifest=origin.manifest,
            out_of_fold=json.dumps(dict(errors)).encode() if errors else b"",
            tags={**of_module, **tags},
        )

    errors = origin.out_of_fold
    mean_error = sum(errors.values()) / len(errors) if errors else None
    first = FirstVersion(
        store=store,
        record=RunRecord(),
        source=f"version {origin.number} of a home",
        measured="errors not known"
        if mean_error is None
        else error_text(mean_error, training.error_unit),
        mean_error=mean_error,
    )
    return make_production(settings, registry, training, first).number


def _await_another_second(settings: Settings) -> None:
    """Wait until what arrives now has another time than what arrived before: nights are told so."""
    arrivals = Journal(settings.home).read().all(Arrival)
    while arrivals and arrivals[-1].at == now():
        time.sleep(0.02)


def _night(
    run: Run, settings: Settings, number: int, n_arrived: int, production: int
) -> tuple[Night, Sequence[RecordingResult]]:
    """Run a cycle; return what it came to, and its recordings. One that fails is a night, too."""
    try:
        with _unsaid():
            result = run(settings)
    except StoppedBySignal:
        raise
    except PipelineError as error:
        after = open_registry(settings).production.number() or production
        failed = Outcome.FAILED.value
        return Night(number, n_arrived, failed, str(error), production, None, after), ()
    night = Night(
        night=number,
        arrived=n_arrived,
        outcome=result.outcome.value,
        message=result.message,
        champion=production,
        challenger=result.facts.get("challenger"),
        production=result.facts.get("production", production),
    )
    return night, result.recordings


def _monitored_at_last(run: Run, settings: Settings) -> Sequence[RecordingResult]:
    """Score the last production on all that waits, as a night would that needs one file only."""
    of_any = dataclasses.replace(settings, min_new_files=1, threshold=NEVER_ABOVE, decide="point")
    try:
        with _unsaid():
            return run(of_any, dry_run=True, force=True).recordings
    except StoppedBySignal:
        raise
    except PipelineError as error:
        logger.warning("what waits at the end is not scored: %s", printable(error))
        return ()


def _not_scored(settings: Settings, names: Sequence[str]) -> dict[str, str]:
    """Return why recordings were never monitored."""
    refused = {one.name: one.what for one in ground_truth.rejected_files(settings)}
    return {name: refused.get(name, "no cycle took it in") for name in names}


@contextlib.contextmanager
def _unsaid() -> Iterator[None]:
    """Keep what a cycle says out of the log: its outcome is told."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def command(run: Run) -> Command:
    """Return the command, given what runs a cycle: no command knows the script that it is of."""
    return Command(
        "replay",
        "live the home's past again with other settings, and compare them",
        _add_flags,
        functools.partial(_work, run),
        several=COMPARED_SETTINGS,
    )
