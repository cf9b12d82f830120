"""What production says of a recording that nobody has checked: an estimate, never a verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from retraining.errors import PipelineError, StoppedBySignal, TryLaterError, stop_request
from retraining.journal import Entry, Memory
from retraining.text import error_text, number_text
from retraining.training import (
    COUNT_SPREAD,
    ERROR,
    NOTE,
    PREDICTED_COUNT,
    UNSURE,
    Training,
    unreadable_file,
)

if TYPE_CHECKING:
    import pandas as pd

    from retraining.calibration import Calibration, Estimate

MOST_FAILURES = 10
"""Recordings one after the other of which a module fails: then it does of all."""


@dataclass(frozen=True)
class RecordingEstimate:
    """What is estimated of one recording; None where nobody tells.

    Parameters
    ----------
    name, sha256
        Of its file.
    expected
        How far the model expects to be wrong, not in scale.
    error
        Estimated error, in the unit of errors.
    unsure
        Share that is decided unsurely.
    count, low, high
        Predicted count, and between which numbers the true one lies 90 times of 100.
    outside
        Share of the features' values that lie outside what the model learnt.
    unlike
        Why the recording is unlike what the model learnt, in a sentence each.
    """

    name: str
    sha256: str
    expected: float | None = None
    error: float | None = None
    unsure: float | None = None
    count: int | None = None
    low: int | None = None
    high: int | None = None
    outside: float | None = None
    unlike: tuple[str, ...] = ()

    def in_words(self, unit: str) -> str:
        """Say it in one line, the count first; empty where nobody tells."""
        said = []
        if self.count is not None:
            between = "" if self.low is None else f" ({self.low} to {self.high})"
            said.append(f"{self.count}{between}")
        if self.error is not None and self.count is None:
            said.append(f"estimated error {error_text(self.error, unit)}")
        if self.unsure is not None:
            said.append(f"{100 * self.unsure:.0f} % unsure")
        if self.unlike:
            said.append(f"unlike anything learnt: {'; '.join(self.unlike)}")
        return ", ".join(said)


@dataclass(frozen=True)
class Estimated(Entry):
    """Recordings that nobody has checked were estimated: one line of the trend.

    Parameters
    ----------
    version, run_id
        Production, and the run that made it.
    n_files
        Recordings in unlabelled/ that production did not learn.
    n_new
        Of them those that were estimated this time.
    n_recordings
        The newest ones, that the mean is of.
    mean_error, mean_error_low, mean_error_high
        Estimated, with its 95 % interval, in `unit`; None where nobody can tell.
    unsure, outside
        Mean share that is decided unsurely, and of values outside what was learnt; None likewise.
    n_unlike
        Recordings among the newest that are unlike what was learnt.
    alarm
        Why somebody should look, in one line; empty where nobody need.
    """

    KIND: ClassVar[str] = "estimated"
    model_name: str
    version: int
    run_id: str
    at: str
    n_files: int
    n_new: int
    n_recordings: int
    mean_error: float | None
    mean_error_low: float | None
    mean_error_high: float | None
    unit: str
    threshold: float
    unsure: float | None = None
    outside: float | None = None
    n_unlike: int = 0
    alarm: str = ""

    @property
    def in_words(self) -> str:
        """What is estimated, in one sentence that calls it so."""
        if self.mean_error is None:
            return f"no estimate of {self.n_recordings} recordings that nobody has checked"
        low, high = self.mean_error_low or 0.0, self.mean_error_high or 0.0
        said = (
            f"estimated before labels: {error_text(self.mean_error, self.unit)} (95 % interval "
            f"{number_text(low)} to {number_text(high)}) on {self.n_recordings} recordings that "
            "nobody has checked"
        )
        shares = {"unsure": self.unsure, "of the values outside what was learnt": self.outside}
        more = [f"{100 * one:.0f} % {what}" for what, one in shares.items() if one is not None]
        if self.n_unlike:
            more.append(f"{self.n_unlike} of the recordings unlike anything learnt")
        return ", ".join([said, *more])


def trend(memory: Memory, model_name: str, version: int, run_id: str) -> list[Estimated]:
    """Return the estimates of a production version, the oldest first."""
    return [
        one
        for one in memory.all(Estimated)
        if (one.model_name, one.version, one.run_id) == (model_name, version, run_id)
    ]


@contextlib.contextmanager
def one_costs_no_other(name: str, problems: dict[str, str]) -> Iterator[None]:
    """Note why a file is not estimated: the others are."""
    try:
        yield
    except (TryLaterError, StoppedBySignal):
        raise
    except (PipelineError, ValueError, OSError) as error:
        problems[name] = unreadable_file(name, getattr(error, "strerror", None) or error)


@dataclass(frozen=True)
class Estimator:
    """Asks a model about recordings that nobody has checked.

    Parameters
    ----------
    model
        Of the training module, or a `PackagedModel`.
    calibration
        Of its version; None where that has none: then nothing is put in scale.
    """

    training: Training
    model: Any
    calibration: Calibration | None

    def of(self, rows: pd.DataFrame, name: str, sha256: str) -> RecordingEstimate:
        """Estimate one recording, as `of_all`."""
        return self.of_all([(rows, name, sha256)])[0]

    def of_all(
        self, recordings: Sequence[tuple[pd.DataFrame, str, str]]
    ) -> list[RecordingEstimate]:
        """Estimate recordings; a version that other code made is asked once for all of them.

        Parameters
        ----------
        recordings
            Rows as `Training.parse_unlabelled` returns them, name and SHA-256 of the file.

        Raises
        ------
        PipelineError
            If the module fails.
        """
        expected = self.training.expected_errors(self.model, [rows for rows, _, _ in recordings])
        return [
            self._of(rows, name, sha256, one)
            for (rows, name, sha256), one in zip(recordings, expected, strict=True)
        ]

    def of_each(
        self, recordings: Sequence[tuple[pd.DataFrame, str, str]]
    ) -> tuple[list[RecordingEstimate], dict[str, str]]:
        """Estimate recordings, as `of_all`; return also name -> why there is no estimate of one.

        Raises
        ------
        PipelineError
            If the module fails of the first `MOST_FAILURES`: then it is none of the files.
        """
        try:
            return self.of_all(recordings) if recordings else [], {}
        except (TryLaterError, StoppedBySignal):
            raise
        except PipelineError as error:
            failure = error
        found: list[RecordingEstimate] = []
        problems: dict[str, str] = {}
        for rows, name, sha256 in recordings:
            stop_request.obey()
            with one_costs_no_other(name, problems):
                found.append(self.of(rows, name, sha256))
            if len(problems) == MOST_FAILURES and not found:
                raise failure
        return found, problems

    def _of(
        self, rows: pd.DataFrame, name: str, sha256: str, expected: pd.DataFrame | None
    ) -> RecordingEstimate:
        share = self._outside(rows)
        unlike = [*self._new_notes(rows), self._too_far_outside(share)]
        facts: dict[str, Any] = {}
        if expected is not None:
            found = {str(name): value for name, value in expected.iloc[0].items()}
            unlike.append(found[NOTE])
            facts = {"expected": float(found[ERROR]), "unsure": found.get(UNSURE)}
            if self.calibration is not None and self.calibration.scale:
                facts["error"] = self.calibration.scale * facts["expected"]
            facts |= self._count(found)
        return RecordingEstimate(
            name, sha256, outside=share, unlike=tuple(one for one in unlike if one), **facts
        )

    def _count(self, found: dict[str, Any]) -> dict[str, int]:
        if PREDICTED_COUNT not in found:
            return {}
        count = int(found[PREDICTED_COUNT])
        if self.calibration is None or COUNT_SPREAD not in found:
            return {"count": count}
        interval = self.calibration.count_interval(count, found[COUNT_SPREAD])
        if interval is None:
            return {"count": count}
        return {"count": count, "low": min(interval[0], count), "high": max(interval[1], count)}

    def _outside(self, rows: pd.DataFrame) -> float | None:
        from retraining.calibration import outside

        if self.calibration is None or not self.calibration.features:
            return None
        features = self.training.unlabelled_examples(rows)
        return None if features is None else outside(self.calibration.features, features)

    def _too_far_outside(self, share: float | None) -> str:
        limit = self.calibration.outside_limit if self.calibration else None
        if share is None or limit is None or share <= limit:
            return ""
        return (
            f"{number_text(100 * share)} % of its values lie outside what was learnt, more than "
            f"{number_text(100 * limit)} % is unusual"
        )

    def _new_notes(self, rows: pd.DataFrame) -> list[str]:
        """Return what is odd about a recording, and was not so of any that was learnt."""
        from retraining.calibration import kinds_of

        learnt = self.calibration.notes if self.calibration else ()
        found = kinds_of(self.training.data_quality_note(rows))
        return [text for kind, text in found.items() if kind not in learnt]

    def mean(self, found: Iterable[RecordingEstimate], **confidence: float) -> Estimate | None:
        """Estimate the mean error of recordings, as `Calibration.mean_error`; None: nobody can.

        Where no learnt recording had an error nothing tells how large one is: not 0.
        """
        expected = [one.expected for one in found if one.expected is not None]
        if self.calibration is None or not self.calibration.scale or not expected:
            return None
        return self.calibration.mean_error(expected, **confidence)
