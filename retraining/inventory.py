"""Is used_gts/ what production learnt? What the journal explains, and what it does not.

Nothing heavy is imported here.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from retraining.files import listed
from retraining.ground_truth import contents_today, hashes_in, withdrawn_recordings
from retraining.journal import COPY, Arrival, Memory, Replaced, Withdrawn
from retraining.registry.facts import Manifest
from retraining.settings import Settings

SHOWN_NAMES = 5


@dataclass(frozen=True)
class Inventory:
    """How used_gts/ differs from what production learnt.

    Parameters
    ----------
    explained
        What the journal tells of: corrections, withdrawals, recordings of other versions.
    unexplained
        What nobody told the pipeline of, each with what to do.
    """

    explained: tuple[str, ...] = ()
    unexplained: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it, in sentences."""
        return (*self.explained, *self.unexplained)


def take_inventory(settings: Settings, manifest: Manifest, memory: Memory) -> Inventory:
    """Compare used_gts/ with a version's manifest.

    Parameters
    ----------
    manifest
        Of the production version.
    """
    used, learnt = hashes_in(settings.used_gts), manifest.names
    added = {sha256: name for sha256, name in used.items() if sha256 not in learnt}
    gone = {sha256: name for sha256, name in learnt.items() if sha256 not in used}
    waiting = hashes_in(settings.new_gts, max_mb=settings.max_file_mb) if gone else {}
    hold, today = withdrawn_recordings(settings, memory), contents_today(memory)
    withdrawn = {sha256 for one in hold.values() for sha256 in one.contents}
    copies = {one.old_sha256 for one in memory.all(Replaced) if one.reason == COPY}
    found: dict[str, list[str]] = {}
    for sha256, name in gone.items():
        now = today.get(sha256, sha256)
        if not withdrawn.isdisjoint((sha256, now)):
            kind = "withdrawn"
        elif now != sha256 and (now in added or now in waiting):
            kind = "restored" if sha256 in copies else "older"
            added.pop(now, None)
        elif sha256 in waiting:
            kind = "waiting"
        elif name in added.values():
            kind = "changed"
            added = {other: twin for other, twin in added.items() if twin != name}
        else:
            kind = "lacking"
        found.setdefault(kind, []).append(name)
    arrived = {one.sha256 for one in memory.all(Arrival)}
    known = arrived | {one.sha256 for one in memory.all(Replaced)}
    known |= {one.sha256 for one in memory.all(Withdrawn)}
    for sha256, name in added.items():
        # Before the first night that notes arrivals, nobody can say more.
        kind = "of another version" if sha256 in known or not arrived else "by hand"
        found.setdefault(kind, []).append(name)
    names = {kind: (listed(names), _words(names)) for kind, names in found.items()}
    return Inventory(
        tuple(text.format(*names[kind]) for kind, text in EXPLAINED.items() if kind in names),
        tuple(text.format(*names[kind]) for kind, text in UNEXPLAINED.items() if kind in names),
    )


EXPLAINED = {
    "older": "production learnt an older version of {0}",
    "restored": "production learnt {0} in other bytes",
    "withdrawn": "production learnt {0}, withdrawn since",
    "waiting": "production learnt {0}, still in new_gts/: the next cycle archives it",
    "of another version": (
        "production did not learn {0}, which another version learnt: the next retraining does"
    ),
}
UNEXPLAINED = {
    "lacking": (
        "used_gts/ lacks {0}, which production learnt: put it back from a backup, or take it out "
        "for good: python pipeline_orchestrator.py withdraw {1}"
    ),
    "changed": (
        "used_gts/ holds another {0} than production learnt: move it to new_gts/, so that it is "
        "looked at before it is learnt, or put the old one back from a backup"
    ),
    "by hand": (
        "used_gts/ holds {0}, which did not come through new_gts/: move it there, so that it is "
        "looked at before it is learnt"
    ),
}
"""Names as they are read, and as words of a command."""


def _words(names: list[str]) -> str:
    return shlex.join(sorted(names)[:SHOWN_NAMES])
