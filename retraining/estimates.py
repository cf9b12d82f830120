"""What production says of a recording that nobody has checked: an estimate, never a verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retraining.text import number_text
from retraining.training import COUNT_SPREAD, ERROR, NOTE, PREDICTED_COUNT, UNSURE, Training

if TYPE_CHECKING:
    import pandas as pd

    from retraining.calibration import Calibration, Estimate


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
        """Estimate one recording.

        Parameters
        ----------
        rows
            As `Training.parse_unlabelled` returns them.

        Raises
        ------
        PipelineError
            If the module fails.
        """
        expected = self.training.expected_errors(self.model, rows)
        share = self._outside(rows)
        unlike = [*self._new_notes(rows), self._too_far_outside(share)]
        facts: dict[str, Any] = {}
        if expected is not None:
            found = {str(name): value for name, value in expected.iloc[0].items()}
            unlike.append(found[NOTE])
            facts = {"expected": float(found[ERROR]), "unsure": found.get(UNSURE)}
            if self.calibration is not None:
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

    def mean(self, found: Iterable[RecordingEstimate]) -> Estimate | None:
        """Estimate the mean error of recordings; None where nobody can."""
        expected = [one.expected for one in found if one.expected is not None]
        if self.calibration is None or not expected:
            return None
        return self.calibration.mean_error(expected)
