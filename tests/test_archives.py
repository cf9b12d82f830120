"""An archive comes out as it went in, and nothing else comes out of one."""

from __future__ import annotations

import functools
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retraining.archives import CONTENTS, archive_written, extracted, opened
from retraining.errors import PipelineError, TryLaterError
from retraining.files import hash_bytes

FILES = {"a.txt": b"one", "folder/b.bin": bytes(100_000), "folder/ü 'x'.csv": b""}


def write(path: Path) -> Path:
    """Write an archive of three files."""
    with archive_written(path, "test", {"who": "me"}) as writer:
        for name, content in FILES.items():
            writer.add_bytes(name, content)
    return path


def contents_of(files: dict[str, bytes], kind: str = "test", schema: int = 1) -> bytes:
    """Return the last member of an archive of these files."""
    named = {
        name: {"sha256": hash_bytes(content), "n_bytes": len(content)}
        for name, content in files.items()
    }
    return json.dumps({"schema": schema, "kind": kind, "facts": {}, "files": named}).encode()


class TestWriting:
    """`archive_written`."""

    def test_it_comes_out_as_it_went_in(self, tmp_path: Path) -> None:
        """Into a private folder, which is gone afterwards."""
        path = write(tmp_path / "a.tar")
        assert path.stat().st_mode & 0o777 == 0o600
        with extracted(path, "test", most_files=3) as archive:
            folder = archive.folder
            found = {name: (folder / name).read_bytes() for name in archive.sizes}
            assert found == FILES
            assert archive.facts == {"who": "me"}
            assert folder.stat().st_mode & 0o777 == 0o700
        assert not folder.exists()

    def test_files_and_folders_are_added(self, tmp_path: Path) -> None:
        """With all that is below, but no link."""
        (tmp_path / "in/deep").mkdir(parents=True)
        (tmp_path / "in/deep/file").write_text("x")
        with archive_written(tmp_path / "a.tar", "test", {}) as writer:
            writer.add_folder("out", tmp_path / "in")
        with extracted(tmp_path / "a.tar", "test", most_files=1) as archive:
            assert archive.sizes == {"out/deep/file": 1}

    def test_one_that_fails_is_not_there(self, tmp_path: Path) -> None:
        """Nor is anything else."""
        with pytest.raises(RuntimeError), archive_written(tmp_path / "a.tar", "test", {}):
            raise RuntimeError
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "name", ["../a", "/a", "", "a//b", "a/.", "/".join("x" * 2001), "x" * 256, "a", CONTENTS]
    )
    def test_names_that_could_not_be_read_are_refused(self, tmp_path: Path, name: str) -> None:
        """So is one that is there already."""
        with (
            pytest.raises(PipelineError, match="cannot be a name in an archive"),
            archive_written(tmp_path / "a.tar", "test", {}) as writer,
        ):
            writer.add_bytes("a", b"")
            writer.add_bytes(name, b"")


def hostile(
    path: Path,
    members: list[tuple[str, bytes, bytes]],
    contents: bytes | None = None,
    more: dict[str, str] | None = None,
) -> Path:
    """Write a tar of members given as name, type and content; the last one says it is right."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            member.pax_headers = more or {}
            tar.addfile(member, io.BytesIO(content))
        files = {name: content for name, _, content in members}
        last = contents_of(files) if contents is None else contents
        member = tarfile.TarInfo(CONTENTS)
        member.size = len(last)
        tar.addfile(member, io.BytesIO(last))
    return path


def header(name: str, kind: bytes, size: int) -> bytes:
    """Return the head of a member that says so, whatever follows."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def sized(path: Path, size: int) -> object:
    """Write an archive whose first member says that it is so long."""
    hostile(path, [("b", tarfile.REGTYPE, b"")])
    return path.write_bytes(header("a", tarfile.REGTYPE, size) + path.read_bytes())


PLAIN = tarfile.REGTYPE
HOSTILE: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: hostile(path, [("a", tarfile.SYMTYPE, b"")]),
    "a hard link": lambda path: hostile(path, [("a", tarfile.LNKTYPE, b"")]),
    "a device": lambda path: hostile(path, [("a", tarfile.CHRTYPE, b"")]),
    "a pipe": lambda path: hostile(path, [("a", tarfile.FIFOTYPE, b"")]),
    "a folder": lambda path: hostile(path, [("a", tarfile.DIRTYPE, b"")]),
    "a hole": lambda path: hostile(path, [("a", tarfile.GNUTYPE_SPARSE, b"")]),
    **{
        f"a hole of {size} by header": functools.partial(
            hostile,
            members=[("a", PLAIN, b"0\n" + bytes(510))],
            more={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": size},
        )
        for size in ("9" * 15, "100")
    },
    "a way up": lambda path: hostile(path, [("../a", PLAIN, b"x")]),
    "a way up inside": lambda path: hostile(path, [("b/../../a", PLAIN, b"x")]),
    "an absolute name": lambda path: hostile(path, [("/tmp/a", PLAIN, b"x")]),
    "a name twice": lambda path: hostile(path, [("a", PLAIN, b"x"), ("a", PLAIN, b"x")]),
    "a file as folder": lambda path: hostile(path, [("a", PLAIN, b"x"), ("a/b", PLAIN, b"x")]),
    "a folder as file": lambda path: hostile(path, [("a/b", PLAIN, b"x"), ("a", PLAIN, b"x")]),
    "too many": lambda path: hostile(path, [(f"{one}", PLAIN, b"") for one in range(4)]),
    "a long description": lambda path: hostile(
        path, [("a", PLAIN, b"")], more={"comment": "x" * 5_000_000}
    ),
    "no contents": lambda path: path.write_bytes(bytes(10240)),
    "no archive": lambda path: path.write_bytes(b"a,b\n1,2\n"),
    "nothing": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(write(path).read_bytes()[:50_000]),
    "another kind": lambda path: hostile(path, [], contents_of({}, kind="other")),
    "a newer one": lambda path: hostile(path, [], contents_of({}, schema=2)),
    "one too many": lambda path: hostile(path, [("a", PLAIN, b"x")], contents_of({})),
    "one too few": lambda path: hostile(path, [], contents_of({"a": b"x"})),
    "another content": lambda path: hostile(path, [("a", PLAIN, b"y")], contents_of({"a": b"x"})),
    "contents that are none": lambda path: hostile(path, [], b"[" * 100_000),
    "a list": lambda path: hostile(path, [], b"[]"),
    "files that are none": lambda path: hostile(
        path, [], b'{"schema": 1, "kind": "test", "facts": 1, "files": {}}'
    ),
    "a length below nothing": lambda path: sized(path, -512),
    "a length beyond the end": lambda path: sized(path, 10**12),
    "facts upon facts": lambda path: path.write_bytes(
        b"".join(header("x", tarfile.XHDTYPE, 0) for _ in range(2000))
    ),
    "holes that are none": lambda path: hostile(
        path, [("a", PLAIN, b"x")], more={"GNU.sparse.map": "a,b"}
    ),
    "a digest that is none": lambda path: hostile(
        path, [], b'{"schema": 1, "kind": "test", "facts": {}, "files": {"a": {"sha256": 1}}}'
    ),
    "a link to one": lambda path: path.symlink_to(write(path.with_name("other.tar"))),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_archive_of_ours_is_refused(tmp_path: Path, what: str) -> None:
    """In one line, and nothing is written outside the private folder."""
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    HOSTILE[what](path)
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(PipelineError, match=r"a\.tar is no whole test: it .*; nothing was changed$"),
        extracted(path, "test", most_files=3),
    ):
        pass
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/a").exists()


def test_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Whoever mistyped it reads its name."""
    with (
        pytest.raises(PipelineError, match=r"there is no file .*a\.tar"),
        extracted(tmp_path / "a.tar", "test", most_files=1),
    ):
        pass


class TestFilesThatChange:
    """What is read while somebody writes it is not taken for whole."""

    @pytest.mark.parametrize("how", ["shorter", "longer", "other"])
    def test_it_is_asked_to_run_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        """And no archive is there."""
        path = tmp_path / "in.csv"
        path.write_bytes(b"x" * 1000)
        add = tarfile.TarFile.addfile

        def meanwhile(tar: tarfile.TarFile, member: tarfile.TarInfo, stream: Any) -> None:
            length = {"shorter": 10, "longer": 2000, "other": 1000}[how]
            path.write_bytes(b"y" * length)
            os.utime(path, (1, 1))
            add(tar, member, stream)

        monkeypatch.setattr(tarfile.TarFile, "addfile", meanwhile)
        with (
            pytest.raises(TryLaterError, match="a changed while it was read; run again"),
            archive_written(tmp_path / "a.tar", "test", {}) as writer,
        ):
            writer.add_file("a", path)
        assert list(tmp_path.iterdir()) == [path]


class TestToStay:
    """Files that stay are as they were put in; others are their owner's alone."""

    def test_modes_and_times(self, tmp_path: Path) -> None:
        """No more rights than any file of a home has."""
        path = tmp_path / "in"
        path.write_text("x")
        path.chmod(0o6777)
        os.utime(path, (10, 20.5))
        with archive_written(tmp_path / "a.tar", "test", {}) as writer:
            writer.add_file("deep/a", path)
        with opened(tmp_path / "a.tar", "test") as archive:
            for name, to_stay in (("stays", True), ("goes", False)):
                (tmp_path / name).mkdir()
                archive.extract(tmp_path / name, to_stay=to_stay)
        stays, goes = (tmp_path / name / "deep/a" for name in ("stays", "goes"))
        assert (stays.stat().st_mode & 0o7777, stays.stat().st_mtime) == (0o755, 20.5)
        assert goes.stat().st_mode & 0o7777 == 0o600

    @pytest.mark.parametrize("time", ["nan", "1e300", "inf"])
    def test_a_time_that_is_none_is_refused(self, tmp_path: Path, time: str) -> None:
        """In one line."""
        path = hostile(tmp_path / "a.tar", [("a", PLAIN, b"x")], more={"mtime": time})
        (tmp_path / "out").mkdir()
        with (
            pytest.raises(PipelineError, match=r"a\.tar is no whole test: it "),
            opened(path, "test") as archive,
        ):
            archive.extract(tmp_path / "out", to_stay=True)


def test_one_that_changes_after_it_was_looked_through_is_refused(tmp_path: Path) -> None:
    """Its files are compared as they are written."""
    path = write(tmp_path / "a.tar")
    with opened(path, "test") as archive:
        content = bytearray(path.read_bytes())
        content[content.index(b"one")] ^= 1
        path.write_bytes(content)
        (tmp_path / "out").mkdir()
        with pytest.raises(PipelineError, match=r"holds a\.txt, which is not what was put in"):
            archive.extract(tmp_path / "out")
