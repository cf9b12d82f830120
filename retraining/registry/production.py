"""What production is, was and becomes: the aliases and their history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retraining.errors import PipelineError
from retraining.journal import BecameProduction, Journal, who
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
    TAG_CHAMPION,
    TAG_EVENT,
    TAG_FROM,
    TAG_ROLLED_BACK,
    TAG_TO,
    TAG_WHO,
    TAG_WHY,
    Change,
    NotInRegistry,
    RegisteredVersion,
    RunRecord,
)
from retraining.registry.runs import Runs
from retraining.registry.store import REGISTER_FIRST, Connection
from retraining.registry.versions import Versions
from retraining.text import now, without_secrets


@dataclass(frozen=True)
class Production:
    """The alias `production`, the one before it, and how they came to be."""

    connection: Connection
    runs: Runs
    versions: Versions

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
            raise NotInRegistry(
                f"the registry has no model {name!r}: it is empty; {REGISTER_FIRST}"
            )
        number = self.number()
        if number is None:
            found = self.connection.client.search_model_versions(f"name = '{name}'", max_results=1)
            if not found:
                raise NotInRegistry(f"model {name!r} has no version; {REGISTER_FIRST}")
            raise NotInRegistry(
                f"no version of {name!r} has the alias {PRODUCTION!r}; name one: "
                "python pipeline_orchestrator.py rollback --to VERSION"
            )
        return self.versions.get(number)

    # --- History ---

    def changes(self, tags: Mapping[str, str] | None = None) -> list[Change]:
        """Return the changes of production, of runs with these tags, the newest first."""
        return self.runs.changes(tags)

    def changes_to(self, number: int) -> list[Change]:
        """Return the changes that made a version production, the newest first."""
        return self.changes({TAG_TO: str(number)})

    def replaced_by(self, number: int) -> int | None:
        """Return the version that a version replaced when it last became production.

        Notes
        -----
        The journal first, which nobody edits in MLflow; then the history: a process that died
        between the two aliases leaves both on one version. The alias where it was moved by hand.
        """
        settings = self.connection.settings
        for one in reversed(Journal(settings.home).read().all(BecameProduction)):
            if (one.model_name, one.version) == (settings.model_name, number):
                return one.replaced
        changes = self.changes_to(number)
        return changes[0].old if changes else self.previous_number()

    def on_probation_against(self, champion: RegisteredVersion) -> int | None:
        """Return the version that a promotion replaced, until the new one met new recordings.

        The journal knows, whatever was edited in MLflow; of an older pipeline only the runs do.
        """
        settings = self.connection.settings
        past = Past.of(
            Journal(settings.home).read(), settings.model_name, champion.number, champion.run_id
        )
        look = past.promotion_of(champion.number)
        if look is not None:
            return None if past.last(champion.number) else look.version
        met = self.runs.monitored({TAG_CHAMPION: str(champion.number)})
        if any(one.outcome != INTERRUPTED for one in met):
            return None
        changes = self.changes_to(champion.number)
        return changes[0].old if changes and changes[0].event == EVENT_PROMOTION else None

    def ever(self) -> set[int]:
        """Return all that is or was production: by the journal, the history or an alias."""
        settings = self.connection.settings
        moves = [
            (one.replaced, one.version)
            for one in Journal(settings.home).read().all(BecameProduction)
            if one.model_name == settings.model_name
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
        history = {
            **tags,
            TAG_EVENT: event,
            TAG_FROM: str(replaces or ""),
            TAG_TO: str(number),
            TAG_WHY: without_secrets(why),
            TAG_WHO: who(),
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
            settings = self.connection.settings
            Journal(settings.home).append(
                BecameProduction(number, replaces, event, settings.model_name, now())
            )
            # The old one first: whatever dies in between, both aliases name a version that loads.
            if replaces is not None:
                client.set_registered_model_alias(name, PREVIOUS, str(replaces))
            client.set_registered_model_alias(name, PRODUCTION, str(number))
            if replaces is not None and event in (EVENT_ROLLBACK, EVENT_PROBATION):
                self.versions.set_tag(replaces, TAG_ROLLED_BACK, without_secrets(why))
        return run_id
