"""The lock, durable writes, intake and every move of ground truth files, on real files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sample_gts import make_recording

import gts_folder
import train_classification_model as training
from gts_folder import GroundTruthFile, Refusal
from pipeline_settings import PipelineError, Settings, TryLaterError
from training_module import load_training_module

PROJECT = Path(gts_folder.__file__).parent
GOOD_NAMES = ["with space.csv", "Grün.CSV", "%s.csv", "a;b&c.csv", "*.csv"]
TRAPS = {
    "-rf.csv": "begins with a dash",
    "two\nlines.csv": "line break or another control character",
    "bell\a.csv": "control character",
}

HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
import gts_folder
from pipeline_settings import Settings
with gts_folder.exclusive_lock(Settings(home=Path(sys.argv[1])), "rollback"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return the settings of an empty home."""
    home = tmp_path / "home"
    for name in ("new_gts", "used_gts"):
        (home / name).mkdir(parents=True)
    return Settings(home=home)


@contextlib.contextmanager
def python_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start a second Python, wait for its first line, and end it in any case."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


def recording(seed: int) -> bytes:
    """Return a small valid ground truth file."""
    return make_recording(seed, n_tracks=2).to_csv(index=False).encode()


def everything_in(folder: Path) -> dict[str, bytes]:
    """Return relative path -> content of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fail_with(number: int) -> Callable[..., Any]:
    """Return a system call that always fails with this errno."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def one_of(settings: Settings, name: str, content: bytes) -> GroundTruthFile:
    """Put a file into new_gts/ and return it as intake would."""
    (settings.new_gts / name).write_bytes(content)
    return GroundTruthFile(name, gts_folder.hash_bytes(content), 0, "", read=lambda: None)


def taken_in(settings: Settings, trained_on: Mapping[str, str] | None = None) -> gts_folder.Intake:
    """Read new_gts/ with the default training module."""
    return gts_folder.take_in(settings, load_training_module(settings), trained_on or {})


class TestOneAtATime:
    """`exclusive_lock` and `lock_without_writing`."""

    def test_the_second_process_is_told_who_holds_the_lock(self, settings: Settings) -> None:
        """It ends at once, names pid and command, and is to try again later."""
        with python_process(HOLD_THE_LOCK, settings.home) as holder:
            begun = time.monotonic()
            with (
                pytest.raises(TryLaterError, match=rf"pid {holder.pid}, rollback, since 2"),
                gts_folder.exclusive_lock(settings, "run"),
            ):
                pass
            assert time.monotonic() - begun < 1

    def test_a_killed_holder_frees_the_lock(self, settings: Settings) -> None:
        """Nobody has to delete anything after kill -9."""
        with python_process(HOLD_THE_LOCK, settings.home) as holder:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with gts_folder.exclusive_lock(settings, "run"):
                held = (settings.home / gts_folder.LOCK_NAME).read_text()
        assert held.startswith(f"pid {os.getpid()}, run, since 2")

    def test_the_lock_file_is_never_deleted(self, settings: Settings) -> None:
        """A deleted lock file would admit two holders: the inode stays the same."""
        path = settings.home / gts_folder.LOCK_NAME
        with gts_folder.exclusive_lock(settings, "run"):
            first = path.stat().st_ino
        assert path.read_bytes() == b""
        with gts_folder.exclusive_lock(settings, "run"):
            assert path.stat().st_ino == first

    def test_an_exception_frees_the_lock(self, settings: Settings) -> None:
        """A failed command does not lock out the next one."""
        with pytest.raises(ZeroDivisionError), gts_folder.exclusive_lock(settings, "run"):
            raise ZeroDivisionError
        with gts_folder.exclusive_lock(settings, "run"):
            pass

    def test_a_child_process_does_not_inherit_the_lock(self, settings: Settings) -> None:
        """A worker or a hook that outlives the command does not keep the home locked."""
        with gts_folder.exclusive_lock(settings, "run"):
            child = subprocess.Popen(["sleep", "600"], close_fds=False)
        try:
            with gts_folder.exclusive_lock(settings, "run"):
                assert child.poll() is None
        finally:
            child.kill()
            child.wait()

    def test_a_lock_file_that_is_a_link_is_refused(self, settings: Settings) -> None:
        """The lock never truncates a file that somebody linked to."""
        precious = settings.home / "precious"
        precious.write_text("do not touch")
        (settings.home / gts_folder.LOCK_NAME).symlink_to(precious)
        with pytest.raises(OSError, match="symbolic"), gts_folder.exclusive_lock(settings, "run"):
            pass
        assert precious.read_text() == "do not touch"

    @pytest.mark.parametrize("lock_file_exists", [True, False])
    def test_looking_writes_nothing(self, settings: Settings, lock_file_exists: bool) -> None:
        """Not even a lock file, if there is none."""
        if lock_file_exists:
            (settings.home / gts_folder.LOCK_NAME).write_text("left over")
        before = everything_in(settings.home)
        with gts_folder.lock_without_writing(settings):
            assert everything_in(settings.home) == before
        assert everything_in(settings.home) == before

    def test_looking_waits_for_no_changing_command(self, settings: Settings) -> None:
        """A look during a change would see half of it: try again later."""
        with (
            python_process(HOLD_THE_LOCK, settings.home),
            pytest.raises(TryLaterError, match="rollback"),
            gts_folder.lock_without_writing(settings),
        ):
            pass

    def test_looking_keeps_changing_commands_out(self, settings: Settings) -> None:
        """What is looked at does not change meanwhile; afterwards it may."""
        (settings.home / gts_folder.LOCK_NAME).touch()
        with (
            gts_folder.lock_without_writing(settings),
            pytest.raises(TryLaterError, match="held by a process"),
            gts_folder.exclusive_lock(settings, "run"),
        ):
            pass
        with gts_folder.exclusive_lock(settings, "run"):
            pass


class TestDurableWrites:
    """`write_durably` and the note of an unfinished cycle."""

    def test_a_file_is_replaced_whole(self, tmp_path: Path) -> None:
        """The new content stands there, and nothing else."""
        path = tmp_path / "state.json"
        path.write_bytes(b"a much longer old content")
        gts_folder.write_durably(path, b"new")
        assert everything_in(tmp_path) == {"state.json": b"new"}

    @pytest.mark.parametrize("call", ["fsync", "fdopen"])
    def test_a_failed_write_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        """With a full disk: the old content, and no temporary file."""
        path = tmp_path / "state.json"
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail_with(errno.ENOSPC))
            with pytest.raises(OSError, match="No space left"):
                gts_folder.write_durably(path, b"new")
        assert everything_in(tmp_path) == {"state.json": b"old"}

    def test_a_failed_rename_leaves_the_old_file(self, tmp_path: Path) -> None:
        """Where a folder stands in the way: it stays, and no temporary file."""
        path = tmp_path / "state.json"
        path.mkdir()
        with pytest.raises(IsADirectoryError):
            gts_folder.write_durably(path, b"new")
        assert [one.name for one in tmp_path.iterdir()] == ["state.json"]

    def test_other_people_can_read_what_is_written(self, tmp_path: Path) -> None:
        """Who put a file into new_gts/ is often not the user that cron runs as."""
        gts_folder.write_durably(tmp_path / "a.csv.reason.json", b"{}")
        assert stat.S_IMODE((tmp_path / "a.csv.reason.json").stat().st_mode) == 0o644

    def test_a_cycle_that_ended_leaves_no_note(self, settings: Settings) -> None:
        """Begun: the note is there. Ended, even twice: it is not."""
        assert gts_folder.unfinished_cycle(settings) is None
        gts_folder.begin_cycle(settings, {"cycle_id": "ab12"})
        assert gts_folder.unfinished_cycle(settings) == {"cycle_id": "ab12"}
        gts_folder.end_cycle(settings)
        gts_folder.end_cycle(settings)
        assert gts_folder.unfinished_cycle(settings) is None

    @pytest.mark.parametrize(
        "content", [b"", b'{"cycle_id": "a', b"\xff\xfe\x00", b"null", b"3", b"[1, 2]", b'"text"']
    )
    def test_a_damaged_note_still_says_that_there_is_work(
        self, settings: Settings, content: bytes
    ) -> None:
        """An empty note is a note: tidying needs no more than that."""
        (settings.home / gts_folder.STATE_NAME).write_bytes(content)
        assert gts_folder.unfinished_cycle(settings) == {}


class TestLook:
    """`waiting_names`, hashes, and whether a file is still being written."""

    @pytest.mark.parametrize("name", ["a.csv", "B.CSV", "c.Csv", "x.part.csv", *GOOD_NAMES, *TRAPS])
    def test_a_csv_is_waiting_whatever_its_name(self, tmp_path: Path, name: str) -> None:
        """Case, blanks, newlines and leading dashes do not matter."""
        (tmp_path / name).touch()
        assert gts_folder.waiting_names(tmp_path) == [name]

    @pytest.mark.parametrize(
        "name",
        [
            ".a.csv",
            "a.csv.part",
            "a.csv.tmp",
            "a.csv.filepart",
            "a.csv.partial",
            "a.csv.crdownload",
            "a.csv~",
            "a.csv.reason.json",
            "a.txt",
            "csv",
        ],
    )
    def test_what_is_no_finished_csv_is_not_waiting(self, tmp_path: Path, name: str) -> None:
        """Hidden files, uploads in progress and other kinds."""
        (tmp_path / name).touch()
        assert gts_folder.waiting_names(tmp_path) == []

    def test_names_are_sorted(self, tmp_path: Path) -> None:
        """Whatever order the filesystem lists them in."""
        for name in ("c.csv", "a.csv", "b.csv", "B.csv"):
            (tmp_path / name).touch()
        assert gts_folder.waiting_names(tmp_path) == ["B.csv", "a.csv", "b.csv", "c.csv"]

    def test_the_hash_is_sha256(self, tmp_path: Path) -> None:
        """Of the bytes or of the file: the value published for "abc" (FIPS 180-2)."""
        published = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        (tmp_path / "a.csv").write_bytes(b"abc")
        assert gts_folder.hash_bytes(b"abc") == published
        assert gts_folder.hash_file(tmp_path / "a.csv") == published

    def test_only_regular_files_of_the_given_sizes_are_hashed(self, tmp_path: Path) -> None:
        """No link, no folder, no pipe (it would wait for ever), no file of another size."""
        (tmp_path / "three.csv").write_bytes(b"abc")
        (tmp_path / "four.csv").write_bytes(b"abcd")
        (tmp_path / "link.csv").symlink_to("three.csv")
        (tmp_path / "folder.csv").mkdir()
        os.mkfifo(tmp_path / "pipe.csv")
        assert list(gts_folder.hashes_in(tmp_path, {3}).values()) == ["three.csv"]
        assert sorted(gts_folder.hashes_in(tmp_path).values()) == ["four.csv", "three.csv"]

    def test_a_file_that_somebody_writes_is_left_for_the_next_run(
        self, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As long as another process has it open for writing, however long it pauses."""
        caplog.set_level(logging.INFO, "pipeline")
        for number in (1, 2):
            (settings.new_gts / f"{number}.csv").write_bytes(recording(number))
        write = "import sys; f = open(sys.argv[1], 'ab'); print('open', flush=True); input()"
        with python_process(write, settings.new_gts / "1.csv"):
            during = taken_in(settings)
        after = taken_in(settings)
        assert ([one.name for one in during.files], during.refusals) == (["2.csv"], ())
        assert [one.name for one in after.files] == ["1.csv", "2.csv"]
        assert "1.csv is still being written" in caplog.text

    def test_a_reader_does_not_count_as_a_writer(self, settings: Settings) -> None:
        """A file that somebody looks at is taken in."""
        path = settings.new_gts / "1.csv"
        path.write_bytes(recording(1))
        with path.open("rb"):
            assert len(taken_in(settings).files) == 1

    def test_a_writer_who_comes_during_the_look_does_not_end_the_run(self, tmp_path: Path) -> None:
        """The kernel tells the holder of a lease by a signal that ends a process by default."""
        path = tmp_path / "a.csv"
        path.touch()
        code = """
import fcntl, os, sys, time
from pathlib import Path
import gts_folder
ask = fcntl.fcntl
def ask_then_open(descriptor, command, argument):
    answer = ask(descriptor, command, argument)
    if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_RDLCK):
        try:
            os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
        except BlockingIOError:
            print("lease broken")
    return answer
fcntl.fcntl = ask_then_open
print(gts_folder._being_written(Path(sys.argv[1])))
"""
        ended = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stdout) == (0, "lease broken\nFalse\n")

    @pytest.mark.parametrize("kernel", ["without leases", "that refuses leases"])
    @pytest.mark.parametrize("grows", [True, False])
    def test_without_leases_a_file_must_stand_still(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, kernel: str, grows: bool
    ) -> None:
        """On other systems and network disks: size and time are looked at twice."""
        path = settings.new_gts / "1.csv"
        path.write_bytes(recording(1))

        def sleep(seconds: float) -> None:
            assert seconds == gts_folder.SETTLE_SECONDS
            if grows:
                with path.open("ab") as stream:
                    stream.write(b"more")

        monkeypatch.setattr(time, "sleep", sleep)
        if kernel == "without leases":
            monkeypatch.delattr(fcntl, "F_SETLEASE")
        else:
            monkeypatch.setattr(fcntl, "fcntl", fail_with(errno.EINVAL))
        intake = taken_in(settings)
        assert ([one.name for one in intake.files], intake.refusals) == (
            [] if grows else ["1.csv"],
            (),
        )


def a_link(path: Path) -> None:
    """Put a symbolic link to a good file there."""
    target = path.with_name("target.txt")
    target.write_text("good")
    path.symlink_to(target)


def a_socket(path: Path) -> None:
    """Put a Unix socket there."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


class TestReading:
    """Nothing but a plain file is read, and nothing waits."""

    @pytest.mark.usefixtures("ten_seconds")
    @pytest.mark.parametrize(
        ("make", "what"),
        [
            pytest.param(a_link, "is a symbolic link", id="symbolic link"),
            pytest.param(os.mkfifo, "is not a regular file", id="FIFO"),
            pytest.param(Path.mkdir, "is not a regular file", id="folder"),
            pytest.param(a_socket, "is not a regular file", id="socket"),
            pytest.param(
                lambda path: path.write_bytes(b"x" * 1001), "is larger than 0.001 MB", id="too big"
            ),
        ],
    )
    def test_what_is_no_plain_file_is_refused_without_waiting(
        self, tmp_path: Path, make: Callable[[Path], Any], what: str
    ) -> None:
        """Nothing is followed, nothing is waited for, no descriptor stays open."""
        path = tmp_path / "a.csv"
        make(path)
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208
        with pytest.raises(gts_folder.UnusableFile, match=what):
            gts_folder.read_regular_file(path, 0.001)
        after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208
        assert after == before

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
    def test_an_unreadable_file_is_refused(self, tmp_path: Path) -> None:
        """The reason names the right that is missing."""
        path = tmp_path / "a.csv"
        path.write_text("good")
        path.chmod(0)
        with pytest.raises(gts_folder.UnusableFile, match="is not readable"):
            gts_folder.read_regular_file(path, 1)

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
    def test_a_refusal_of_the_system_is_a_refusal_of_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """As above, for testers who are root: the system call is made to fail."""

        def refuse(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(gts_folder.UnusableFile, match="is not readable; give"):
            gts_folder.read_regular_file(tmp_path / "a.csv", 1)

    def test_a_file_of_exactly_the_largest_size_is_read(self, tmp_path: Path) -> None:
        """The limit itself is allowed."""
        (tmp_path / "a.csv").write_bytes(b"x" * 1000)
        assert len(gts_folder.read_regular_file(tmp_path / "a.csv", 0.001)) == 1000


class TestIntake:
    """`take_in`, `reject` and `requeue`."""

    def test_every_content_is_read_once_and_nothing_changes(self, settings: Settings) -> None:
        """Hash and rows come from the same bytes; files and times stay."""
        content = recording(1)
        (settings.new_gts / "a.csv").write_bytes(content)
        (settings.new_gts / "bad.csv").write_bytes(b"no,ground,truth\n1,2,3\n")
        before = [(path, path.stat().st_mtime_ns) for path in sorted(settings.home.rglob("*"))]
        intake = taken_in(settings)
        after = [(path, path.stat().st_mtime_ns) for path in sorted(settings.home.rglob("*"))]
        assert after == before
        assert [one.name for one in intake.files] == ["a.csv"]
        assert [one.name for one in intake.refusals] == ["bad.csv"]
        assert intake.files[0].sha256 == gts_folder.hash_bytes(content)
        assert len(intake.files[0].rows) == content.count(b"\n") - 1
        assert intake.files[0].n_rows == len(intake.files[0].rows)

    def test_a_large_batch_is_not_kept_in_memory_but_read_again(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only what fits is kept; the rows are the same."""
        for number in (1, 2):
            (settings.new_gts / f"{number}.csv").write_bytes(recording(number))
        kept = taken_in(settings).files
        monkeypatch.setattr(gts_folder, "KEPT_ROWS", kept[0].n_rows)
        parsed = []
        parse = training.parse_ground_truth

        def note(content: bytes, name: str) -> Any:
            parsed.append(name)
            return parse(content, name)

        files = taken_in(settings).files
        monkeypatch.setattr(training, "parse_ground_truth", note)
        for one, other in zip(kept, files, strict=True):
            assert one.rows.equals(other.rows)
        assert parsed == ["2.csv"]

    @pytest.mark.parametrize("change", ["written", "removed", "a link"])
    def test_a_file_of_a_large_batch_that_changed_ends_the_cycle(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, change: str
    ) -> None:
        """What is scored must be what was taken in."""
        monkeypatch.setattr(gts_folder, "KEPT_ROWS", 0)
        path = settings.new_gts / "1.csv"
        path.write_bytes(recording(1))
        (one,) = taken_in(settings).files
        path.unlink()
        if change == "written":
            path.write_bytes(recording(2))
        elif change == "a link":
            path.symlink_to("elsewhere.csv")
        with pytest.raises(TryLaterError, match=r"1\.csv changed while the cycle ran"):
            _ = one.rows

    @pytest.mark.parametrize("where", ["new_gts", "used_gts", "production"])
    def test_a_duplicate_is_refused_and_its_twin_named(
        self, settings: Settings, where: str
    ) -> None:
        """By content, whatever the name: a recording is never trained on twice."""
        content = recording(1)
        (settings.new_gts / "twin.csv").write_bytes(content)
        trained_on = {}
        if where == "production":
            trained_on[gts_folder.hash_bytes(content)] = "first.csv"
        else:
            (settings.home / where / "first.csv").write_bytes(content)
        intake = taken_in(settings, trained_on)
        known = "first.csv, which production learnt" if trained_on else f"{where}/first.csv"
        assert intake.refusals == (
            Refusal("twin.csv", f"is a duplicate: same content as {known}", "delete it"),
        )
        assert [one.name for one in intake.files] == (["first.csv"] if where == "new_gts" else [])

    def test_an_invalid_twin_is_refused_for_what_is_wrong_with_it(self, settings: Settings) -> None:
        """Two copies of a bad file are two bad files."""
        for name in ("a.csv", "b.csv"):
            (settings.new_gts / name).write_bytes(b"")
        whats = [one.what for one in taken_in(settings).refusals]
        assert whats == ["is empty", "is empty"]

    @pytest.mark.parametrize(
        ("make", "what"),
        [
            (lambda path: path.symlink_to("good.csv"), "is a symbolic link"),
            (lambda path: path.symlink_to("nowhere"), "is a symbolic link"),
            (os.mkfifo, "is not a regular file"),
            (Path.mkdir, "is not a regular file"),
            (lambda path: path.write_bytes(b"x" * 100_001), "is larger than 0.1 MB"),
        ],
        ids=["link", "dangling link", "pipe", "folder", "too large"],
    )
    def test_what_is_no_plain_file_is_refused_and_moved_as_it_is(
        self, settings: Settings, make: Callable[[Path], object], what: str
    ) -> None:
        """Nothing is followed or waited for; the rest of the batch goes on."""
        settings = Settings(home=settings.home, max_file_mb=0.1)
        (settings.new_gts / "good.csv").write_bytes(recording(1))
        make(settings.new_gts / "odd.csv")
        kind = stat.S_IFMT((settings.new_gts / "odd.csv").lstat().st_mode)
        intake = taken_in(settings)
        gts_folder.reject(settings, intake.refusals)
        assert [one.name for one in intake.files] == ["good.csv"]
        assert [(one.name, one.what) for one in intake.refusals] == [("odd.csv", what)]
        assert gts_folder.waiting_names(settings.new_gts) == ["good.csv"]
        assert stat.S_IFMT((settings.rejected_gts / "odd.csv").lstat().st_mode) == kind

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
    def test_an_unreadable_file_is_refused(self, settings: Settings) -> None:
        """A file of another user does not stop the night."""
        (settings.new_gts / "a.csv").write_bytes(recording(1))
        (settings.new_gts / "a.csv").chmod(0)
        (refusal,) = taken_in(settings).refusals
        assert refusal.what == "is not readable"

    @pytest.mark.parametrize(
        "name", [b"caf\xe9.csv", b"a" * 251 + b".csv", "ü".encode() * 125 + b".csv"]
    )
    def test_no_name_stops_the_night(self, settings: Settings, name: bytes) -> None:
        """A name that is not UTF-8, or as long as the filesystem allows, can be rejected."""
        path = settings.new_gts / os.fsdecode(name)
        path.write_bytes(b"bad")
        gts_folder.reject(settings, taken_in(settings).refusals)
        (kept,) = gts_folder.rejected_names(settings)
        reason = settings.rejected_gts / f"{kept}{gts_folder.REASON_SUFFIX}"
        assert (settings.rejected_gts / kept).read_bytes() == b"bad"
        assert kept.endswith(".csv")
        assert json.loads(reason.read_bytes())["file"] == path.name
        assert gts_folder.waiting_names(settings.new_gts) == []

    def test_a_name_that_is_not_utf8_is_the_reason(self, settings: Settings) -> None:
        """No table, run or terminal could show it."""
        (settings.new_gts / os.fsdecode(b"caf\xe9.csv")).write_bytes(recording(1))
        (refusal,) = taken_in(settings).refusals
        assert (refusal.what, refusal.remedy) == ("has a name that is not UTF-8", "rename it")

    @pytest.mark.parametrize(("name", "reason"), TRAPS.items())
    def test_a_name_that_is_a_trap_is_refused(
        self, settings: Settings, name: str, reason: str
    ) -> None:
        """Somebody would sooner or later type it in a shell or read it in a log."""
        (settings.new_gts / name).write_bytes(recording(1))
        intake = taken_in(settings)
        assert reason in intake.refusals[0].what
        gts_folder.reject(settings, intake.refusals)
        assert gts_folder.rejected_names(settings) == [name]

    @pytest.mark.parametrize("name", GOOD_NAMES)
    def test_a_good_file_is_taken_in_whatever_its_name(self, settings: Settings, name: str) -> None:
        """A name is data, never an option, a pattern or a line."""
        (settings.new_gts / name).write_bytes(recording(1))
        assert [one.name for one in taken_in(settings).files] == [name]

    def test_the_fingerprint_depends_on_contents_alone(self, settings: Settings) -> None:
        """Not on names or order; another content gives another fingerprint."""

        def fingerprint(contents: dict[str, int]) -> str:
            for path in settings.new_gts.iterdir():
                path.unlink()
            for name, seed in contents.items():
                (settings.new_gts / name).write_bytes(recording(seed))
            return taken_in(settings).fingerprint

        first = fingerprint({"a.csv": 1, "b.csv": 2})
        assert fingerprint({"x.csv": 2, "y.csv": 1}) == first
        assert len({first, fingerprint({"a.csv": 1}), fingerprint({"a.csv": 1, "b.csv": 3})}) == 3

    def test_a_rejected_file_lies_beside_its_reason(
        self, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What is wrong, what to do, and when; the log says so too."""
        (settings.new_gts / "a.csv").write_bytes(b"bad")
        gts_folder.reject(settings, [Refusal("a.csv", "is torn", "mend it")])
        reason = json.loads((settings.rejected_gts / "a.csv.reason.json").read_bytes())
        assert reason.pop("rejected_at").startswith("2")
        assert reason == {"file": "a.csv", "what": "is torn", "remedy": "mend it"}
        assert (settings.rejected_gts / "a.csv").read_bytes() == b"bad"
        assert "rejected 'a.csv': is torn; mend it" in caplog.text

    def test_the_same_name_rejected_twice_is_kept_twice(self, settings: Settings) -> None:
        """Neither file nor reason is overwritten."""
        for content in (b"first", b"second"):
            (settings.new_gts / "a.csv").write_bytes(content)
            gts_folder.reject(settings, [Refusal("a.csv", content.decode(), "mend it")])
        for name, content in (("a.csv", b"first"), ("a-1.csv", b"second")):
            reason = json.loads((settings.rejected_gts / f"{name}.reason.json").read_bytes())
            assert (settings.rejected_gts / name).read_bytes() == content
            assert reason["what"] == content.decode()

    @pytest.mark.parametrize(
        ("names", "back"),
        [([], ["a.csv", "b.csv"]), (["b.csv"], ["b.csv"]), (["a.csv", "a.csv"], ["a.csv"])],
        ids=["all", "by name", "one name twice"],
    )
    def test_requeue_puts_files_back(
        self, settings: Settings, names: list[str], back: list[str]
    ) -> None:
        """All of them by default; their reasons go."""
        for name in ("a.csv", "b.csv"):
            (settings.new_gts / name).write_text(name)
            gts_folder.reject(settings, [Refusal(name, "is torn", "mend it")])
        assert gts_folder.requeue(settings, names) == back
        assert gts_folder.waiting_names(settings.new_gts) == back
        left = sorted({"a.csv", "b.csv"} - set(back))
        assert gts_folder.rejected_names(settings) == left
        reasons = sorted(path.name for path in settings.rejected_gts.glob("*.json"))
        assert reasons == [f"{name}.reason.json" for name in left]

    @pytest.mark.parametrize("unknown", ["c.csv", "a.csv.reason.json", "../outside.csv", ""])
    def test_an_unknown_name_moves_nothing(self, settings: Settings, unknown: str) -> None:
        """The message says what is there instead."""
        (settings.new_gts / "outside.csv").write_bytes(b"outside")
        (settings.new_gts / "a.csv").write_bytes(b"bad")
        gts_folder.reject(settings, [Refusal("a.csv", "is torn", "mend it")])
        before = everything_in(settings.home)
        with pytest.raises(PipelineError, match=r"it holds: a\.csv$"):
            gts_folder.requeue(settings, ["a.csv", unknown])
        assert everything_in(settings.home) == before

    def test_nothing_rejected_is_nothing_to_requeue(self, settings: Settings) -> None:
        """Without the folder there is no file, and no error unless one is named."""
        assert gts_folder.requeue(settings, []) == []
        with pytest.raises(PipelineError, match="it holds: nothing"):
            gts_folder.requeue(settings, ["a.csv"])

    def test_requeue_overwrites_no_new_file_of_that_name(self, settings: Settings) -> None:
        """The mended one comes back under a free name."""
        (settings.new_gts / "a.csv").write_bytes(b"mended")
        gts_folder.reject(settings, [Refusal("a.csv", "is torn", "mend it")])
        (settings.new_gts / "a.csv").write_bytes(b"newer")
        assert gts_folder.requeue(settings, []) == ["a-1.csv"]
        assert everything_in(settings.new_gts) == {"a.csv": b"newer", "a-1.csv": b"mended"}


@pytest.fixture(params=["real", "simulated"])
def other_disk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Return a folder that no file of tmp_path can be hard-linked to."""
    if request.param == "real":
        memory = Path("/dev/shm")
        if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("no second filesystem at /dev/shm")
        folder = Path(tempfile.mkdtemp(dir=memory))
        yield folder
        shutil.rmtree(folder)
        return
    folder = tmp_path / "other"
    folder.mkdir()
    link = os.link

    def link_on_one_disk(source: Path, target: Path, **options: Any) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(source, target, **options)

    monkeypatch.setattr(os, "link", link_on_one_disk)
    yield folder


class TestMove:
    """`free_name`, `move_file` and `archive`."""

    @pytest.mark.parametrize(
        ("there", "taken", "free"),
        [
            ([], [], "a.csv"),
            (["a.csv"], [], "a-1.csv"),
            (["a.csv", "a-1.csv"], [], "a-2.csv"),
            (["a.csv"], ["a-1.csv"], "a-2.csv"),
            ([], ["a.csv"], "a-1.csv"),
        ],
    )
    def test_a_taken_name_gets_a_number(
        self, tmp_path: Path, there: list[str], taken: list[str], free: str
    ) -> None:
        """The first that is free, in the folder and elsewhere."""
        for name in there:
            (tmp_path / name).touch()
        assert gts_folder.free_name("a.csv", tmp_path, taken) == free

    def test_a_dangling_link_takes_its_name(self, tmp_path: Path) -> None:
        """What leads nowhere is still somebody's file."""
        (tmp_path / "a.csv").symlink_to("nowhere")
        assert gts_folder.free_name("a.csv", tmp_path) == "a-1.csv"

    @pytest.mark.parametrize("character", ["a", "ü"])
    def test_a_long_name_leaves_room_for_a_number(self, tmp_path: Path, character: str) -> None:
        """Cut between characters, at a length that takes the number and the reason's suffix."""
        size = len(character.encode())
        name = gts_folder.free_name(character * (250 // size) + ".csv", tmp_path)
        assert name == character * (226 // size) + ".csv"
        (tmp_path / name).touch()
        (tmp_path / f"{name}{gts_folder.REASON_SUFFIX}").touch()
        again = gts_folder.free_name(character * (250 // size) + ".csv", tmp_path)
        assert again == character * (226 // size) + "-1.csv"

    def test_a_move_keeps_the_very_file(self, tmp_path: Path) -> None:
        """Same inode on the same filesystem, under its name or a wished one."""
        (tmp_path / "to").mkdir()
        (tmp_path / "a.csv").write_bytes(b"abc")
        inode = (tmp_path / "a.csv").stat().st_ino
        moved = gts_folder.move_file(tmp_path / "a.csv", tmp_path / "to", "b.csv")
        assert moved == tmp_path / "to" / "b.csv"
        assert moved.stat().st_ino == inode
        assert everything_in(tmp_path) == {"to/b.csv": b"abc"}

    def test_a_move_never_overwrites(self, tmp_path: Path) -> None:
        """Equal names, other content: both stay."""
        (tmp_path / "to").mkdir()
        (tmp_path / "to" / "a.csv").write_bytes(b"old")
        (tmp_path / "a.csv").write_bytes(b"new")
        gts_folder.move_file(tmp_path / "a.csv", tmp_path / "to")
        assert everything_in(tmp_path) == {"to/a.csv": b"old", "to/a-1.csv": b"new"}

    def test_a_name_taken_at_the_last_moment_is_not_overwritten(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Somebody else writes the name between the look and the move."""
        (tmp_path / "to").mkdir()
        (tmp_path / "a.csv").write_bytes(b"ours")
        free_name = gts_folder.free_name

        def free_name_then_taken(name: str, folder: Path) -> str:
            free = free_name(name, folder)
            if free == "a.csv":
                (folder / free).write_bytes(b"theirs")
            return free

        monkeypatch.setattr(gts_folder, "free_name", free_name_then_taken)
        gts_folder.move_file(tmp_path / "a.csv", tmp_path / "to")
        assert everything_in(tmp_path) == {"to/a.csv": b"theirs", "to/a-1.csv": b"ours"}

    def test_a_file_goes_whole_to_another_disk(self, tmp_path: Path, other_disk: Path) -> None:
        """Content, mode and time are kept, an equal name is not overwritten, no rest is left."""
        source = tmp_path / "a.csv"
        source.write_bytes(b"abc")
        source.chmod(0o640)
        os.utime(source, ns=(10**18, 10**18))
        (other_disk / "a.csv").write_bytes(b"old")
        moved = gts_folder.move_file(source, other_disk)
        assert everything_in(other_disk) == {"a.csv": b"old", "a-1.csv": b"abc"}
        assert not source.exists()
        assert (stat.S_IMODE(moved.stat().st_mode), moved.stat().st_mtime_ns) == (0o640, 10**18)

    @pytest.mark.parametrize(
        ("module", "call", "failure", "message"),
        [
            (shutil, "copyfileobj", fail_with(errno.ENOSPC), "No space left"),
            (os, "fsync", fail_with(errno.EIO), "Input/output error"),
            (shutil, "copyfileobj", lambda _source, copy: copy.write(b"ab"), "differs"),
        ],
        ids=["disk full", "disk broken", "bytes lost"],
    )
    def test_a_failed_copy_leaves_the_source_alone(
        self,
        tmp_path: Path,
        other_disk: Path,
        monkeypatch: pytest.MonkeyPatch,
        module: ModuleType,
        call: str,
        failure: Callable[..., Any],
        message: str,
    ) -> None:
        """The source stays, and no half target or temporary file."""
        (tmp_path / "a.csv").write_bytes(b"abc")
        with monkeypatch.context() as patch:
            patch.setattr(module, call, failure)
            with pytest.raises((OSError, PipelineError), match=message):
                gts_folder.move_file(tmp_path / "a.csv", other_disk)
        assert (tmp_path / "a.csv").read_bytes() == b"abc"
        assert list(other_disk.iterdir()) == []

    @pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
    def test_a_disk_without_hard_links_will_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """Such as FAT or some network disks: copied and renamed, nothing overwritten."""
        (tmp_path / "to").mkdir()
        (tmp_path / "to" / "a.csv").write_bytes(b"old")
        (tmp_path / "a.csv").write_bytes(b"new")
        monkeypatch.setattr(os, "link", fail_with(number))
        gts_folder.move_file(tmp_path / "a.csv", tmp_path / "to")
        assert everything_in(tmp_path) == {"to/a.csv": b"old", "to/a-1.csv": b"new"}

    @pytest.mark.parametrize("make", [lambda path: path.symlink_to("nowhere"), os.mkfifo])
    def test_a_link_of_another_user_can_be_moved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
    ) -> None:
        """Linux forbids hard links to them (protected_hardlinks); a rename is allowed."""
        (tmp_path / "to").mkdir()
        make(tmp_path / "a.csv")
        monkeypatch.setattr(os, "link", fail_with(errno.EPERM))
        moved = gts_folder.move_file(tmp_path / "a.csv", tmp_path / "to")
        assert os.path.lexists(moved)
        assert not os.path.lexists(tmp_path / "a.csv")

    def test_another_failure_changes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No room for the name in the folder: the file stays where it is."""
        (tmp_path / "to").mkdir()
        (tmp_path / "a.csv").write_bytes(b"abc")
        monkeypatch.setattr(os, "link", fail_with(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left"):
            gts_folder.move_file(tmp_path / "a.csv", tmp_path / "to")
        assert everything_in(tmp_path) == {"a.csv": b"abc"}

    def test_archive_goes_by_content(self, settings: Settings) -> None:
        """A renamed file is archived; one that changed since, or is new, stays."""
        (settings.new_gts / "renamed.csv").write_bytes(b"trained on")
        (settings.new_gts / "changed.csv").write_bytes(b"trained on, then changed")
        (settings.new_gts / "new.csv").write_bytes(b"new")
        trained_on = {gts_folder.hash_bytes(b"trained on"): "original.csv"}
        assert gts_folder.archive(settings, trained_on) == ["renamed.csv"]
        assert everything_in(settings.used_gts) == {"renamed.csv": b"trained on"}
        assert sorted(everything_in(settings.new_gts)) == ["changed.csv", "new.csv"]
        assert gts_folder.archive(settings, trained_on) == []

    def test_archive_keeps_equal_names(self, settings: Settings) -> None:
        """Same name, other content: a free name, nothing overwritten."""
        (settings.used_gts / "a.csv").write_bytes(b"old")
        (settings.new_gts / "a.csv").write_bytes(b"new")
        assert gts_folder.archive(settings, {gts_folder.hash_bytes(b"new")}) == ["a-1.csv"]
        assert everything_in(settings.used_gts) == {"a.csv": b"old", "a-1.csv": b"new"}

    def test_archive_leaves_a_true_copy_for_intake(self, settings: Settings) -> None:
        """It was archived before; the copy is a duplicate and gets a reason."""
        for folder in (settings.new_gts, settings.used_gts):
            (folder / "a.csv").write_bytes(b"trained on")
        before = everything_in(settings.home)
        assert gts_folder.archive(settings, {gts_folder.hash_bytes(b"trained on")}) == []
        assert everything_in(settings.home) == before

    def test_archive_touches_plain_files_only(self, settings: Settings) -> None:
        """Links, folders and pipes are no recordings."""
        (settings.home / "target.csv").write_bytes(b"trained on")
        (settings.new_gts / "link.csv").symlink_to(settings.home / "target.csv")
        (settings.new_gts / "folder.csv").mkdir()
        os.mkfifo(settings.new_gts / "pipe.csv")
        assert gts_folder.archive(settings, {gts_folder.hash_bytes(b"trained on")}) == []
        assert len(gts_folder.waiting_names(settings.new_gts)) == 3

    @pytest.mark.parametrize("collision", [False, True])
    @pytest.mark.parametrize("destination", ["used_gts", "rejected_gts"])
    def test_archive_joins_a_move_that_a_crash_cut_in_two(
        self,
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
        destination: str,
        collision: bool,
    ) -> None:
        """Killed between the new name and the removal of the old one: one name is left."""
        folder: Path = getattr(settings, destination)
        folder.mkdir(exist_ok=True)
        if collision:
            (folder / "a.csv").write_bytes(b"older")
        (settings.new_gts / "a.csv").write_bytes(b"abc")
        (settings.new_gts / "untouched.csv").write_bytes(b"abc")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", fail_with(errno.EIO))
            with pytest.raises(OSError, match="Input/output"):
                gts_folder.move_file(settings.new_gts / "a.csv", folder)
        assert (settings.new_gts / "a.csv").stat().st_nlink == 2
        assert gts_folder.archive(settings, {}) == []
        assert gts_folder.waiting_names(settings.new_gts) == ["untouched.csv"]
        older = {"a.csv": b"older"} if collision else {}
        assert everything_in(folder) == {**older, "a-1.csv" if collision else "a.csv": b"abc"}


class TestTrainingFolder:
    """`training_folder` and what it leaves."""

    def test_it_holds_old_and_new_files_as_hard_links(self, settings: Settings) -> None:
        """Nothing is copied; an equal name becomes a free one; the manifest names what is there."""
        (settings.used_gts / "a.csv").write_bytes(b"old")
        files = [one_of(settings, "a.csv", b"new"), one_of(settings, "b.csv", b"other")]
        with gts_folder.training_folder(settings, files) as (folder, manifest):
            assert everything_in(folder) == {"a.csv": b"old", "a-1.csv": b"new", "b.csv": b"other"}
            assert (folder / "a-1.csv").samefile(settings.new_gts / "a.csv")
            assert manifest == {
                "a.csv": gts_folder.hash_bytes(b"old"),
                "a-1.csv": gts_folder.hash_bytes(b"new"),
                "b.csv": gts_folder.hash_bytes(b"other"),
            }
            assert folder.parent == settings.home
        assert not folder.exists()
        assert (settings.new_gts / "a.csv").stat().st_nlink == 1

    def test_without_hard_links_it_holds_copies(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Same names, same content."""
        files = [one_of(settings, "a.csv", b"new")]
        monkeypatch.setattr(os, "link", fail_with(errno.EPERM))
        with gts_folder.training_folder(settings, files) as (folder, _):
            assert everything_in(folder) == {"a.csv": b"new"}
            assert (settings.new_gts / "a.csv").stat().st_nlink == 1

    def test_only_the_batch_is_added(self, settings: Settings) -> None:
        """A file that came after intake waits for the next cycle."""
        (settings.new_gts / "late.csv").write_bytes(b"late")
        with gts_folder.training_folder(settings, []) as (folder, manifest):
            assert (everything_in(folder), manifest) == ({}, {})

    def test_a_file_that_changed_since_intake_ends_the_cycle(self, settings: Settings) -> None:
        """What was judged must be what is trained on."""
        files = [one_of(settings, "a.csv", b"read")]
        (settings.new_gts / "a.csv").write_bytes(b"changed")
        with (
            pytest.raises(TryLaterError, match=r"a\.csv changed"),
            gts_folder.training_folder(settings, files),
        ):
            pytest.fail("was trained on")
        assert list(settings.home.glob(f"{gts_folder.STAGING_PREFIX}*")) == []

    @pytest.mark.parametrize("where", ["new_gts", "used_gts"])
    def test_a_file_that_changes_during_training_ends_the_cycle(
        self, settings: Settings, where: str
    ) -> None:
        """Written into the very file that the hard link shows."""
        files = [one_of(settings, "new.csv", b"new")]
        (settings.used_gts / "used.csv").write_bytes(b"used")
        with (
            pytest.raises(TryLaterError, match="changed during training"),
            gts_folder.training_folder(settings, files),
        ):
            (settings.home / where / f"{where.removesuffix('_gts')}.csv").write_bytes(b"changed")
        assert list(settings.home.glob(f"{gts_folder.STAGING_PREFIX}*")) == []

    def test_a_recording_twice_in_used_gts_is_an_error(self, settings: Settings) -> None:
        """One copy would be tested by a model that was trained on the other."""
        for name in ("a.csv", "b.csv"):
            (settings.used_gts / name).write_bytes(b"same")
        with (
            pytest.raises(PipelineError, match=r"twice, as a\.csv and b\.csv; delete one"),
            gts_folder.training_folder(settings, []),
        ):
            pytest.fail("was trained on")
        assert list(settings.home.glob(f"{gts_folder.STAGING_PREFIX}*")) == []

    def test_it_is_removed_when_training_fails(self, settings: Settings) -> None:
        """And the files stay where they were."""
        files = [one_of(settings, "a.csv", b"new")]
        with (
            pytest.raises(ZeroDivisionError),
            gts_folder.training_folder(settings, files),
        ):
            raise ZeroDivisionError
        assert everything_in(settings.home) == {"new_gts/a.csv": b"new"}

    def test_the_folder_of_a_dead_cycle_is_removed(self, settings: Settings) -> None:
        """Its files have their other names; other folders stay."""
        files = [one_of(settings, "a.csv", b"new")]
        left_over = settings.home / f"{gts_folder.STAGING_PREFIX}dead"
        left_over.mkdir()
        os.link(settings.new_gts / files[0].name, left_over / "a.csv")
        gts_folder.remove_training_folders(settings)
        assert everything_in(settings.home) == {"new_gts/a.csv": b"new"}
        assert sorted(path.name for path in settings.home.iterdir()) == ["new_gts", "used_gts"]
