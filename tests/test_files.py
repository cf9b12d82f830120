"""The lock, durable writes, hashes, safe reads and moves of any file, on real files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

from retraining import files
from retraining.errors import PipelineError, TryLaterError
from retraining.ground_truth import REASON_SUFFIX
from retraining.settings import Settings

GOOD_NAMES = ["with space.csv", "Grün.CSV", "%s.csv", "a;b&c.csv", "*.csv"]
TRAPS = {
    "-rf.csv": "begins with a dash",
    "two\nlines.csv": "line break or another control character",
    "bell\a.csv": "control character",
}

HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from retraining import files
from retraining.settings import Settings
with files.exclusive_lock(Settings(home=Path(sys.argv[1])), "rollback"):
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
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


def everything_in(folder: Path) -> dict[str, bytes]:
    """Return relative path -> content of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def move_file(source: Path, folder: Path, name: str = "") -> Path:
    """Move one file and return its new path."""
    return files.move_files({source: name}, folder).moved[source]


def fail_with(number: int) -> Callable[..., Any]:
    """Return a system call that always fails with this errno."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


class TestOneAtATime:
    """`exclusive_lock` and `lock_without_writing`."""

    def test_the_second_process_is_told_who_holds_the_lock(self, settings: Settings) -> None:
        """It ends at once, names pid and command, and is to try again later."""
        with python_process(HOLD_THE_LOCK, settings.home) as holder:
            begun = time.monotonic()
            with (
                pytest.raises(TryLaterError, match=rf"pid {holder.pid}, rollback, since 2"),
                files.exclusive_lock(settings, "run"),
            ):
                pass
            assert time.monotonic() - begun < 1

    def test_a_killed_holder_frees_the_lock(self, settings: Settings) -> None:
        """Nobody has to delete anything after kill -9."""
        with python_process(HOLD_THE_LOCK, settings.home) as holder:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with files.exclusive_lock(settings, "run"):
                held = (settings.home / files.LOCK_NAME).read_text()
        assert held.startswith(f"pid {os.getpid()}, run, since 2")

    def test_the_lock_file_is_never_deleted(self, settings: Settings) -> None:
        """A deleted lock file would admit two holders: the inode stays the same."""
        path = settings.home / files.LOCK_NAME
        with files.exclusive_lock(settings, "run"):
            first = path.stat().st_ino
        assert path.read_bytes() == b""
        with files.exclusive_lock(settings, "run"):
            assert path.stat().st_ino == first

    def test_an_exception_frees_the_lock(self, settings: Settings) -> None:
        """A failed command does not lock out the next one."""
        with pytest.raises(ZeroDivisionError), files.exclusive_lock(settings, "run"):
            raise ZeroDivisionError
        with files.exclusive_lock(settings, "run"):
            pass

    def test_a_child_process_does_not_inherit_the_lock(self, settings: Settings) -> None:
        """A worker or a hook that outlives the command does not keep the home locked."""
        with files.exclusive_lock(settings, "run"):
            child = subprocess.Popen(["sleep", "600"], close_fds=False)
        try:
            with files.exclusive_lock(settings, "run"):
                assert child.poll() is None
        finally:
            child.kill()
            child.wait()

    def test_a_lock_file_that_is_a_link_is_refused(self, settings: Settings) -> None:
        """The lock never truncates a file that somebody linked to."""
        precious = settings.home / "precious"
        precious.write_text("do not touch")
        (settings.home / files.LOCK_NAME).symlink_to(precious)
        with pytest.raises(OSError, match="symbolic"), files.exclusive_lock(settings, "run"):
            pass
        assert precious.read_text() == "do not touch"

    @pytest.mark.parametrize("lock_file_exists", [True, False])
    def test_looking_writes_nothing(self, settings: Settings, lock_file_exists: bool) -> None:
        """Not even a lock file, if there is none."""
        if lock_file_exists:
            (settings.home / files.LOCK_NAME).write_text("left over")
        before = everything_in(settings.home)
        with files.lock_without_writing(settings):
            assert everything_in(settings.home) == before
        assert everything_in(settings.home) == before

    def test_looking_waits_for_no_changing_command(self, settings: Settings) -> None:
        """A look during a change would see half of it: try again later."""
        with (
            python_process(HOLD_THE_LOCK, settings.home),
            pytest.raises(TryLaterError, match="rollback"),
            files.lock_without_writing(settings),
        ):
            pass

    def test_looking_keeps_changing_commands_out(self, settings: Settings) -> None:
        """What is looked at does not change meanwhile; afterwards it may."""
        (settings.home / files.LOCK_NAME).touch()
        with (
            files.lock_without_writing(settings),
            pytest.raises(TryLaterError, match="held by a process"),
            files.exclusive_lock(settings, "run"),
        ):
            pass
        with files.exclusive_lock(settings, "run"):
            pass


class TestDurableWrites:
    """`write_durably` and `written_whole`."""

    def test_a_file_is_replaced_whole(self, tmp_path: Path) -> None:
        """The new content stands there, and nothing else."""
        path = tmp_path / "state.json"
        path.write_bytes(b"a much longer old content")
        files.write_durably(path, b"new")
        assert everything_in(tmp_path) == {"state.json": b"new"}

    @pytest.mark.parametrize(
        ("module", "call"), [(os, "fsync"), (os, "open"), (Path, "write_bytes")]
    )
    def test_a_failed_write_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, call: str
    ) -> None:
        """With a full disk: the old content, and no temporary file."""
        path = tmp_path / "state.json"
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            patch.setattr(module, call, fail_with(errno.ENOSPC))
            with pytest.raises(OSError, match="No space left"):
                files.write_durably(path, b"new")
        assert everything_in(tmp_path) == {"state.json": b"old"}

    def test_a_failed_rename_leaves_the_old_file(self, tmp_path: Path) -> None:
        """Where a folder stands in the way: it stays, and no temporary file."""
        path = tmp_path / "state.json"
        path.mkdir()
        with pytest.raises(IsADirectoryError):
            files.write_durably(path, b"new")
        assert [one.name for one in tmp_path.iterdir()] == ["state.json"]

    def test_other_people_can_read_what_is_written(self, tmp_path: Path) -> None:
        """Who put a file into new_gts/ is often not the user that cron runs as."""
        files.write_durably(tmp_path / "a.csv.reason.json", b"{}")
        assert stat.S_IMODE((tmp_path / "a.csv.reason.json").stat().st_mode) == 0o644

    @pytest.mark.parametrize(
        ("mode", "umask", "has"),
        [
            *((0o644, 0o022, 0o644), (0o644, 0o027, 0o640), (0o644, 0o077, 0o600)),
            *((0o600, 0o000, 0o600), (0o600, 0o077, 0o600)),
        ],
    )
    def test_the_umask_says_who_may_read(
        self, tmp_path: Path, mode: int, umask: int, has: int
    ) -> None:
        """As of what MLflow writes and of folders; what is private stays it."""
        before = os.umask(umask)
        try:
            files.write_durably(tmp_path / "a", b"abc", mode=mode)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == has

    def test_what_was_not_written_whole_never_has_its_name(self, tmp_path: Path) -> None:
        """The block fails: the old content, and no temporary file."""
        (tmp_path / "a").write_bytes(b"old")
        with (
            pytest.raises(ZeroDivisionError),
            files.written_whole(tmp_path / "a") as temporary,
        ):
            temporary.write_bytes(b"half")
            raise ZeroDivisionError
        assert everything_in(tmp_path) == {"a": b"old"}

    def test_nothing_is_overwritten_where_that_is_not_wished(self, tmp_path: Path) -> None:
        """The name was taken meanwhile: what stands there stays."""
        with (
            pytest.raises(FileExistsError),
            files.written_whole(tmp_path / "a", overwrite=False) as temporary,
        ):
            temporary.write_bytes(b"ours")
            (tmp_path / "a").write_bytes(b"theirs")
        assert everything_in(tmp_path) == {"a": b"theirs"}

    @pytest.mark.parametrize("durable", [True, False])
    def test_only_what_must_outlive_a_power_cut_waits_for_the_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
    ) -> None:
        """The file and its name."""
        synced, fsync = [], os.fsync

        def note(descriptor: int) -> None:
            synced.append(os.fstat(descriptor).st_ino)
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", note)
        with files.written_whole(tmp_path / "a", durable=durable) as temporary:
            temporary.write_bytes(b"abc")
        inodes = [(tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino]
        assert synced == (inodes if durable else [])

    def test_half_written_files_of_dead_processes_are_removed(self, tmp_path: Path) -> None:
        """A real one, killed while it writes; nothing else goes."""
        code = """
import os, signal, sys
from pathlib import Path
from retraining import files
with files.written_whole(Path(sys.argv[1], "a.csv")) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
        dead = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
        assert dead.returncode == -signal.SIGKILL
        (tmp_path / "b.csv").write_bytes(b"whole")
        assert len(everything_in(tmp_path)) == 2
        files.remove_left_overs(tmp_path)
        assert everything_in(tmp_path) == {"b.csv": b"whole"}
        files.remove_left_overs(tmp_path / "missing")


class TestLook:
    """`waiting_names` and hashes."""

    @pytest.mark.parametrize("name", ["a.csv", "B.CSV", "c.Csv", "x.part.csv", *GOOD_NAMES, *TRAPS])
    def test_a_csv_is_waiting_whatever_its_name(self, tmp_path: Path, name: str) -> None:
        """Case, blanks, newlines and leading dashes do not matter."""
        (tmp_path / name).touch()
        assert files.waiting_names(tmp_path) == [name]

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
        assert files.waiting_names(tmp_path) == []

    def test_names_are_sorted(self, tmp_path: Path) -> None:
        """Whatever order the filesystem lists them in."""
        for name in ("c.csv", "a.csv", "b.csv", "B.csv"):
            (tmp_path / name).touch()
        assert files.waiting_names(tmp_path) == ["B.csv", "a.csv", "b.csv", "c.csv"]

    def test_the_hash_is_sha256(self, tmp_path: Path) -> None:
        """Of the bytes or of the file: the value published for "abc" (FIPS 180-2)."""
        published = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        (tmp_path / "a.csv").write_bytes(b"abc")
        assert files.hash_bytes(b"abc") == published
        assert files.hash_file(tmp_path / "a.csv") == published


class TestStillWritten:
    """`settled`: what nobody writes any more."""

    def test_a_reader_does_not_count_as_a_writer(self, settings: Settings) -> None:
        """A file that somebody looks at is taken in."""
        path = settings.new_gts / "1.csv"
        path.write_bytes(b"abc")
        with path.open("rb"):
            assert files.settled([path]) == [path]

    def test_a_writer_who_comes_during_the_look_does_not_end_the_run(self, tmp_path: Path) -> None:
        """The kernel tells the holder of a lease by a signal that ends a process by default."""
        path = tmp_path / "a.csv"
        path.touch()
        code = """
import fcntl, os, sys, time
from pathlib import Path
from retraining import files
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
print(files._being_written(Path(sys.argv[1])))
"""
        ended = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            cwd=ROOT,
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
        path.write_bytes(b"abc")

        def sleep(seconds: float) -> None:
            assert seconds == files.SETTLE_SECONDS
            if grows:
                with path.open("ab") as stream:
                    stream.write(b"more")

        monkeypatch.setattr(time, "sleep", sleep)
        if kernel == "without leases":
            monkeypatch.delattr(fcntl, "F_SETLEASE")
        else:
            monkeypatch.setattr(fcntl, "fcntl", fail_with(errno.EINVAL))
        assert files.settled([path]) == ([] if grows else [path])


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
        with pytest.raises(files.UnusableFile, match=what):
            files.read_regular_file(path, 0.001)
        after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208
        assert after == before

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
    def test_an_unreadable_file_is_refused(self, tmp_path: Path) -> None:
        """The reason names the right that is missing."""
        path = tmp_path / "a.csv"
        path.write_text("good")
        path.chmod(0)
        with pytest.raises(files.UnusableFile, match="is not readable"):
            files.read_regular_file(path, 1)

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
    def test_a_refusal_of_the_system_is_a_refusal_of_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """As above, for testers who are root: the system call is made to fail."""

        def refuse(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(files.UnusableFile, match="is not readable; give"):
            files.read_regular_file(tmp_path / "a.csv", 1)

    def test_a_file_of_exactly_the_largest_size_is_read(self, tmp_path: Path) -> None:
        """The limit itself is allowed."""
        (tmp_path / "a.csv").write_bytes(b"x" * 1000)
        assert len(files.read_regular_file(tmp_path / "a.csv", 0.001)) == 1000


class TestOwnership:
    """`belongs_to_us` and `is_private`."""

    @pytest.mark.parametrize("mode", [0o644, 0o664, 0o646])
    def test_what_others_may_write_is_not_ours(self, tmp_path: Path, mode: int) -> None:
        """Reading harms nobody."""
        (tmp_path / "a").touch()
        (tmp_path / "a").chmod(mode)
        assert files.belongs_to_us((tmp_path / "a").stat()) is (mode == 0o644)

    def test_what_another_user_owns_is_not_ours(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever its rights."""
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        assert not files.belongs_to_us(tmp_path.stat())

    def test_a_folder_is_private_with_the_one_above(self, tmp_path: Path) -> None:
        """Whoever may write above could put another one in its place; a link is none."""
        above, folder = tmp_path / "above", tmp_path / "above" / "folder"
        folder.mkdir(parents=True)
        assert files.is_private(folder)
        for one in (above, folder):
            one.chmod(0o777)
            assert not files.is_private(folder)
            one.chmod(0o755)
        (above / "link").symlink_to(folder)
        (above / "file").touch()
        assert not any(files.is_private(above / name) for name in ("link", "file", "missing"))


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
    """`free_name` and `move_file`."""

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
        assert files.free_name("a.csv", tmp_path, taken) == free

    def test_a_dangling_link_takes_its_name(self, tmp_path: Path) -> None:
        """What leads nowhere is still somebody's file."""
        (tmp_path / "a.csv").symlink_to("nowhere")
        assert files.free_name("a.csv", tmp_path) == "a-1.csv"

    @pytest.mark.parametrize("character", ["a", "ü"])
    def test_a_long_name_leaves_room_for_a_number(self, tmp_path: Path, character: str) -> None:
        """Cut between characters, at a length that takes the number and the reason's suffix."""
        size = len(character.encode())
        name = files.free_name(character * (250 // size) + ".csv", tmp_path)
        assert name == character * (226 // size) + ".csv"
        (tmp_path / name).touch()
        (tmp_path / f"{name}{REASON_SUFFIX}").touch()
        again = files.free_name(character * (250 // size) + ".csv", tmp_path)
        assert again == character * (226 // size) + "-1.csv"

    def test_a_move_keeps_the_very_file(self, tmp_path: Path) -> None:
        """Same inode on the same filesystem, under its name or a wished one."""
        (tmp_path / "to").mkdir()
        (tmp_path / "a.csv").write_bytes(b"abc")
        inode = (tmp_path / "a.csv").stat().st_ino
        moved = move_file(tmp_path / "a.csv", tmp_path / "to", "b.csv")
        assert moved == tmp_path / "to" / "b.csv"
        assert moved.stat().st_ino == inode
        assert everything_in(tmp_path) == {"to/b.csv": b"abc"}

    def test_a_move_never_overwrites(self, tmp_path: Path) -> None:
        """Equal names, other content: both stay."""
        (tmp_path / "to").mkdir()
        (tmp_path / "to" / "a.csv").write_bytes(b"old")
        (tmp_path / "a.csv").write_bytes(b"new")
        move_file(tmp_path / "a.csv", tmp_path / "to")
        assert everything_in(tmp_path) == {"to/a.csv": b"old", "to/a-1.csv": b"new"}

    def test_a_name_taken_at_the_last_moment_is_not_overwritten(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Somebody else writes the name between the look and the move."""
        (tmp_path / "to").mkdir()
        (tmp_path / "a.csv").write_bytes(b"ours")
        free_name = files.free_name

        def free_name_then_taken(name: str, folder: Path) -> str:
            free = free_name(name, folder)
            if free == "a.csv":
                (folder / free).write_bytes(b"theirs")
            return free

        monkeypatch.setattr(files, "free_name", free_name_then_taken)
        move_file(tmp_path / "a.csv", tmp_path / "to")
        assert everything_in(tmp_path) == {"to/a.csv": b"theirs", "to/a-1.csv": b"ours"}

    def test_a_file_goes_whole_to_another_disk(self, tmp_path: Path, other_disk: Path) -> None:
        """Content, mode and time are kept, an equal name is not overwritten, no rest is left."""
        source = tmp_path / "a.csv"
        source.write_bytes(b"abc")
        source.chmod(0o640)
        os.utime(source, ns=(10**18, 10**18))
        (other_disk / "a.csv").write_bytes(b"old")
        moved = move_file(source, other_disk)
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
                move_file(tmp_path / "a.csv", other_disk)
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
        move_file(tmp_path / "a.csv", tmp_path / "to")
        assert everything_in(tmp_path) == {"to/a.csv": b"old", "to/a-1.csv": b"new"}

    @pytest.mark.parametrize("make", [lambda path: path.symlink_to("nowhere"), os.mkfifo])
    def test_a_link_of_another_user_can_be_moved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
    ) -> None:
        """Linux forbids hard links to them (protected_hardlinks); a rename is allowed."""
        (tmp_path / "to").mkdir()
        make(tmp_path / "a.csv")
        monkeypatch.setattr(os, "link", fail_with(errno.EPERM))
        moved = move_file(tmp_path / "a.csv", tmp_path / "to")
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
            move_file(tmp_path / "a.csv", tmp_path / "to")
        assert everything_in(tmp_path) == {"a.csv": b"abc"}
