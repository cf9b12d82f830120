"""Which versions a home vouches for, by its journal: no other one is loaded or run.

Whoever may edit tags or move the alias in MLflow decides what `production` is called, not what this
home believes.
"""

from __future__ import annotations

from dataclasses import dataclass

from retraining.errors import PipelineError
from retraining.journal import Journal, Vouch
from retraining.registry.facts import TAG_ARTIFACT_HASH, TAG_MANIFEST_HASH, RegisteredVersion
from retraining.settings import Settings


@dataclass(frozen=True)
class Vouches:
    """What the journal of a home says of versions."""

    settings: Settings

    def check(self, version: RegisteredVersion) -> None:
        """Refuse a version that this home neither registered nor trusts on a person's word.

        Raises
        ------
        PipelineError
            With the command that names it as trusted.
        """
        memory = Journal(self.settings.home).read()
        vouch = memory.vouches(self.settings.model_name).get(version.number)
        if vouch is not None and _holds(vouch, version):
            return
        # In a store of its own a home without a journal begins one with what verifies.
        if vouch is None and not memory.number and self.settings.has_own_store:
            return
        state = (
            "is not one that this home registered"
            if vouch is None
            else "is not what this home vouches for: it was edited in MLflow"
        )
        raise PipelineError(
            f"version {version.number} {state}; nothing of it is loaded or run. If you know where "
            "it comes from: python pipeline_orchestrator.py trust "
            f"{version.number} --reason TEXT; or make another version production: "
            "python pipeline_orchestrator.py rollback --to VERSION"
        )


def _holds(vouch: Vouch, version: RegisteredVersion) -> bool:
    if vouch.run_id != version.run_id:
        return False
    if vouch.digest:
        return vouch.digest == version.digest
    # A line of an older pipeline.
    found = (version.tags.get(TAG_ARTIFACT_HASH), version.tags.get(TAG_MANIFEST_HASH))
    return found == (vouch.artifact_sha256, vouch.manifest_sha256)
