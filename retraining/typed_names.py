"""Names that people type: which file they mean. Nothing heavy is imported here."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path


def name_meant(name: str, folders: Iterable[Path], others: Iterable[str] = ()) -> str:
    """Return the name that a person means: the very one, or one that looks the same.

    Parameters
    ----------
    folders
        Where it may lie; missing ones are none.
    others
        More names that it may be.

    Notes
    -----
    Unicode has two forms of many letters (NFC and NFD): keyboards make one, some disks and
    uploaders the other. Where there is neither, the name itself is returned, for a message.
    """
    if name.isascii():
        return name
    names = list(others)
    for folder in folders:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as all_:
            names += [entry.name for entry in all_]
    if name in names:
        return name
    form = unicodedata.normalize("NFC", name)
    return next((one for one in names if unicodedata.normalize("NFC", one) == form), name)


def path_meant(path: Path) -> Path:
    """Return the path that a person means: it, or one that looks the same, folders and all."""
    if os.path.lexists(path) or str(path).isascii():
        return path
    folder = path_meant(path.parent)
    return folder / name_meant(path.name, [folder])
