"""What was computed of a recording, kept on disk: the next retraining reads only what is new.

An entry is named by the SHA-256 of the recording and by the code that computed it. It holds plain
NumPy arrays, never a pickle, behind a digest over name and content: damaged, foreign or renamed,
it is computed again. Losing the folder costs nothing but time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import stat
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CACHE_FOLDER = Path(".cache", "features")
"""Below the home folder."""
TEMPORARY_SUFFIX = ".tmp"
DIGEST_BYTES = 32
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

logger = logging.getLogger("pipeline")


class FeatureCache:
    """Feature tables by the content of their recordings, in files.

    Parameters
    ----------
    home
        The folder is made in it, for its owner alone.
    version
        Names the code that computes the tables; entries of another version are never read.
    max_mb
        Size that `trim` leaves, in megabytes (10^6 bytes).
    read_only
        Write nothing, not even when an entry was last used.

    Attributes
    ----------
    n_hits
        Tables that were found.
    """

    def __init__(self, home: Path, version: str, max_mb: float, *, read_only: bool = False) -> None:
        self.folder = home / CACHE_FOLDER
        self.n_hits = 0
        self._version = version
        self._max_bytes = int(max_mb * 1e6)
        self._read_only = read_only

    def get(self, content_sha256: str) -> dict[str, np.ndarray] | None:
        """Return the arrays kept for a recording; None if there are none that can be trusted.

        Parameters
        ----------
        content_sha256
            Of the recording's bytes.
        """
        import numpy as np

        name = self._name(content_sha256)
        entry = self._read(name)
        payload = entry[DIGEST_BYTES:]
        if entry[:DIGEST_BYTES] != _digest(name, payload):
            return None
        try:
            with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
                found = {key: arrays[key] for key in arrays.files}
        except (ValueError, OSError, zipfile.BadZipFile):
            return None
        self.n_hits += 1
        return found

    def put(self, content_sha256: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep the arrays of a recording; a disk that refuses costs the next training some time.

        Parameters
        ----------
        content_sha256
            Of the recording's bytes.
        arrays
            By name; numbers, booleans and text.
        """
        import numpy as np

        if self._read_only:
            return
        name = self._name(content_sha256)
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **arrays)
        payload = stream.getvalue()
        try:
            self._make_folder()
            self._write(name, _digest(name, payload) + payload)
        except OSError as error:
            logger.warning("a feature table is not kept in %s: %s", self.folder, error)
            self._read_only = True

    def trim(self) -> None:
        """Remove the entries that were not used for the longest time, and what a crash left."""
        if self._read_only or not _is_private(self.folder):
            return
        with os.scandir(self.folder) as found:
            entries = [(entry.stat(follow_symlinks=False), entry.path) for entry in found]
        n_bytes = sum(status.st_size for status, _ in entries)
        for status, path in sorted(entries, key=lambda entry: entry[0].st_mtime_ns):
            if n_bytes > self._max_bytes or path.endswith(TEMPORARY_SUFFIX):
                with contextlib.suppress(OSError):
                    Path(path).unlink()
                n_bytes -= status.st_size

    def _name(self, content_sha256: str) -> str:
        return f"{content_sha256}-{self._version}"

    def _read(self, name: str) -> bytes:
        """Return the bytes of an entry; none of a link, of another user's file or without one."""
        if not _is_private(self.folder):
            return b""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self.folder / name, flags)
        except OSError:
            return b""
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not (stat.S_ISREG(status.st_mode) and _belongs_to_us(status)):
                return b""
            if not self._read_only:
                os.utime(descriptor)
            return stream.read()

    def _write(self, name: str, entry: bytes) -> None:
        """Replace an entry as a whole. A power cut may spoil it: its digest tells."""
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, suffix=TEMPORARY_SUFFIX)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(entry)
            Path(temporary).replace(self.folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _make_folder(self) -> None:
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        if not _is_private(self.folder):
            raise PermissionError("it, or the folder above, belongs to or is writable by others")


def _digest(name: str, payload: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + payload).digest()


def _is_private(folder: Path) -> bool:
    """Say whether a folder and the one above are ours alone to write, and no links."""
    for each in (folder.parent, folder):
        try:
            status = each.lstat()
        except OSError:
            return False
        if not (stat.S_ISDIR(status.st_mode) and _belongs_to_us(status)):
            return False
    return True


def _belongs_to_us(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & WRITABLE_BY_OTHERS
