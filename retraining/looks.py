"""What was judged before: verdicts on production, looks at challengers, what lost in a row.

A recording is named by the digest of the observations with which it arrived: a correction, another
name or other bytes make no other recording of it. Nothing is read or written here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import ClassVar

from retraining.journal import Entry, Memory
from retraining.outcome import Outcome
from retraining.text import now
from retraining.windows import apart


@dataclass(frozen=True)
class Judged(Entry):
    """Production was judged on recordings: written when a cycle has come to its verdict.

    Parameters
    ----------
    version, run_id
        Production, and the run that made it: MLflow gives a number again.
    question
        What the verdict depends on beside the recordings: settings and code.
    recordings
        Those that it had not been judged on with that question before.
    outcome, what
        How the cycle ended, as a value and in words.
    """

    KIND: ClassVar[str] = "judged"
    model_name: str
    version: int
    run_id: str
    question: str
    cycle: str
    recordings: list[str]
    outcome: str
    what: str
    at: str


@dataclass(frozen=True)
class Look(Entry):
    """A challenger was compared with production: written before anything comes of it.

    Parameters
    ----------
    version, run_id
        Production, and the run that made it.
    question, recordings
        As of `Judged`, which may be missing after a crash.
    learnt
        Digest of what the challenger was trained on: the same look taken again is no other one.
    compared
        The recordings of the window; None if that is not known any more.
    mean_error, mean_error_low
        Of production on them: its mean, and the lower end of the 95 % interval.
    challenger, challenger_mean_error
        Its version (0 if it was not registered), and its mean on those that decided.
    threshold
        Largest mean error of a healthy model.
    decided
        Those of the recordings on which production was above it.
    """

    KIND: ClassVar[str] = "look"
    model_name: str
    version: int
    run_id: str
    question: str
    cycle: str
    recordings: list[str]
    learnt: str
    compared: list[str] | None
    mean_error: float
    mean_error_low: float
    challenger: int
    challenger_mean_error: float
    threshold: float
    decided: list[str]
    promote: bool
    at: str

    def ended(self, outcome: str, what: str) -> Judged:
        """Return the verdict that the look ended in."""
        return Judged(
            model_name=self.model_name,
            version=self.version,
            run_id=self.run_id,
            question=self.question,
            cycle=self.cycle,
            recordings=self.recordings,
            outcome=outcome,
            what=what,
            at=self.at,
        )

    def to_bytes(self) -> bytes:
        """Return the JSON that its monitoring run keeps."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def unknown(cls, model_name: str, version: int, run_id: str = "") -> Look:
        """Return a look of which only the production version is known."""
        return cls(
            model_name=model_name,
            version=version,
            run_id=run_id,
            question="",
            cycle="",
            recordings=[],
            learnt="",
            compared=None,
            mean_error=0.0,
            mean_error_low=0.0,
            challenger=0,
            challenger_mean_error=0.0,
            threshold=0.0,
            decided=[],
            promote=True,
            at=now(),
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Look:
        """Read what `to_bytes` returned.

        Raises
        ------
        ValueError
            If it is something else.
        """
        try:
            found = json.loads(content)
            look = cls(**{one.name: found[one.name] for one in fields(cls)})
            if not all(type(one) is list for one in (look.recordings, look.compared, look.decided)):
                raise ValueError("it names no recordings")
            numbers = (look.mean_error, look.mean_error_low, look.challenger_mean_error)
            names = (*look.recordings, *(look.compared or ()), *look.decided)
            texts = (
                look.model_name,
                look.run_id,
                look.question,
                look.cycle,
                look.learnt,
                look.at,
                *names,
            )
            if not (look.compared and look.decided and all(isinstance(one, str) for one in texts)):
                raise ValueError("it names no recordings")
            if not all(map(math.isfinite, (*numbers, look.threshold))):
                raise ValueError("an error is no number")
            if not all(
                isinstance(one, int) for one in (look.version, look.challenger, look.promote)
            ):
                raise ValueError("a version is no whole number")
        except (TypeError, LookupError, OverflowError, RecursionError) as error:
            raise ValueError(str(error)) from error
        return look

    def is_as(self, learnt: str, question: str, compared: Collection[str]) -> bool:
        """Say whether it is this very look, taken before a crash or a lost reply."""
        same = (self.learnt, self.question) == (learnt, question)
        return same and self.compared is not None and set(self.compared) == set(compared)


@dataclass(frozen=True)
class Past:
    """What a home has judged of one registered model, the oldest first."""

    order: tuple[Judged | Look, ...] = ()

    @classmethod
    def of(cls, memory: Memory, model_name: str, version: int = 0, run_id: str = "") -> Past:
        """Take what a journal tells.

        Parameters
        ----------
        version, run_id
            Production: of another version that once had its number only the recordings count.
        """
        found = (
            one
            for one in memory.in_order(Judged, Look)
            if isinstance(one, (Judged, Look)) and one.model_name == model_name
        )
        return cls(
            tuple(
                replace(one, version=0)
                if one.version == version and one.run_id not in ("", run_id)
                else one
                for one in found
            )
        )

    def and_then(self, look: Look | None) -> Past:
        """Return the same with one look more."""
        return self if look is None else Past((*self.order, look))

    @property
    def judged(self) -> list[Judged]:
        """The verdicts."""
        return [one for one in self.order if isinstance(one, Judged)]

    @property
    def looks(self) -> list[Look]:
        """The looks at challengers."""
        return [one for one in self.order if isinstance(one, Look)]

    def promotion_of(self, version: int) -> Look | None:
        """Return the look that made a version production, the last one."""
        return next(
            (
                one
                for one in reversed(self.looks)
                if one.promote and one.challenger == version != one.version
            ),
            None,
        )

    def judged_by(self, version: int, question: str | None = None) -> set[str]:
        """Return the recordings that a production version was judged on, by one or any question."""
        return {
            recording
            for one in self.judged
            if one.version == version and question in (None, one.question)
            for recording in one.recordings
        }

    def last(self, version: int) -> Judged | None:
        """Return the last verdict on a production version."""
        return next((one for one in reversed(self.judged) if one.version == version), None)

    def answer(self, version: int, question: str, recordings: Collection[str]) -> str:
        """Return in words what was found on these recordings; empty if one is yet to be judged."""
        if not set(recordings) <= self.judged_by(version, question):
            return ""
        last = next(
            one
            for one in reversed(self.judged)
            if (one.version, one.question) == (version, question)
        )
        return f"{last.what}{' and rolled back' * (last.outcome == Outcome.PROMOTED.value)}"

    def repeated_looks(
        self, version: int, learnt: str, question: str, compared: Collection[str]
    ) -> int:
        """Return how often these recordings were looked at, with another seed, setting or model.

        Notes
        -----
        None of them is new evidence if each was there at a look before, in its window or not:
        another width of the window is no other night. Counted are the looks since the last of them
        was first there. One of which nobody knows what it compared counts as
        long as its champion is production.
        """
        known: list[Look] = []
        seen: set[str] = set()
        first: dict[str, int] = {}
        for one in self.order:
            seen |= {*one.recordings}
            if isinstance(one, Judged) or one.compared is None:
                continue
            again = (one.learnt, one.question, one.compared)
            if one.is_as(learnt, question, compared) or any(each.is_as(*again) for each in known):
                continue
            seen |= {*one.compared}
            first |= {recording: len(known) for recording in seen - first.keys()}
            known.append(one)
        lost = any(look.compared is None and look.version == version for look in self.looks)
        if not set(compared) <= first.keys():
            return int(lost)
        return len(known) - max((first[one] for one in compared), default=0) + int(lost)

    def lost_looks(self, version: int) -> list[Look]:
        """Return the looks that production survived since it was last healthy, newest first."""
        found: list[Look] = []
        for one in reversed(self.order):
            if one.version != version:
                continue
            if isinstance(one, Judged) and one.outcome == Outcome.HEALTHY.value:
                break
            if isinstance(one, Look) and not one.promote:
                found.append(one)
        return found

    def lost_in_a_row(self, version: int) -> int:
        """Return how many lost looks count: of windows apart, and production surely too bad.

        Notes
        -----
        Apart is what decided: with the wider windows of the comparison three lost looks take so
        long that production at 12 % is rarely found (docs/gate.md). None count as long as the lower
        end of production's interval on the newest window is not above the threshold: then it may
        be healthy, and what was lost was luck.
        """
        lost = self.lost_looks(version)
        if not lost or not lost[0].mean_error_low > lost[0].threshold:
            return 0
        return apart([one.decided for one in lost])
