"""Versions that lost, made in a fraction of a second: the files of version 1, registered again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retraining import vouching
from retraining.registry import open_registry
from retraining.registry.facts import (
    RETRAINING_RUN,
    TAG_CYCLE,
    TAG_VERDICT,
    VERDICT_REJECT,
    RegisteredVersion,
)


def add_loser(settings: Any, verdict: str = VERDICT_REJECT) -> RegisteredVersion:
    """Register a version that this home vouches for and whose challenge was lost."""
    registry = open_registry(settings)
    first = registry.versions.get(1)
    manifest = registry.versions.manifest(first)
    with (
        registry.models.verified_files(first) as files,
        registry.runs.open(RETRAINING_RUN, {}) as run_id,
    ):
        version = registry.versions.adopt(
            files,
            run_id=run_id,
            manifest=manifest,
            out_of_fold=b'{"ab": 1.0}',
            tags={TAG_CYCLE: f"cycle of {run_id}"},
        )
    vouching.vouch_for(settings, registry, version)
    if verdict:
        registry.versions.set_tag(version.number, TAG_VERDICT, verdict)
    return registry.versions.get(version.number)


def folder_of(settings: Any, number: int) -> Path:
    """Return where the files of a version lie on this machine."""
    registry = open_registry(settings)
    location = registry.models.location(registry.versions.get(number))
    return Path(location.removeprefix("file://"))
