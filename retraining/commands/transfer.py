"""What `export` writes into an archive and `import` reads from it: a model with all its history."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from retraining.archives import Extracted, checked, read_as
from retraining.errors import PipelineError
from retraining.journal import BecameProduction, DidNotBecome, Entry, Memory, Vouch
from retraining.looks import Judged, Look
from retraining.registry.copies import ENDED, ModelCopy, RunCopy, VersionCopy
from retraining.registry.pruned import Pruned

KIND = "export of a model"
MODEL_FILE, JOURNAL_FILE = "model.json", "journal.json"
OF_A_MODEL: tuple[type[Entry], ...] = (
    *(Vouch, BecameProduction, DidNotBecome, Judged, Look, Pruned),
)
"""What a journal says of a registered model; all else in it is about the home's recordings."""
MOST_VERSIONS = 10_000


@dataclass(frozen=True)
class Imported(Entry):
    """A registered model came from another store, on a person's word.

    Parameters
    ----------
    archive
        SHA-256 of what names all its digests.
    home_id
        Of the home that it was exported from.
    reason
        Why it is trusted; empty where this home vouched for all of it before.
    """

    KIND: ClassVar[str] = "imported"
    archive: str
    home_id: str
    model_name: str
    versions: int
    reason: str
    who: str
    at: str


@dataclass(frozen=True)
class Transfer:
    """A registered model with its history, as it lies in an archive.

    Parameters
    ----------
    entries
        Of the journal, the oldest first.
    """

    home_id: str
    model_name: str
    model: ModelCopy
    versions: tuple[VersionCopy, ...]
    runs: tuple[RunCopy, ...]
    entries: tuple[Entry, ...]


def entries_of(memory: Memory, model_name: str) -> list[Entry]:
    """Return what a journal says of a registered model, the oldest first."""
    found: list[Entry] = []
    cycles = set()
    for one in memory.in_order(*OF_A_MODEL):
        if isinstance(one, DidNotBecome):
            ours = one.cycle in cycles
        else:
            ours = getattr(one, "model_name", None) == model_name
        if ours:
            cycles.add(getattr(one, "cycle", ""))
            found.append(one)
    return found


def key_of(entry: Entry) -> str:
    """Return a text that is the same for equal entries."""
    return json.dumps([entry.KIND, dataclasses.asdict(entry)], sort_keys=True)


def as_json(entries: list[Entry]) -> bytes:
    """Return the member of an archive that holds entries."""
    found = [{"kind": one.KIND, **dataclasses.asdict(one)} for one in entries]
    return json.dumps(found, allow_nan=False).encode()


# --- Reading, without trusting it ---


def read_transfer(archive: Extracted, path: Path) -> Transfer:
    """Return what an archive holds, every value of the type that it should be.

    Parameters
    ----------
    path
        For messages.

    Raises
    ------
    PipelineError
        If something in it is of another type, or does not fit together.
    """
    try:
        found = _json(archive, MODEL_FILE)
        kinds = {kind.KIND: kind for kind in OF_A_MODEL}
        transfer = Transfer(
            home_id=checked(archive.facts["home_id"], str),
            model_name=checked(archive.facts["model_name"], str),
            model=read_as(ModelCopy, found["model"]),
            versions=tuple(read_as(VersionCopy, one) for one in found["versions"]),
            runs=tuple(read_as(RunCopy, one) for one in found["runs"]),
            entries=tuple(
                read_as(kinds[one["kind"]], one)
                for one in _json(archive, JOURNAL_FILE)
                if one["kind"] in kinds
            ),
        )
        _check(transfer)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError) as error:
        raise PipelineError(
            f"{path} holds what no export writes ({type(error).__name__}: {error}); nothing of it "
            "was imported, export again"
        ) from error
    return transfer


def _json(archive: Extracted, name: str) -> Any:
    def refuse(text: str) -> float:
        raise ValueError(f"{text} is no number")

    return json.loads((archive.folder / name).read_bytes(), parse_constant=refuse)


def _check(transfer: Transfer) -> None:
    name, numbers = transfer.model_name, [one.number for one in transfer.versions]
    if sorted({*numbers}) != sorted(numbers) or not all(
        0 < one <= MOST_VERSIONS for one in numbers
    ):
        raise ValueError(f"versions are numbered from 1 to {MOST_VERSIONS}, each once")
    ids = [one.run_id for one in transfer.runs]
    if len({*ids}) != len(ids) or any(not one or "/" in one for one in ids):
        raise ValueError("each run has an id of its own")
    if not {one.run_id for one in transfer.versions} <= {*ids}:
        raise ValueError("the run of each version is there")
    if not {*transfer.model.aliases.values()} <= {*numbers}:
        raise ValueError("an alias names a version")
    if not all(one.status in ENDED for one in transfer.runs):
        raise ValueError("a run has ended")
    if not all(
        len(point) == 4 and isinstance(point[0], str)
        for one in transfer.runs
        for point in one.metrics
    ):
        raise ValueError("a metric has a name, a value, a time and a step")
    if any(getattr(one, "model_name", name) != name for one in transfer.entries):
        raise ValueError("the journal speaks of this model")
