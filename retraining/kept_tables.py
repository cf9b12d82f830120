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
    UnusableFile,
    belongs_to_us,
    hash_bytes,
    is_private,
    open_regular,
    written_whole,
)
from retraining.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

CACHE_FOLDER = Path(".cache", "features")
"""Below the home folder."""
DIGEST_BYTES = 64

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
        entry = self._read(name)
        payload = entry[DIGEST_BYTES:]
        if entry[:DIGEST_BYTES] != _digest(name, payload):
            return None
        return _from_parquet(payload)

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
            with written_whole(self.folder / name, mode=0o600, durable=False) as temporary:
                temporary.write_bytes(_digest(name, payload) + payload)
        except OSError as error:
            _warn_once(self.folder, error.strerror or str(error))

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

    def _read(self, name: str) -> bytes:
        """Return the bytes of an entry; none of a link, of another user's file or without one."""
        if not is_private(self.folder):
            return b""
        with contextlib.suppress(OSError, UnusableFile), open_regular(self.folder / name) as found:
            stream, status = found
            if belongs_to_us(status):
                if not self.read_only:
                    os.utime(stream.fileno())
                return stream.read()
        return b""


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


def _digest(name: str, payload: bytes) -> bytes:
    return hash_bytes(name.encode() + b"\n" + payload).encode()
