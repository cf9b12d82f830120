"""`triage`: which recordings to check next, of those that nobody has checked."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining import recovery
from retraining.command_line import Command, print_result
from retraining.cross_validation import Reader
from retraining.errors import (
    EXIT_DONE,
    PipelineError,
    StoppedBySignal,
    TryLaterError,
    UsageError,
    stop_request,
)
from retraining.estimates import Estimator, RecordingEstimate
from retraining.files import exclusive_lock, hash_bytes, settled, waiting_names
from retraining.journal import Journal
from retraining.kept_tables import tables_of
from retraining.marks import CHOSEN, RANDOM
from retraining.registry import open_registry
from retraining.settings import Settings, check_home
from retraining.text import error_text, line_start, number_text, printable
from retraining.training import Training, load_training_module, unreadable_file
from retraining.typed_names import path_meant

if TYPE_CHECKING:
    import pandas as pd

    from retraining.intake import Family

MOST_LISTED = 100_000
NEW_FROM = 0.5
"""Novelty that is worth a word."""
READ_AT_ONCE = 50

logger = logging.getLogger("pipeline")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="of recordings that nobody has checked (default: --unlabelled)",
    )
    parser.add_argument(
        "--count", type=int, default=10, metavar="N", help="list at most so many (default: 10)"
    )
    parser.add_argument(
        "--random-share",
        type=float,
        default=0.33,
        metavar="SHARE",
        help="of the list that is drawn at random, one at least (default: 0.33)",
    )
    parser.add_argument("--dry-run", action="store_true", help="remember nothing of what is listed")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _work(settings: Settings, options: argparse.Namespace) -> int:
    found = triage(
        settings,
        options.folder,
        count=options.count,
        random_share=options.random_share,
        dry_run=options.dry_run,
    )
    print_result(found.as_lines(), found.as_facts(), as_json=options.json)
    return EXIT_DONE


# --- What is listed ---


@dataclass(frozen=True)
class Listed:
    """A recording to check.

    Parameters
    ----------
    how
        `CHOSEN` or `RANDOM`.
    novelty
        See `triage.Pick`.
    """

    estimate: RecordingEstimate
    how: str
    novelty: float | None

    def why(self, unit: str) -> str:
        """Say why it is listed."""
        if self.how == RANDOM:
            return "random: must be checked, too"
        one, said = self.estimate, []
        if one.error is not None:
            said.append(f"estimated error {error_text(one.error, unit)}")
        if one.unsure is not None:
            said.append(f"{number_text(100 * one.unsure)} % unsure")
        if self.novelty is not None and self.novelty >= NEW_FROM:
            said.append("different from all that is known or listed above")
        said += [f"unlike what was learnt: {why}" for why in one.unlike]
        return f"chosen: {', '.join(said) or 'the next one by its order'}"


@dataclass(frozen=True)
class Listing:
    """What to check next.

    Parameters
    ----------
    folder
        Where the recordings lie.
    n_pool
        How many of them nobody has checked.
    listed
        The first one first.
    notes
        What the order could not be made from, in a sentence each.
    left_out
        Name -> why a recording is none to be checked.
    bad
        Name -> why a file is none.
    marked
        Whether it is remembered what was listed.
    """

    folder: Path
    unit: str
    n_pool: int
    listed: Sequence[Listed]
    notes: Sequence[str]
    left_out: Mapping[str, str]
    bad: Mapping[str, str]
    marked: bool

    def count(self, how: str) -> int:
        """Return how many were listed like that."""
        return sum(one.how == how for one in self.listed)

    def as_lines(self) -> list[str]:
        """Return a table for a terminal, and what to do."""
        lines = [
            f"to check next: {len(self.listed)} of {self.n_pool} recordings in {self.folder}: "
            f"{self.count(CHOSEN)} chosen, {self.count(RANDOM)} drawn at random"
        ]
        if self.listed:
            names = [line_start(one.estimate.name) for one in self.listed]
            width = max(len("file"), *map(len, names))
            lines.append(f"rank  {'file':<{width}}  why")
            lines += [
                f"{rank:>4}  {name:<{width}}  {one.why(self.unit)}"
                for rank, (name, one) in enumerate(zip(names, self.listed, strict=True), 1)
            ]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"left out: {name} {why}" for name, why in self.left_out.items()]
        lines += [f"bad: {what}" for what in self.bad.values()]
        if not self.listed:
            return [*lines, f"nothing to check: put new recordings into {self.folder}"]
        what = "it is remembered which were chosen" if self.marked else "nothing was remembered"
        return [
            *lines,
            "next: check them all, the random ones, too, and put the labelled files into "
            f"new_gts/; {what}",
        ]

    def as_facts(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "folder": str(self.folder),
            "pool": self.n_pool,
            "unit": self.unit,
            "marked": self.marked,
            "listed": [
                {
                    "rank": rank,
                    "file": one.estimate.name,
                    "sha256": one.estimate.sha256,
                    "mark": one.how,
                    "estimated_error": one.estimate.error,
                    "unsure": one.estimate.unsure,
                    "unlike": [*one.estimate.unlike],
                    "novelty": one.novelty,
                    "why": one.why(self.unit),
                }
                for rank, one in enumerate(self.listed, 1)
            ],
            "notes": [*self.notes],
            "left_out": [{"file": name, "why": why} for name, why in self.left_out.items()],
            "bad": [{"file": name, "what": what} for name, what in self.bad.items()],
        }


# --- The work ---


def triage(
    settings: Settings,
    folder: Path | None = None,
    *,
    count: int = 10,
    random_share: float = 0.33,
    dry_run: bool = False,
) -> Listing:
    """List what to check next, and remember what was listed and why.

    Parameters
    ----------
    folder
        Of recordings that nobody has checked; None for the setting's.
    count, random_share
        See `triage.pick`.
    dry_run
        Remember nothing.

    Raises
    ------
    UsageError
        If a number is out of its range.
    PipelineError
        If there is no such folder or no production model, or the module fails.

    Notes
    -----
    All reading is done without the home's lock, which is only held while the list is remembered:
    a cycle need not wait for hundreds of files.
    """
    if not 1 <= count <= MOST_LISTED:
        raise UsageError(f"--count {count}: must be from 1 to {MOST_LISTED}")
    if not 0 <= random_share <= 1:
        raise UsageError(f"--random-share {random_share}: must be from 0 to 1")
    check_home(settings)
    # Whoever names a folder on the command line may name a link to it.
    folder = Path(os.path.realpath(path_meant(folder or settings.unlabelled_folder)))
    names = _names(folder)
    pool = _Pool.of(settings, folder)
    pool.read(settings, settled([folder / name for name in names]))
    listed = pool.pick(count, random_share)
    if listed and not dry_run:
        _remember(settings, pool, listed)
    return Listing(
        folder=folder,
        unit=str(pool.training.error_unit),
        n_pool=len(pool.found),
        listed=listed,
        notes=pool.notes,
        left_out=pool.left_out,
        bad=pool.bad,
        marked=bool(listed) and not dry_run,
    )


def _names(folder: Path) -> list[str]:
    try:
        return waiting_names(folder)
    except OSError as error:
        raise PipelineError(
            f"{folder} is no folder that can be read ({error.strerror}); put recordings that "
            "nobody has checked there, or name another one: python pipeline_orchestrator.py triage "
            "FOLDER"
        ) from error


@dataclass
class _Pool:
    """The recordings that nobody has checked, as far as they were read."""

    training: Training
    estimator: Estimator
    family: Family
    known: Sequence[pd.Series[float]]
    run_id: str
    found: dict[str, RecordingEstimate] = field(default_factory=dict)
    summaries: dict[str, pd.Series[float] | None] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, folder: Path) -> _Pool:
        """Take in what the home knows, and its production model."""
        from retraining import intake

        training, registry = load_training_module(settings), open_registry(settings)
        champion = registry.production.champion()
        calibration = registry.versions.before_labels(champion, training).calibration
        family = intake.family(
            settings,
            training,
            Journal(settings.home).read(),
            intake.Learnt(registry.learnt_by(champion).names),
        )
        own = [path for path in family.files.values() if path.parent != folder]
        return cls(
            training,
            Estimator(training, registry.models.load(champion, training), calibration),
            family,
            _summaries(settings, training, own),
            champion.run_id,
        )

    def read(self, settings: Settings, paths: Sequence[Path]) -> None:
        """Read files, some at a time, and estimate those that are new."""
        for start in range(0, len(paths), READ_AT_ONCE):
            stop_request.obey()
            self._take_in(settings, paths[start : start + READ_AT_ONCE])

    def _take_in(self, settings: Settings, paths: Sequence[Path]) -> None:
        from retraining.intake import problem_of_name
        from retraining.triage import summary_of

        rows_of: dict[str, tuple[pd.DataFrame, str]] = {}
        for path in paths:
            name = path.name
            try:
                if problem := problem_of_name(name):
                    raise ValueError(f"it has a name {problem}; rename it")
                content = self.training.content(path)
                sha256 = hash_bytes(content)
                if sha256 in rows_of or sha256 in self.found:
                    other = rows_of[sha256][1] if sha256 in rows_of else self.found[sha256].name
                    self.left_out[name] = f"has the same content as {other}"
                    continue
                rows_of[sha256] = (self.training.parse_unlabelled(content, name), name)
            except FileNotFoundError:
                logger.info("%s is gone", printable(name))
            except (TryLaterError, StoppedBySignal):
                raise
            except (PipelineError, ValueError, OSError) as error:
                what = getattr(error, "strerror", None) or error
                self.bad[name] = unreadable_file(name, what)
        new = {sha256: name for sha256, (_, name) in rows_of.items()}
        relatives = self.family.relatives({sha256: rows for sha256, (rows, _) in rows_of.items()})
        for sha256, (other, is_new) in relatives.items():
            where = self._name_of(other, new) if is_new else self.family.where(other)
            self.left_out[new.pop(sha256)] = f"is known, wholly or in part: {where}"
        asked = [(rows_of[sha256][0], name, sha256) for sha256, name in new.items()]
        estimates, problems = self.estimator.of_each(asked)
        self.found |= {one.sha256: one for one in estimates}
        self.bad |= problems
        for rows, name, sha256 in asked:
            if name in problems:
                continue
            features = self.training.unlabelled_examples(rows)
            self.summaries[sha256] = None if features is None else summary_of(features)

    def _name_of(self, sha256: str, new: Mapping[str, str]) -> str:
        name = new[sha256] if sha256 in new else self.found[sha256].name
        return f"{name} of this folder holds it"

    def pick(self, count: int, random_share: float) -> list[Listed]:
        """Choose what to check next, and draw some of the rest."""
        from retraining.triage import Candidate, informative_of, pick

        found = [*self.found.values()]
        informative = informative_of(
            [one.expected for one in found], [bool(one.unlike) for one in found]
        )
        candidates = [
            Candidate(
                self.family.known.identity(one.sha256) or one.sha256,
                value,
                self.summaries[one.sha256],
            )
            for one, value in zip(found, informative, strict=True)
        ]
        picks = pick(candidates, self.known, count, random_share)
        return [Listed(found[one.place], one.how, one.novelty) for one in picks]

    @property
    def notes(self) -> list[str]:
        """What the order could not be made from."""
        lacks_estimates = all(one.expected is None for one in self.found.values())
        lacks_features = any(one is None for one in self.summaries.values())
        if not self.found:
            return []
        if lacks_estimates and lacks_features:
            return ["neither the model nor the module tells anything before labels: all are drawn"]
        notes = []
        if lacks_estimates:
            notes.append("the model does not say how sure it is: the most different come first")
        elif self.estimator.calibration is None:
            notes.append("the version has no calibration: the order holds, no error is estimated")
        if lacks_features:
            notes.append("the module names no features: the hardest come first, alike or not")
        return notes


def _summaries(
    settings: Settings, training: Training, paths: Collection[Path]
) -> list[pd.Series[float]]:
    """Return summaries of the features of labelled recordings, kept ones without reading them."""
    from retraining.triage import summary_of

    reader = Reader(training, tables_of(settings, training.maker(), read_only=True))
    found = []
    for path in paths:
        stop_request.obey()
        try:
            examples = reader.recording(path).examples
        except TryLaterError:
            raise
        except (PipelineError, FileNotFoundError) as error:  # the next cycle says it
            logger.debug("%s is not compared: %s", printable(path.name), error)
            continue
        found.append(summary_of(training.features(examples)))
    return found


def _remember(settings: Settings, pool: _Pool, listed: Sequence[Listed]) -> None:
    """Keep what was listed and why."""
    from retraining.known_recordings import remember_listed

    contents = {
        how: [one.estimate.sha256 for one in listed if one.how == how] for how in (CHOSEN, RANDOM)
    }
    with exclusive_lock(settings, "triage"):
        recovery.tidy(settings)
        remember_listed(
            settings.home,
            pool.training,
            pool.family.known,
            pool={sha256: one.error for sha256, one in pool.found.items()},
            run_id=pool.run_id,
            chosen=contents[CHOSEN],
            random=contents[RANDOM],
        )


COMMAND = Command("triage", "list which recordings to check next", _add_flags, _work)
