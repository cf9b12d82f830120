"""Which versions a home vouches for, by its journal: no other one is loaded or run.

Whoever may edit tags or move the alias in MLflow decides what `production` is called, not what this
home believes.
"""

from __future__ import annotations

from dataclasses import dataclass

from retraining.errors import PipelineError
from retraining.journal import Journal, Memory, Vouch
from retraining.registry.facts import (
    OTHER_VERSION,
    TAG_ARTIFACT_HASH,
    TAG_MANIFEST_HASH,
    TAG_PLACE,
    RegisteredVersion,
)
from retraining.settings import Settings
from retraining.text import printable


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
        if self.of(version, memory):
            return
        # In a store of its own a home without a journal begins one with what verifies.
        if not memory.number and self.settings.has_own_store:
            return
        known = version.number in memory.vouches(self.settings.model_name)
        state = (
            "is not what this home vouches for: it was edited in MLflow, or is of another store"
            if known
            else f"is not one that this home registered{_other_home(version)}"
        )
        raise PipelineError(
            f"version {version.number} {state}; nothing of it is loaded or run. If you know where "
            f"it comes from: python pipeline_orchestrator.py trust {version.number} --reason "
            f'"where it comes from"; or {OTHER_VERSION}'
        )

    def of(self, version: RegisteredVersion, memory: Memory) -> Vouch | None:
        """Return the word of a home for a version, if that is what it still is."""
        said = self.last(version, memory)
        if said is None:
            return None
        if said.digest:
            holds = said.digest == version.digest
        else:  # a line of an older pipeline
            found = (version.tags.get(TAG_ARTIFACT_HASH), version.tags.get(TAG_MANIFEST_HASH))
            holds = found == (said.artifact_sha256, said.manifest_sha256)
        return said if holds else None

    def last(self, version: RegisteredVersion, memory: Memory) -> Vouch | None:
        """Return the last word for a version; another store may have one of that number, too."""
        wanted = (self.settings.model_name, version.number, version.run_id)
        said = [
            one for one in memory.all(Vouch) if (one.model_name, one.version, one.run_id) == wanted
        ]
        return said[-1] if said else None


def _other_home(version: RegisteredVersion) -> str:
    """Say which home a version says that it comes from."""
    place = version.read.text(TAG_PLACE)
    return f", but another one: it names {printable(place, 200)}" if place else ""
