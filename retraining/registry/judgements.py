"""What was judged before: verdicts of challengers, looks at a champion, lost batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retraining.outcome import Outcome
from retraining.registry.facts import (
    COMPARISON_FILE,
    EVENT_PROBATION,
    EVENT_PROMOTION,
    INTERRUPTED,
    TAG_BATCH,
    TAG_CHAMPION,
    TAG_CYCLE,
    TAG_OUTCOME,
    TAG_REASONS,
    TAG_RECORDINGS,
    TAG_VERDICT,
    VERDICT_PROMOTE,
    VERDICT_REJECT,
    RegisteredVersion,
)
from retraining.registry.runs import Runs
from retraining.registry.store import Connection
from retraining.registry.versions import Versions
from retraining.text import error_text

OUTCOME_OF_EVENT = {EVENT_PROMOTION: Outcome.PROMOTED, EVENT_PROBATION: Outcome.ROLLED_BACK}


@dataclass(frozen=True)
class Judgements:
    """The verdicts that versions and runs of this model carry."""

    connection: Connection
    runs: Runs
    versions: Versions

    def record(
        self, version: RegisteredVersion, verdict: Mapping[str, Any], explanation: str
    ) -> None:
        """Store a verdict, every criterion with value, limit and result, with its challenger."""
        self.connection.client.log_dict(version.run_id, dict(verdict), COMPARISON_FILE)
        facts = {
            TAG_RECORDINGS: str(verdict["n_sessions"]),
            "p_value": f"{verdict['p_value']:.6g}",
            "champion_mean_error": f"{verdict['champion_mean_error']:.6g}",
            "challenger_mean_error": f"{verdict['challenger_mean_error']:.6g}",
            TAG_REASONS: ", ".join(verdict["reasons"]),
        }
        for key, value in facts.items():
            self.versions.set_tag(version.number, key, value)
        self.versions.describe(version.number, explanation)
        # Last: a version with this tag has been judged, whatever died before.
        word = VERDICT_PROMOTE if verdict["promote"] else VERDICT_REJECT
        self.versions.set_tag(version.number, TAG_VERDICT, word)

    def before(self, question: Mapping[str, str]) -> str:
        """Return what became of the same batch, champion and settings earlier, or nothing."""
        for version in self.versions.with_tags(question):
            verdict = version.read.text(TAG_VERDICT)
            if verdict == VERDICT_REJECT:
                reasons = version.read.text(TAG_REASONS)
                return f"its challenger, version {version.number}, was not promoted ({reasons})"
            if verdict == VERDICT_PROMOTE:
                return f"its challenger, version {version.number}, was promoted and rolled back"
        healthy = self.runs.monitored({**question, TAG_OUTCOME: Outcome.HEALTHY.value}, limit=1)
        if healthy:
            return f"production was healthy ({error_text(healthy[0].mean_error, healthy[0].unit)})"
        return ""

    def earlier_looks(self, champion: RegisteredVersion) -> list[int]:
        """Return the number of sessions each time that a champion was judged, oldest first."""
        judged = [
            version
            for version in self.versions.with_tags({TAG_CHAMPION: str(champion.number)})
            if TAG_VERDICT in version.tags
        ]
        judged.sort(key=lambda version: version.number)
        return [version.read.integer(TAG_RECORDINGS) for version in judged]

    def lost_batches(self, champion: RegisteredVersion) -> set[str]:
        """Return the batches on which challengers lost since production was last healthy."""
        of_champion = {TAG_CHAMPION: str(champion.number)}
        healthy = self.runs.monitored({**of_champion, TAG_OUTCOME: Outcome.HEALTHY.value}, limit=1)
        since = healthy[0].at_ms if healthy else 0
        return {
            version.read.text(TAG_BATCH)
            for version in self.versions.with_tags(of_champion)
            if version.tags.get(TAG_VERDICT) == VERDICT_REJECT and version.created_ms > since
        }

    def complete_outcome(self, cycle_id: str) -> None:
        """Tag the monitoring run of a dead cycle that had come to a verdict."""
        of_cycle = {TAG_CYCLE: cycle_id}
        outcomes = [OUTCOME_OF_EVENT.get(one.event) for one in self.runs.changes(of_cycle)]
        outcomes += [
            Outcome.NOT_PROMOTED
            for version in self.versions.with_tags(of_cycle)
            if version.tags.get(TAG_VERDICT) == VERDICT_REJECT
        ]
        for run in self.runs.monitored(of_cycle):
            if run.outcome == INTERRUPTED and outcomes and outcomes[0]:
                self.runs.set_tag(run.run_id, TAG_OUTCOME, outcomes[0].value)
