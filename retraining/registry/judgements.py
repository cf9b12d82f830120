"""The verdicts that versions and runs carry: written, and completed after a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retraining.files import hash_bytes
from retraining.outcome import Outcome
from retraining.registry.facts import (
    COMPARISON_FILE,
    EVENT_PROBATION,
    EVENT_PROMOTION,
    INTERRUPTED,
    TAG_COMPARISON_HASH,
    TAG_CYCLE,
    TAG_DIGEST,
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

OUTCOME_OF_EVENT = {EVENT_PROMOTION: Outcome.PROMOTED, EVENT_PROBATION: Outcome.ROLLED_BACK}


@dataclass(frozen=True)
class Judgements:
    """The verdicts that versions and runs of this model carry."""

    connection: Connection
    runs: Runs
    versions: Versions

    def with_comparison(
        self, version: RegisteredVersion, verdict: Mapping[str, Any]
    ) -> RegisteredVersion:
        """Return a challenger as it will be once `record` has stored its verdict."""
        return version.with_tags({TAG_COMPARISON_HASH: hash_bytes(_comparison(verdict))})

    def record(
        self, version: RegisteredVersion, verdict: Mapping[str, Any], explanation: str
    ) -> None:
        """Store a verdict, every criterion with value, limit and result, with its challenger.

        Parameters
        ----------
        version
            What `with_comparison` returned.
        """
        self.runs.log_file(_comparison(verdict), COMPARISON_FILE, version.run_id)
        facts = {
            TAG_COMPARISON_HASH: version.tags[TAG_COMPARISON_HASH],
            TAG_DIGEST: version.digest,
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

    def outcome_of(self, cycle_id: str) -> Outcome | None:
        """Return to what a dead cycle had come; None if to nothing that stays."""
        of_cycle = {TAG_CYCLE: cycle_id}
        for change in self.runs.changes(of_cycle):
            if change.event in OUTCOME_OF_EVENT:
                return OUTCOME_OF_EVENT[change.event]
        rejected = any(
            version.tags.get(TAG_VERDICT) == VERDICT_REJECT
            for version in self.versions.with_tags(of_cycle)
        )
        return Outcome.NOT_PROMOTED if rejected else None

    def complete_outcome(self, cycle_id: str, outcome: str) -> None:
        """Tag the monitoring run of a dead cycle that had come to a verdict."""
        for run in self.runs.monitored({TAG_CYCLE: cycle_id}):
            if run.outcome == INTERRUPTED:
                self.runs.set_tag(run.run_id, TAG_OUTCOME, outcome)


def _comparison(verdict: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(verdict), indent=2).encode()
