"""What was read of a recording, kept on disk: the next retraining reads only what is new.

Parquet behind a digest over name and content: no code, and an entry that is damaged, foreign or
renamed is computed again. Losing the folder costs nothing but time.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retraining.files import (
    TEMPORARY_SUFFIX,
    is_private,
    read_sealed,
    write_sealed,
)
from retraining.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

CACHE_FOLDER = Path(".cache", "features")
"""Below the home folder."""

logger = logging.getLogger("pipeline")


@dataclass(frozen=True)
class KeptTables:
    """Tables by what they were made of, in files of a folder that is ours alone.

    Parameters
    ----------
    folder
        Made for its owner alone, together with the one above.
    maker
        Names the code that makes the tables; those of another one are never read.
    max_mb
        Size that `trim` leaves, in megabytes (10^6 bytes).
    read_only
        Write nothing, not even when an entry was last used.
    """

    folder: Path
    maker: str
    max_mb: float
    read_only: bool = False

    def get(self, kind: str, key: str) -> pd.DataFrame | None:
        """Return a table; None if there is none that can be trusted."""
        name = self._name(kind, key)
        if not is_private(self.folder):
            return None
        payload = read_sealed(self.folder / name, name, note_use=not self.read_only)
        return None if payload is None else _from_parquet(payload)

    def put(self, kind: str, key: str, table: pd.DataFrame) -> None:
        """Keep a table that Parquet can hold; a disk that refuses costs the next training time."""
        if self.read_only:
            return
        name, payload = self._name(kind, key), _as_parquet(table)
        if payload is None:
            return
        try:
            for folder in (self.folder.parent, self.folder):
                folder.mkdir(mode=0o700, exist_ok=True)
            if not is_private(self.folder):
                raise PermissionError("it, or the folder above, belongs to or is open to others")
            # A power cut may spoil it: its digest tells.
            write_sealed(self.folder / name, name, payload, durable=False)
        except OSError as error:
            _warn_once(self.folder, error.strerror or str(error))

    def forget(self, key: str) -> None:
        """Remove all that was made of one content, by whatever code."""
        if is_private(self.folder):
            for entry in self.folder.glob(f"{key}-*"):
                entry.unlink()

    def trim(self) -> None:
        """Remove the entries that were not used for the longest time, and what a crash left."""
        if self.read_only or not is_private(self.folder):
            return
        with os.scandir(self.folder) as found:
            entries = [(entry.stat(follow_symlinks=False), entry.path) for entry in found]
        n_bytes = sum(status.st_size for status, _ in entries)
        for status, path in sorted(entries, key=lambda entry: entry[0].st_mtime_ns):
            if n_bytes > self.max_mb * 1e6 or path.endswith(TEMPORARY_SUFFIX):
                with contextlib.suppress(OSError):
                    Path(path).unlink()
                n_bytes -= status.st_size

    def _name(self, kind: str, key: str) -> str:
        return f"{key}-{self.maker}-{kind}"


def tables_of(settings: Settings, maker: str, *, read_only: bool = False) -> KeptTables | None:
    """Return the kept tables of a home; None where nothing is to be kept."""
    if not settings.cache_mb:
        return None
    folder = settings.home / CACHE_FOLDER
    return KeptTables(folder, maker, settings.cache_mb, read_only=read_only)


@functools.cache
def _warn_once(folder: Path, what: str) -> None:
    """Say what keeps tables from being kept: once, not for every one."""
    logger.warning("tables are not kept in %s: %s", folder, what)


def _as_parquet(table: pd.DataFrame) -> bytes | None:
    """Return a table as Parquet; None if it would not come back as it is."""
    import pyarrow as pa

    stream = io.BytesIO()
    try:
        # Almost no number stands twice: a dictionary of them would only be larger.
        table.to_parquet(stream, engine="pyarrow", compression="zstd", use_dictionary=False)
    except (ValueError, TypeError, OSError, pa.ArrowException):
        return None
    back = _from_parquet(stream.getvalue())
    if back is None:
        return None
    alike = back.equals(table) and back.dtypes.equals(table.dtypes) and back.attrs == table.attrs
    return stream.getvalue() if alike else None


def _from_parquet(content: bytes) -> pd.DataFrame | None:
    """Read a table and its `attrs`; None if it is none, whatever its digest says."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # In this thread: the tables are small.
        found = parquet.read_table(pa.BufferReader(content), use_threads=False)
        table = found.to_pandas()
        table.attrs = json.loads(found.schema.metadata.get(b"PANDAS_ATTRS", b"{}"))
    except (ValueError, TypeError, LookupError, AttributeError, OSError, pa.ArrowException):
        return None
    return table
