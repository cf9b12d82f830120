"""Every night, cheaply: what production probably does on recordings that nobody has checked.

A file of unlabelled/ is read once for each production version; a night on which nothing came costs
one listing. What is found is an estimate: it tells people, and neither retrains nor promotes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining.cycle import Champion, threshold_of
from retraining.errors import PipelineError, stop_request
from retraining.estimates import Estimated, Estimator, RecordingEstimate, one_costs_no_other
from retraining.files import (
    hash_bytes,
    hash_file,
    read_sealed,
    settled,
    waiting_names,
    write_sealed,
)
from retraining.journal import Journal, Memory
from retraining.marks import marks
from retraining.registry import Registry
from retraining.settings import Settings
from retraining.text import now, printable
from retraining.training import Training
from retraining.windows import newest

if TYPE_CHECKING:
    from retraining.calibration import Estimate
    from retraining.identity import Observations

INDEX_NAME = ".pipeline_estimates"
FEWEST_RECORDINGS = 5
"""Fewer are no alarm: one odd recording is none of production."""
ALARMING = 0.5
"""Confidence of the interval whose lower end alarms. By that of 95 %, a truly degraded production
is found in hardly any life of two more months; by this one there is no false alarm to speak of
either, and what it costs is to check a few recordings (docs/before_labels_figures.md)."""
SHOWN_FIRST = 5
MOST_A_NIGHT = 500
"""Files, the newest first: after a promotion the window is estimated at once, the rest later."""
READ_AT_ONCE = 50
DAY_NS = 86_400_000_000_000
Production = Callable[[], tuple[Registry, Training, Champion]]

logger = logging.getLogger("pipeline")


# --- Values ---


@dataclass(frozen=True)
class Seen:
    """What is remembered of a file of unlabelled/.

    Parameters
    ----------
    size, mtime_ns
        Of the file; another one is read again.
    found
        None where it could not be read, or where production learnt the recording.
    problem
        Why.
    identity
        Digest of its observations, the same however it is saved; empty if there are none.
    """

    size: int
    mtime_ns: int
    found: RecordingEstimate | None = None
    problem: str = ""
    identity: str = ""

    def is_of(self, status: os.stat_result) -> bool:
        """Say whether it is of the file as it is now."""
        return (self.size, self.mtime_ns) == (status.st_size, status.st_mtime_ns)

    @property
    def day(self) -> int:
        """When the file was written last, as a number of days; today, if that is yet to come."""
        return min(self.mtime_ns, time.time_ns()) // DAY_NS


@dataclass(frozen=True)
class Index:
    """What is remembered of unlabelled/, under one production version.

    Parameters
    ----------
    version, run_id
        Production.
    recorded
        The version that the journal had made production last, whatever the alias says.
    files
        Name -> what was seen.
    last
        The last estimate; None before.
    asked
        By which module and which settings; by others, what could not be read is read again.
    """

    version: int
    run_id: str
    recorded: int | None
    files: Mapping[str, Seen]
    last: Estimated | None = None
    asked: str = ""

    @property
    def told(self) -> Estimated | None:
        """The last estimate; None where it was of no recording."""
        return self.last if self.last and self.last.n_files else None

    def save(self, home: Path) -> None:
        """Keep it; losing it costs one reading of the folder."""
        content = json.dumps(asdict(self)).encode()
        write_sealed(home / INDEX_NAME, INDEX_NAME, content, durable=False)

    @classmethod
    def of(cls, home: Path) -> Index | None:
        """Read what was kept; None where there is nothing of ours."""
        content = read_sealed(home / INDEX_NAME, INDEX_NAME)
        if content is None:
            return None
        with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError):
            facts = json.loads(content)
            last = facts["last"] and Estimated(**facts["last"])
            files = {name: _seen(one) for name, one in facts["files"].items()}
            return cls(**{**facts, "files": files, "last": last})
        return None


def _seen(facts: Mapping[str, Any]) -> Seen:
    found = facts["found"]
    if found is not None:
        found = RecordingEstimate(**{**found, "unlike": tuple(found["unlike"])})
    return Seen(**{**facts, "found": found})


# --- What is asked ---


def is_alarming(estimate: Estimate, threshold: float, *, was_alarming: bool) -> bool:
    """Say whether production is probably worse than allowed.

    Notes
    -----
    It begins when the lower end of the interval, one of confidence `ALARMING`, is above the
    threshold, and ends when the mean is not: an alarm that comes and goes is not heard.
    """
    if was_alarming:
        return estimate.mean > threshold
    return estimate.n_recordings >= FEWEST_RECORDINGS and estimate.low > threshold


# --- The night ---


def estimate(settings: Settings, production: Production) -> Estimated | None:
    """Estimate what is new in unlabelled/; return what is known then, None without recordings.

    Parameters
    ----------
    production
        Gives the registry, the training module and the loaded champion; asked only where a file is
        new, or production is another one.

    Raises
    ------
    PipelineError
        As `production`, or if the module fails.
    """
    folder = settings.unlabelled_folder
    if not folder.is_dir():
        return None
    there = _statuses(folder)
    index, memory = Index.of(settings.home), Journal(settings.home).read()
    if not there and index is None:
        return None
    recorded = _recorded(memory, settings.model_name)
    asked = _asked(settings)
    as_before = index is not None and (index.recorded, index.asked) == (recorded, asked)
    if index is not None and as_before and _nothing_new(index, there):
        return index.told
    registry, training, champion = production()
    version = champion.version
    if index is None or (index.version, index.run_id) != (version.number, version.run_id):
        index = Index(version.number, version.run_id, recorded, {}, asked=asked)
    files = {
        name: seen
        for name, seen in index.files.items()
        if name in there
        and seen.is_of(there[name])
        and (seen.found is not None or index.asked == asked)
    }
    calibration = registry.versions.before_labels(version, training).calibration
    estimator = Estimator(training, champion.model, calibration)
    new = {name: status for name, status in there.items() if name not in files}
    read = _read(settings, estimator, champion, new)
    n_new = sum(one.found is not None for one in read.values())
    last = _estimated(settings, estimator, champion, files | read, index.last, n_new)
    if n_new:
        Journal(settings.home).append(last)
    found = Index(version.number, version.run_id, recorded, files | read, last, asked)
    found.save(settings.home)
    return found.told


def count(settings: Settings) -> int:
    """Return how many files wait for somebody to check them; 0 without such a folder."""
    with contextlib.suppress(OSError):
        return len(waiting_names(settings.unlabelled_folder))
    return 0


def last_estimate(settings: Settings) -> Estimated | None:
    """Return what was estimated last of this production; None where there is nothing to tell."""
    index = None
    with contextlib.suppress(OSError):  # another disk, which is not there: a night goes on
        if settings.unlabelled_folder.is_dir():
            index = Index.of(settings.home)
    if index is None or index.told is None:
        return None
    recorded = _recorded(Journal(settings.home).read(), settings.model_name)
    return index.told if index.recorded == recorded else None


def _asked(settings: Settings) -> str:
    """Name what an answer depends on beside production, without loading the module."""
    code = ""
    with contextlib.suppress(PipelineError, OSError):  # whoever needs the module says it
        code = hash_file(settings.training_file)
    return f"{code} {settings.limits} {settings.min_new_files} {settings.threshold}"


def _recorded(memory: Memory, model_name: str) -> int | None:
    productions = memory.productions(model_name)
    return productions[-1].version if productions else None


def _statuses(folder: Path) -> dict[str, os.stat_result]:
    found = {}
    for name in waiting_names(folder):
        with contextlib.suppress(OSError):
            found[name] = (folder / name).lstat()
    return found


def _nothing_new(index: Index, there: Mapping[str, os.stat_result]) -> bool:
    return index.files.keys() == there.keys() and all(
        index.files[name].is_of(status) for name, status in there.items()
    )


def _read(
    settings: Settings,
    estimator: Estimator,
    champion: Champion,
    new: Mapping[str, os.stat_result],
) -> dict[str, Seen]:
    """Read the newest of some files; those that are still being written are left out."""
    folder = settings.unlabelled_folder
    chosen = sorted(new, key=lambda name: -new[name].st_mtime_ns)[:MOST_A_NIGHT]
    if len(chosen) < len(new):
        logger.info("%d files of unlabelled/ are left for the next runs", len(new) - len(chosen))
    paths = settled([folder / name for name in chosen])
    files: dict[str, Seen] = {}
    for start in range(0, len(paths), READ_AT_ONCE):
        stop_request.obey()
        files |= _seen_now(settings, estimator, champion, paths[start : start + READ_AT_ONCE], new)
    return files


def _seen_now(
    settings: Settings,
    estimator: Estimator,
    champion: Champion,
    paths: Sequence[Path],
    statuses: Mapping[str, os.stat_result],
) -> dict[str, Seen]:
    """Estimate files, or say why there is no estimate of one."""
    from retraining.identity import observe

    training = estimator.training
    rows_of: dict[str, tuple[Any, str, str]] = {}
    seen: dict[str, tuple[str, Observations]] = {}
    problems: dict[str, str] = {}
    for path in paths:
        with one_costs_no_other(path.name, problems):
            content = training.content(path)
            rows = training.parse_unlabelled(content, path.name)
            seen[path.name] = hash_bytes(content), observe(training, rows)
            rows_of[path.name] = (rows, path.name, seen[path.name][0])
    for problem in problems.values():
        logger.warning("not estimated: unlabelled/%s", problem)
    for name in _learnt(settings, training, champion, {one: seen[one] for one in rows_of}):
        del rows_of[name]
        problems[name] = "production learnt it"
    estimates, failures = estimator.of_each([*rows_of.values()])
    for problem in failures.values():
        logger.warning("not estimated: unlabelled/%s", problem)
    found = {one.name: one for one in estimates}
    problems |= failures
    return {
        name: Seen(
            size=statuses[name].st_size,
            mtime_ns=statuses[name].st_mtime_ns,
            found=found.get(name),
            problem=problems.get(name, ""),
            identity=seen[name][1].digest if name in found else "",
        )
        for name in (*found, *problems)
    }


def _learnt(
    settings: Settings,
    training: Training,
    champion: Champion,
    recordings: Mapping[str, tuple[str, Observations]],
) -> list[str]:
    """Return the names of those that production learnt: of these it is too sure."""
    from retraining.known_recordings import KnownRecordings

    known, learnt = KnownRecordings.of(settings.home, training), champion.manifest.names
    seen = [*recordings.values()]
    known.add(seen, training.maker())  # in memory: only what is learnt is kept
    related = {one.sha256 for one in known.related([sha256 for sha256, _ in seen], learnt)}
    return [name for name, (sha256, _) in recordings.items() if sha256 in {*learnt, *related}]


def _estimated(
    settings: Settings,
    estimator: Estimator,
    champion: Champion,
    files: Mapping[str, Seen],
    before: Estimated | None,
    n_new: int,
) -> Estimated:
    by_recording = {
        one.identity or one.found.sha256: one for one in files.values() if one.found is not None
    }
    seen = [*by_recording.values()]
    is_in = newest([one.day for one in seen], settings.min_new_files)
    window = [
        one.found for one, kept in zip(seen, is_in, strict=True) if kept and one.found is not None
    ]
    mean = estimator.mean(window)
    threshold = threshold_of(settings, estimator.training)
    unit = str(estimator.training.error_unit)
    found = Estimated(
        model_name=settings.model_name,
        version=champion.number,
        run_id=champion.version.run_id,
        at=now(),
        n_files=len(seen),
        n_new=n_new,
        n_recordings=mean.n_recordings if mean else len(window),
        mean_error=mean.mean if mean else None,
        mean_error_low=mean.low if mean else None,
        mean_error_high=mean.high if mean else None,
        unit=unit,
        threshold=threshold,
        unsure=_mean_of(one.unsure for one in window),
        outside=_mean_of(one.outside for one in window),
        n_unlike=sum(bool(one.unlike) for one in window),
    )
    was_alarming = before is not None and bool(before.alarm)
    likely = estimator.mean(window, confidence=ALARMING)
    if likely is None or not is_alarming(likely, threshold, was_alarming=was_alarming):
        return found
    if before is not None and before.alarm:
        # The sentence of the night on which it began: the same alarm is not told twice.
        return dataclasses.replace(found, alarm=before.alarm)
    first = worst(window)[:SHOWN_FIRST]
    alarm = _alarm(found, first)
    logger.warning("%s", alarm)
    pool = [one.found for one in seen if one.found is not None]
    _mark(settings, estimator.training, first, pool, champion.version.run_id)
    return dataclasses.replace(found, alarm=alarm)


def _mean_of(shares: Iterable[float | None]) -> float | None:
    known = [one for one in shares if one is not None]
    return sum(known) / len(known) if known else None


def _mark(
    settings: Settings,
    training: Training,
    first: Sequence[RecordingEstimate],
    seen: Iterable[RecordingEstimate],
    run_id: str,
) -> None:
    """Remember that these were chosen for their difficulty: people may check just them.

    What was listed before keeps its mark: one that was drawn stands for others.
    """
    from retraining.identity import observe
    from retraining.known_recordings import FILE_NAME, UNCHECKED, KnownRecordings, remember_listed

    listed = marks(Journal(settings.home).read())
    new = {one.sha256: settings.unlabelled_folder / one.name for one in first}
    new = {sha256: path for sha256, path in new.items() if sha256 not in listed}
    read = KnownRecordings(settings.home / FILE_NAME, training.has_identity)
    for sha256, path in new.items():
        with contextlib.suppress(ValueError, OSError):  # it is gone, or another one by now
            content = training.content(path)
            if hash_bytes(content) == sha256:
                rows = training.parse_unlabelled(content, path.name)
                read.add([(sha256, observe(training, rows))], UNCHECKED)
    if new:
        remember_listed(
            settings.home,
            training,
            read,
            pool={one.sha256: one.error for one in seen},
            chosen=[*new],
            random=(),
            run_id=run_id,
        )


def _alarm(found: Estimated, first: Collection[RecordingEstimate]) -> str:
    names = [printable(one.name) for one in first]
    return (
        f"production (version {found.version}) is probably degraded: {found.in_words}; at most "
        f"{found.threshold:g} {found.unit} is allowed. Check these {len(names)} first: "
        f"{', '.join(names)}. More: python pipeline_orchestrator.py triage"
    )


def worst(found: Iterable[RecordingEstimate]) -> Sequence[RecordingEstimate]:
    """Return recordings by their estimated error, the largest first."""
    return sorted(found, key=lambda one: (-(one.error or 0.0), one.name))
