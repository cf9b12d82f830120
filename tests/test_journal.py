"""What a home remembers: appended whole or not at all, and never believed when damaged."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import ROOT

from retraining import journal as journal_module
from retraining.errors import PipelineError
from retraining.files import exclusive_lock
from retraining.journal import SCHEMA, Entry, Home, Journal, Vouch
from retraining.settings import Settings

FIRST = Vouch(1, "a" * 64, "b" * 64, "run1", "Stems")
SECOND = Vouch(2, "c" * 64, "d" * 64, "run2", "Stems")

APPEND_FOR_EVER = """
import sys
from pathlib import Path
from retraining.journal import Journal, Vouch
number = 0
while True:
    number += 1
    Journal(Path(sys.argv[1])).append(Vouch(number, "a" * 64, "b" * 64, "run", "Stems"))
    print(number, flush=True)
"""
APPEND_IN_TURN = """
import sys, time
from pathlib import Path
from retraining.errors import TryLaterError
from retraining.files import exclusive_lock
from retraining.journal import Journal, Vouch
from retraining.settings import Settings
settings, left = Settings(home=Path(sys.argv[1])), 20
while left:
    try:
        with exclusive_lock(settings, "test"):
            Journal(settings.home).append(Vouch(left, "a" * 64, "b" * 64, sys.argv[2], "Stems"))
        left -= 1
    except TryLaterError:
        time.sleep(0.001)
"""


@dataclass(frozen=True)
class Arrival(Entry):
    """A kind as a later issue may add it."""

    KIND: ClassVar[str] = "arrival"
    name: str
    sizes: list[int]
    note: str = "none"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Give the journal of an empty home."""
    return Journal(tmp_path)


@pytest.fixture
def filled(journal: Journal) -> Journal:
    """Give a journal of three lines."""
    for one in (FIRST, SECOND, Arrival("a.csv", [1, 2])):
        journal.append(one)
    return journal


def lines_of(journal: Journal) -> list[dict[str, Any]]:
    """Return what its file holds, one object per line."""
    return [json.loads(line) for line in journal.path.read_bytes().splitlines()]


def fail_with(number: int) -> Callable[..., Any]:
    """Return a system call that always fails with this errno."""

    def fail(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


class TestRemembering:
    """`append` and `read`."""

    def test_what_is_appended_is_read(self, filled: Journal) -> None:
        """By kind, oldest first."""
        memory = filled.read()
        assert memory.all(Vouch) == [FIRST, SECOND]
        assert memory.all(Arrival) == [Arrival("a.csv", [1, 2])]
        assert memory.number == 3

    def test_nothing_is_remembered_before_the_first_line(self, journal: Journal) -> None:
        """And reading writes nothing."""
        memory = journal.read()
        assert (memory.number, memory.home_id, memory.all(Vouch)) == (0, "", [])
        assert list(journal.home.iterdir()) == []

    def test_a_home_has_one_id(self, journal: Journal, tmp_path: Path) -> None:
        """Made with the first line and never again; another home has another one."""
        journal.append()
        first = journal.read().home_id
        journal.append(FIRST)
        assert len(first) == 32
        assert [one.id for one in journal.read().all(Home)] == [first]
        (tmp_path / "other").mkdir()
        other = Journal(tmp_path / "other")
        other.append()
        assert other.read().home_id != first

    def test_an_append_is_one_line(self, journal: Journal) -> None:
        """JSON with schema, running number and checksum, whatever the entries hold."""
        journal.append(FIRST, Arrival("two\nlines \udce9.csv", []))
        journal.append(SECOND)
        first, second = lines_of(journal)
        assert [one["schema"] for one in (first, second)] == [SCHEMA, SCHEMA]
        assert [one["number"] for one in (first, second)] == [1, 2]
        assert first["chain"] != second["chain"]
        assert [one["kind"] for one in first["entries"]] == ["home", "vouch", "arrival"]
        assert journal.read().all(Arrival)[0].name == "two\nlines \udce9.csv"

    def test_only_its_owner_reads_it(self, filled: Journal) -> None:
        """Even where new files are open to all."""
        assert stat.S_IMODE(filled.path.stat().st_mode) == 0o600

    def test_of_two_vouches_for_one_number_the_later_holds(self, filled: Journal) -> None:
        """MLflow counts on from the versions that are left; other models have their own."""
        again = Vouch(2, "e" * 64, "f" * 64, "run3", "Stems")
        filled.append(again, Vouch(1, "e" * 64, "f" * 64, "run4", "Grain"))
        assert filled.read().vouches("Stems") == {1: FIRST, 2: again}

    def test_git_ignores_it(self) -> None:
        """As all that a home keeps."""
        command = ["git", "check-ignore", journal_module.JOURNAL_NAME]
        found = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
        assert found.returncode in (0, 128)  # 128: not in a repository

    def test_reading_imports_nothing_heavy(self, filled: Journal) -> None:
        """A night without news may look into it."""
        code = (
            "import sys; from pathlib import Path; from retraining.journal import Journal\n"
            "assert Journal(Path(sys.argv[1])).read().number == 3\n"
            "print(*{'mlflow', 'pandas', 'numpy', 'sklearn', 'scipy'} & set(sys.modules))"
        )
        command = [sys.executable, "-c", code, str(filled.home)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        assert done.stdout == "\n"


class TestOtherPipelines:
    """Journals of older and newer code."""

    def test_kinds_and_fields_of_newer_code_are_kept_and_left_out(self, journal: Journal) -> None:
        """Within one schema; what is appended after them does not touch them."""

        @dataclass(frozen=True)
        class LongerArrival(Arrival):
            weather: str = "rain"

        @dataclass(frozen=True)
        class Unheard(Entry):
            KIND: ClassVar[str] = "unheard"
            of: str

        journal.append(LongerArrival("a.csv", []), Unheard("x"))
        before = journal.path.read_bytes()
        journal.append(FIRST)
        assert journal.path.read_bytes().startswith(before)
        assert journal.read().all(Arrival) == [Arrival("a.csv", [])]
        assert journal.read().all(Vouch) == [FIRST]

    def test_a_field_that_came_later_has_its_default(self, journal: Journal) -> None:
        """An entry of older code."""

        @dataclass(frozen=True)
        class ShorterArrival(Entry):
            KIND: ClassVar[str] = "arrival"
            name: str
            sizes: list[int]

        journal.append(ShorterArrival("a.csv", []))
        assert journal.read().all(Arrival) == [Arrival("a.csv", [], "none")]

    def test_a_newer_schema_is_refused(
        self, filled: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By reading and by appending, with a line that says which is needed; nothing changes."""
        with monkeypatch.context() as patch:
            patch.setattr(journal_module, "SCHEMA", SCHEMA + 1)
            filled.append(FIRST)
        before = filled.path.read_bytes()
        for act in (filled.read, lambda: filled.append(FIRST)):
            with pytest.raises(PipelineError, match=r"newer pipeline \(line 4 has schema 2, this"):
                act()
        assert filled.path.read_bytes() == before


class TestCrashes:
    """A line is there whole or not at all."""

    def test_a_torn_last_line_is_dropped_wherever_it_was_cut(self, filled: Journal) -> None:
        """At every byte: the lines before are believed, and the next append goes on from them."""
        content = filled.path.read_bytes()
        begin = content.rstrip(b"\n").rindex(b"\n") + 1
        for end in range(begin, len(content)):
            filled.path.write_bytes(content[:end])
            memory = filled.read()
            assert (memory.number, memory.all(Vouch), memory.all(Arrival)) == (
                2,
                [FIRST, SECOND],
                [],
            )
        filled.append(FIRST)
        assert filled.read().all(Vouch) == [FIRST, SECOND, FIRST]
        assert [one["number"] for one in lines_of(filled)] == [1, 2, 3]

    def test_a_first_line_that_was_cut_is_no_line(self, journal: Journal) -> None:
        """The home gets its id with the next one."""
        journal.append(FIRST)
        content = journal.path.read_bytes()
        for end in (0, 1, 100, len(content) - 1):
            journal.path.write_bytes(content[:end])
            assert journal.read().number == 0
            journal.append(SECOND)
            assert journal.read().all(Vouch) == [SECOND]
            assert len(journal.read().all(Home)) == 1

    @pytest.mark.parametrize("end", [b"", b"\n", b'"}]}\n'])
    def test_zeros_of_a_power_cut_are_dropped(
        self, filled: Journal, end: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where the length of a file reached the disk and its bytes did not; the log says so."""
        caplog.set_level(logging.INFO, "pipeline")
        with filled.path.open("ab") as stream:
            stream.write(b'{"chain": "' + b"\0" * 300 + end)
        assert filled.read().number == 3
        filled.append(SECOND)
        assert filled.read().all(Vouch) == [FIRST, SECOND, SECOND]
        assert "a line that a crash left unfinished is dropped" in caplog.text

    @pytest.mark.parametrize("call", ["write", "fsync"])
    def test_a_full_disk_leaves_it_as_it_was(
        self, filled: Journal, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        """Nothing of the entry stays, and the next append finds no fault."""
        before = filled.path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail_with(errno.ENOSPC))
            with pytest.raises(OSError, match="No space left"):
                filled.append(SECOND)
        assert filled.path.read_bytes() == before
        filled.append(SECOND)
        assert filled.read().number == 4

    def test_a_disk_that_fills_in_the_middle_of_a_line_leaves_it_as_it_was(
        self, filled: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The system writes a part and says so, then no more: also where nothing can be undone."""
        before = filled.path.read_bytes()
        write, room = os.write, [40]

        def write_a_part(descriptor: int, content: bytes) -> int:
            if not room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, content[: room.pop()])

        for undo in (True, False):
            room[:] = [40]
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", write_a_part)
                if not undo:
                    patch.setattr(os, "ftruncate", fail_with(errno.EIO))
                with pytest.raises(OSError, match="No space left"):
                    filled.append(SECOND)
            assert (filled.path.read_bytes() == before) is undo
            assert filled.read().number == 3
        filled.append(SECOND)
        assert filled.read().all(Vouch) == [FIRST, SECOND, SECOND]

    def test_a_write_in_pieces_is_a_whole_line(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The system may take fewer bytes than it was given."""
        write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:7]))
        journal.append(FIRST)
        assert journal.read().all(Vouch) == [FIRST]

    def test_kill_9_costs_no_line_that_was_reported(self, journal: Journal) -> None:
        """A real process, killed while it appends: what it said is there, and one more at most."""
        for _ in range(5):
            journal.path.unlink(missing_ok=True)
            command = [sys.executable, "-c", APPEND_FOR_EVER, str(journal.home)]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for _ in range(10):
                    process.stdout.readline()
                process.send_signal(signal.SIGKILL)
                said = 10 + len(process.stdout.readlines())
            found = [one.version for one in journal.read().all(Vouch)]
            assert found == [*range(1, len(found) + 1)]
            assert said <= len(found) <= said + 1
            journal.append(FIRST)
            assert journal.read().number == len(found) + 1

    def test_two_processes_take_turns(self, journal: Journal) -> None:
        """Under the home's lock: no line is lost, mixed or numbered twice."""
        command = [sys.executable, "-c", APPEND_IN_TURN, str(journal.home)]
        processes = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("one", "two")]
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
        written = [(one.run_id, one.version) for one in journal.read().all(Vouch)]
        assert sorted(written) == sorted(
            (name, number) for name in ("one", "two") for number in range(1, 21)
        )
        assert [one["number"] for one in lines_of(journal)] == [*range(1, 41)]


class TestDamage:
    """What is not as it was written is never believed."""

    def test_a_flipped_byte_anywhere_is_said(self, filled: Journal) -> None:
        """Of any line that is whole, the last one included; nothing is appended to it."""
        content = filled.path.read_bytes()
        for place in range(0, len(content), 3):
            damaged = bytearray(content)
            damaged[place] ^= 1
            filled.path.write_bytes(damaged)
            for act in (filled.read, lambda: filled.append(FIRST)):
                if place == len(content) - 1:
                    continue  # the line's end: an unfinished line
                with pytest.raises(PipelineError, match=r"line \d|newer pipeline") as caught:
                    act()
                assert "Traceback" not in str(caught.value)
            assert filled.path.read_bytes() == damaged

    def test_the_message_names_the_line_and_what_to_do(self, filled: Journal) -> None:
        """And literally followed, it helps."""
        lines = filled.path.read_bytes().splitlines(keepends=True)
        filled.path.write_bytes(lines[0] + lines[1].replace(b"run2", b"run9") + lines[2])
        with pytest.raises(PipelineError) as caught:
            filled.read()
        assert str(caught.value) == (
            f"the journal {filled.path} is damaged or was edited: line 2 is not what was written; "
            "restore it from a backup, or move it away: the next run begins a new one with what "
            "verifies in the registry"
        )
        filled.path.rename(filled.home / "moved away")
        assert filled.read().number == 0

    @pytest.mark.parametrize(
        ("order", "line"),
        [([1, 2], 1), ([0, 2], 2), ([0, 2, 1], 2), ([0, 1, 1], 3)],
        ids=["first gone", "middle gone", "swapped", "repeated"],
    )
    def test_a_line_that_is_gone_or_moved_is_said(
        self, filled: Journal, order: list[int], line: int
    ) -> None:
        """Each checksum goes over the line before, too."""
        lines = filled.path.read_bytes().splitlines(keepends=True)
        filled.path.write_bytes(b"".join(lines[number] for number in order))
        with pytest.raises(PipelineError, match=f"line {line} is not what was written"):
            filled.read()

    @pytest.mark.parametrize(
        "line", [b"", b"null", b"3", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"schema": "x"}']
    )
    def test_any_other_text_is_damage(self, filled: Journal, line: bytes) -> None:
        """No traceback, whatever stands there."""
        with filled.path.open("ab") as stream:
            stream.write(line + b"\n")
        with pytest.raises(PipelineError, match="line 4 is not what was written"):
            filled.read()


class TestForeignHands:
    """It is a file of ours alone, or none."""

    @pytest.mark.usefixtures("ten_seconds")
    @pytest.mark.parametrize(
        ("make", "what"),
        [
            (lambda path: path.symlink_to("elsewhere"), "is a symbolic link"),
            (os.mkfifo, "is not a regular file"),
            (Path.mkdir, "is not a regular file"),
        ],
        ids=["link", "FIFO", "folder"],
    )
    def test_what_is_no_plain_file_is_refused(
        self, journal: Journal, make: Callable[[Path], Any], what: str
    ) -> None:
        """Nothing is followed, waited for or written."""
        (journal.home / "elsewhere").write_bytes(b"")
        make(journal.path)
        for act in (journal.read, lambda: journal.append(FIRST)):
            with pytest.raises(PipelineError, match=f"{what}; it must be a file of the pipeline's"):
                act()
        assert (journal.home / "elsewhere").read_bytes() == b""

    @pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
    def test_one_that_others_may_write_is_refused(self, filled: Journal, mode: int) -> None:
        """The message says how to mend it, and that works."""
        filled.path.chmod(mode)
        for act in (filled.read, lambda: filled.append(FIRST)):
            with pytest.raises(PipelineError, match=r"can be written by others; .* chmod 600"):
                act()
        filled.path.chmod(0o600)
        assert filled.read().number == 3

    def test_one_of_another_user_is_refused(
        self, filled: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a home that was copied by root."""
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        for act in (filled.read, lambda: filled.append(FIRST)):
            with pytest.raises(PipelineError, match="belongs to another user; .*chown"):
                act()

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
    def test_one_that_may_not_be_read_is_refused(
        self, filled: Journal, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """In one line, as everything here."""
        monkeypatch.setattr(os, "open", fail_with(number))
        with pytest.raises(PipelineError, match="is not readable; it must be a file of the"):
            filled.read()

    def test_the_lock_of_the_home_is_not_its_own(self, filled: Journal) -> None:
        """A command reads it while another one changes the home."""
        with exclusive_lock(Settings(home=filled.home), "run"):
            assert filled.read().number == 3
