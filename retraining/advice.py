"""Commands that messages advise, with the settings that were given on the command line.

A message says `python pipeline_orchestrator.py rollback`; a reader in another folder, or one whose
home is not the default, must be able to copy it as it stands. What came from the environment is
still there. Nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path

from retraining.settings import OF_FIRST_MODEL, OF_FIRST_TRAINING, Settings, flag

COMMAND = re.compile(
    r"python (?:pipeline_orchestrator\.py(?: [a-z][a-z-]*)?"
    r"|(?:register_first_model|train_classification_model)\.py)"
)
TAKEN = {
    "register_first_model.py": OF_FIRST_MODEL,
    "train_classification_model.py": OF_FIRST_TRAINING,
}
"""Settings that a script takes; the orchestrator takes all."""

_given: dict[str, str] = {}


def remember(options: argparse.Namespace, home: Path) -> None:
    """Let all advice of this process carry the settings among parsed options.

    Parameters
    ----------
    home
        The whole path of the home, if one was given: who copies a command may be elsewhere.
    """
    _given.clear()
    _given.update(_flags(options, home))


def _flags(options: argparse.Namespace, home: Path) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(Settings):
        text = getattr(options, field.name, None)
        if text is None:
            continue
        if field.metadata["kind"] is bool:
            yield field.name, flag(field)
        else:
            value = str(home) if field.name == "home" else text
            yield field.name, f"{flag(field)} {shlex.quote(value)}"


def with_given_flags(text: str) -> str:
    """Return a message whose commands carry the settings that were given.

    Examples
    --------
    >>> remember(argparse.Namespace(model_name="Oaks"), Path("/srv/oaks"))
    >>> with_given_flags("to go back: python pipeline_orchestrator.py rollback; or wait")
    'to go back: python pipeline_orchestrator.py rollback --model-name Oaks; or wait'
    >>> remember(argparse.Namespace(), Path("/srv/oaks"))
    """
    return COMMAND.sub(lambda found: _completed(found[0]), text) if _given else text


def _completed(command: str) -> str:
    taken: Collection[str] = TAKEN.get(command.removeprefix("python "), _given)
    return " ".join([command, *(words for name, words in _given.items() if name in taken)])
