"""What production is, was and becomes: the aliases and their history."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from retraining.errors import PipelineError
from retraining.journal import BecameProduction, DidNotBecome, Journal, Memory, who
from retraining.looks import Past
from retraining.registry.facts import (
    EVENT_PROBATION,
    EVENT_PROMOTION,
    EVENT_ROLLBACK,
    INTERRUPTED,
    METRIC_AFTER,
    METRIC_BEFORE,
    PREVIOUS,
    PRODUCTION,
    PROMOTION_RUN,
    ROLL_BACK,
    TAG_CHAMPION,
    TAG_CYCLE,
    TAG_EVENT,
    TAG_FROM,
    TAG_REASONS,
    TAG_ROLLED_BACK,
    TAG_SEQUENCE,
    TAG_TO,
    TAG_UNIT,
    TAG_VERDICT,
    TAG_WHO,
    TAG_WHY,
    VERDICT_REJECT,
    Change,
    NotInRegistry,
    RegisteredVersion,
    RunRecord,
)
from retraining.registry.pruned import pruning_of
from retraining.registry.runs import Runs
from retraining.registry.store import REGISTER_FIRST, Connection
from retraining.registry.versions import Versions
from retraining.registry.vouches import Vouches
from retraining.text import now, printable, without_secrets


@dataclass(frozen=True)
class Production:
    """The alias `production`, the one before it, and how they came to be."""

    connection: Connection
    runs: Runs
    versions: Versions
    vouches: Vouches

    def number(self) -> int | None:
        """Return the number of the production version, None where there is no alias."""
        return self.versions.alias(PRODUCTION)

    def previous_number(self) -> int | None:
        """Return the number of the version before, None where there is none."""
        return self.versions.alias(PREVIOUS)

    def alias_of(self, number: int) -> str:
        """Return what a version is: in production, the one before, or nothing."""
        if number == self.number():
            return PRODUCTION
        return PREVIOUS if number == self.previous_number() else ""

    def champion(self) -> RegisteredVersion:
        """Return the production version.

        Raises
        ------
        NotInRegistry
            If the registry is empty, or nothing is production.
        """
        name = self.connection.name
        if not self.versions.model_exists():
            raise NotInRegistry(f"the registry has no model {name!r}{self._other_models()}")
        number = self.number()
        if number is None:
            raise NotInRegistry(self._what_became_of_it())
        return self.versions.get(number)

    def _other_models(self) -> str:
        """Say which models the store holds instead."""
        found = self.connection.client.search_registered_models()
        names = [printable(str(one.name)) for one in found if one.latest_versions]
        was_there = bool(self._recorded())
        if not names and not was_there:
            return f": it is empty; {REGISTER_FIRST}"
        ways = []
        if names:
            ways.append(
                f"the store holds other models: {', '.join(names)}: name one with --model-name"
            )
        if names and was_there:
            ways.append("or name it back in MLflow, if it was renamed")
        if was_there:
            ways.append("if it was deleted: restore the store from a backup, or begin again")
            return f"; {'; '.join(ways)}: python register_first_model.py --train"
        return f"; {'; '.join(ways)}, or {REGISTER_FIRST}"

    def _what_became_of_it(self) -> str:
        """Say why no version has the alias, and what puts it back."""
        name, last = self.connection.name, self.recorded_number()
        versions = self.versions.all()
        if not versions:
            if last is None:
                return f"model {name!r} has no version; {REGISTER_FIRST}"
            return (
                f"all versions of {name!r} were deleted in MLflow: restore the store from a "
                "backup, or begin again: python register_first_model.py --train"
            )
        if last is None:
            return (
                f"no version of {name!r} has the alias {PRODUCTION!r}; to give it to the newest: "
                f"{ROLL_BACK} --to {versions[0].number}"
            )
        if self._exists(last):
            return (
                f"the alias {PRODUCTION!r} of {name!r} was deleted in MLflow; to put it back on "
                f"version {last}: {ROLL_BACK}"
            )
        if next(self.to_go_back_to(None), None) is None:
            return (
                f"version {last} of {name!r}, which was {PRODUCTION}, was deleted in MLflow, and "
                "no version before it is left: restore the store from a backup, or begin again: "
                "python register_first_model.py --train"
            )
        return (
            f"version {last} of {name!r}, which was {PRODUCTION}, was deleted in MLflow; to go "
            f"back to the version before: {ROLL_BACK}"
        )

    def _exists(self, number: int) -> bool:
        try:
            self.versions.get(number)
        except NotInRegistry:
            return False
        return True

    # --- What this home knows of it ---

    def _memory(self) -> Memory:
        return Journal(self.connection.settings.home).read()

    def _recorded(self) -> list[BecameProduction]:
        return self._memory().productions(self.connection.name)

    def recorded_number(self) -> int | None:
        """Return the version that the pipeline itself made production last; None if none.

        By the journal, which nobody edits in MLflow; of an older pipeline only the runs know.
        """
        recorded = self._recorded()
        if recorded:
            return recorded[-1].version
        changes = self.runs.changes()
        return changes[0].new if changes else None

    def to_go_back_to(self, now: int | None) -> Iterator[int]:
        """Give the versions that a plain rollback may make production, the best first.

        Parameters
        ----------
        now
            What the alias names. If that is not what the pipeline recorded last, somebody moved or
            deleted it, and the recorded one is the first to go back to.

        Notes
        -----
        The journal first; then the history in MLflow and the alias, for what an older pipeline
        did. What only a hand made production is left out, as are versions that were deleted, and
        those that this home does not vouch for.
        """
        recorded = self._recorded()[::-1]
        wanted: list[int | None] = [one.version for one in recorded[:1]]
        wanted += [_replaced(one) for one in recorded if one.version == now][:1]
        wanted += [number for one in recorded for number in (one.version, _replaced(one))]
        older = [one for one in self.runs.changes() if not one.sequence]
        wanted += [one.old for one in older if one.new == now][:1]
        wanted += [number for one in older for number in (one.new, one.old)]
        wanted += [] if recorded else [self.previous_number()]
        for number in dict.fromkeys(wanted):
            if number in (None, now):
                continue
            with contextlib.suppress(PipelineError):
                self.vouches.check(self.versions.get(int(number or 0)))
                yield int(number or 0)

    def moved_by_hand(self, champion: RegisteredVersion) -> str:
        """Say that somebody else than the pipeline made a version production; empty if not."""
        last = self.recorded_number()
        if last is None or last == champion.number:
            return ""
        what = ""
        if champion.tags.get(TAG_VERDICT) == VERDICT_REJECT:
            reasons = champion.read.text(TAG_REASONS)
            what = f", which had not been promoted ({printable(reasons)})"
        elif any(champion.number in (one.new, one.old) for one in self.changes()):
            what = ", which had been production before"
        target = next(self.to_go_back_to(champion.number), None)
        ways = [f"to go back to version {target}: {ROLL_BACK}"] if target else []
        memory, name = self._memory(), self.connection.name
        if self.vouches.of(champion, memory) and not pruning_of(champion, memory, name):
            ways.append(f"if it is meant, record it: {ROLL_BACK} --to {champion.number}")
        moved = f"the alias {PRODUCTION!r} was moved from version {last} to version"
        if not self._exists(last):
            moved = (
                f"version {last}, which the pipeline had made {PRODUCTION}, is not in the store "
                "(it was deleted, or an older store was put back), and the alias names version"
            )
        return "; ".join(
            [f"by hand: {moved} {champion.number}{what}, outside this pipeline", *ways]
        )

    # --- History ---

    def changes(self, cycle: str = "") -> list[Change]:
        """Return the changes of production, all or those of one command, the newest first.

        Notes
        -----
        The runs tell; of those that somebody removed from MLflow the journal does, but for a
        change that is not there yet. In order of their sequence numbers, for the clock may go back;
        those of an older pipeline have none and come last.
        """
        of_runs = self.runs.changes({TAG_CYCLE: cycle} if cycle else None)
        known = {one.cycle for one in of_runs}
        recorded = self._recorded()
        if recorded and recorded[-1].version != self.number():
            recorded = recorded[:-1] if recorded[-1].cycle not in known else recorded
        found = [
            *of_runs,
            *(
                _change(one)
                for one in recorded
                if one.cycle and one.cycle not in known and cycle in ("", one.cycle)
            ),
        ]
        return sorted(found, key=lambda one: (one.sequence, one.at_ms), reverse=True)

    def last_change_to(self, number: int) -> Change | None:
        """Return the change that made a version production, the last one; None if unknown."""
        return next((one for one in self.changes() if one.new == number), None)

    def on_probation_against(self, champion: RegisteredVersion) -> int | None:
        """Return the version that a promotion replaced, until the new one met new recordings.

        The journal knows, whatever was edited in MLflow; of an older pipeline only the runs do.
        """
        name = self.connection.name
        past = Past.of(self._memory(), name, champion.number, champion.run_id)
        look = past.promotion_of(champion.number)
        if look is not None:
            return None if past.last(champion.number) else look.version
        met = self.runs.monitored({TAG_CHAMPION: str(champion.number)})
        if any(one.outcome != INTERRUPTED for one in met):
            return None
        change = self.last_change_to(champion.number)
        return change.old if change and change.event == EVENT_PROMOTION else None

    def ever(self) -> set[int]:
        """Return all that is or was production: by the journal, the history or an alias."""
        moves = [
            (one.replaced, one.version)
            for one in self._memory().all(BecameProduction)
            if one.model_name == self.connection.name
        ]
        moves += [(one.old, one.new) for one in self.changes()]
        numbers = {self.number(), self.previous_number()}.union(*moves)
        return {number for number in numbers if number is not None}

    # --- Changing it ---

    def move_to(
        self,
        number: int,
        *,
        replaces: int | None,
        event: str,
        why: str,
        tags: Mapping[str, str],
        mean_errors: tuple[float | None, float | None] = (None, None),
    ) -> str:
        """Move the aliases; return the id of the run that keeps the history of production.

        Parameters
        ----------
        mean_errors
            Of the old and the new version on the same recordings, where measured.

        Raises
        ------
        PipelineError
            If somebody moved the alias meanwhile; it stays where it was put.
        """
        before, after = mean_errors
        recorded = self.recorded_number()
        # By hand, before: now it is recorded what it replaced.
        replaced = recorded if replaces == number else replaces
        from_by_hand = replaced not in (None, recorded) and recorded is not None
        became = BecameProduction(
            version=number,
            replaced=replaced,
            event=event,
            model_name=self.connection.name,
            at=now(),
            cycle=tags[TAG_CYCLE],
            sequence=self._next_sequence(),
            mean_error_before=before,
            mean_error_after=after,
            unit=tags.get(TAG_UNIT, ""),
            who=who(),
            why=without_secrets(why),
            from_by_hand=from_by_hand,
        )
        history = {
            **tags,
            TAG_EVENT: event,
            TAG_FROM: str(replaced or ""),
            TAG_TO: str(number),
            TAG_SEQUENCE: str(became.sequence),
            TAG_WHY: became.why,
            TAG_WHO: became.who,
        }
        measured = zip((METRIC_BEFORE, METRIC_AFTER), mean_errors, strict=True)
        metrics = {name: value for name, value in measured if value is not None}
        client, name = self.connection.client, self.connection.name
        with self.runs.open(PROMOTION_RUN, history) as run_id:
            self.runs.log(run_id, RunRecord(metrics=metrics))
            # An alias has no compare-and-set: read again as late as possible.
            found = self.number()
            if found != replaces:
                raise PipelineError(
                    f"{PRODUCTION!r} was moved to version {found} while this ran; left there, "
                    f"version {number} is not promoted"
                )
            Journal(self.connection.settings.home).append(became)
            # The old one first: whatever dies in between, both aliases name a version that loads.
            if replaces not in (None, number) and not (from_by_hand and event == EVENT_ROLLBACK):
                client.set_registered_model_alias(name, PREVIOUS, str(replaces))
            client.set_registered_model_alias(name, PRODUCTION, str(number))
            if replaces not in (None, number) and event in (EVENT_ROLLBACK, EVENT_PROBATION):
                self.versions.set_tag(int(replaces or 0), TAG_ROLLED_BACK, without_secrets(why))
        return run_id

    def _next_sequence(self) -> int:
        known = [one.sequence for one in self._recorded()]
        known += [one.sequence for one in self.runs.changes()]
        return max(known, default=0) + 1

    def settle(self, cycle_id: str) -> None:
        """Let the journal say so if a dead command did not come to change production."""
        last = next(reversed(self._recorded()), None)
        if last and last.cycle == cycle_id != "" and last.version != self.number():
            Journal(self.connection.settings.home).append(DidNotBecome(cycle_id))


def _replaced(one: BecameProduction) -> int | None:
    return None if one.from_by_hand else one.replaced


def _change(one: BecameProduction) -> Change:
    """Return what the journal knows of a change."""
    return Change(
        at_ms=round(datetime.datetime.fromisoformat(one.at).timestamp() * 1000),
        event=one.event,
        old=one.replaced,
        new=one.version,
        cycle=one.cycle,
        sequence=one.sequence,
        mean_error_before=one.mean_error_before,
        mean_error_after=one.mean_error_after,
        unit=one.unit,
        who=one.who,
        why=one.why,
    )
