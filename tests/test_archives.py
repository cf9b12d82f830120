"""An archive comes out as it went in, and nothing else comes out of one."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from retraining.archives import CONTENTS, archive_written, extracted
from retraining.errors import PipelineError
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

    @pytest.mark.parametrize("name", ["../a", "/a", "", "a//b", "a/.", "x" * 1001, "x" * 256, "a"])
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
        pytest.raises(PipelineError, match=r"a\.tar is no whole archive of this kind: "),
        extracted(path, "test", most_files=3),
    ):
        pass
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/a").exists()


def test_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Whoever mistyped it reads its name."""
    with (
        pytest.raises(PipelineError, match=r"there is no archive .*a\.tar"),
        extracted(tmp_path / "a.tar", "test", most_files=1),
    ):
        pass
