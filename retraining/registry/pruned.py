"""Which versions gave up their model file: what the journal says of it, whatever MLflow says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from retraining.journal import Entry, Memory
from retraining.registry.facts import RegisteredVersion


@dataclass(frozen=True)
class Pruned(Entry):
    """The model file of a version is about to be removed; all its other files stay.

    Parameters
    ----------
    version, run_id
        Its number, which MLflow may give again, and the run that made it.
    n_bytes
        Length of the model file.
    """

    KIND: ClassVar[str] = "pruned"
    version: int
    run_id: str
    model_name: str
    at: str
    n_bytes: int


def pruned_of(memory: Memory, model_name: str) -> dict[tuple[int, str], Pruned]:
    """Return number and run of a version -> when it was pruned, the last time."""
    return {
        (one.version, one.run_id): one for one in memory.all(Pruned) if one.model_name == model_name
    }


def pruning_of(version: RegisteredVersion, memory: Memory, model_name: str) -> Pruned | None:
    """Return when a version was pruned; None if it never was."""
    return pruned_of(memory, model_name).get((version.number, version.run_id))
