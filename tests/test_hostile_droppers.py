"""What whoever may drop files into new_gts/, or is another user of the machine, can do and gets.

Where this runs as root, some tests play two other users: the pipeline's, and the dropper.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import logging
import os
import pickle
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST_WORDS, train_small_models
from large_files import peak_memory, write_large
from test_files import everything_in

from pipeline_orchestrator import main
from retraining import files, ground_truth, notices, recovery
from retraining.commands import correct, status, withdraw
from retraining.errors import PipelineError
from retraining.ground_truth import GroundTruthFile, Refusal
from retraining.journal import Journal, Withdrawn
from retraining.settings import Settings, check_home

PIPELINE, DROPPER = 61001, 61002
PROTECTED = Path("/proc/sys/fs/protected_hardlinks")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can play two other users")
needs_protection = pytest.mark.skipif(
    not PROTECTED.is_file() or PROTECTED.read_text().strip() == "0",
    reason="fs.protected_hardlinks is 0 here: files of others can be linked",
)


def make_folders(home: Path) -> Settings:
    """Create a home that nobody has registered anything in."""
    for name in ("new_gts", "used_gts", "mlflow_server/backend_db"):
        (home / name).mkdir(parents=True)
    return Settings(home=home)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return the settings of an empty home."""
    return make_folders(tmp_path / "home")


@pytest.fixture
def shared_settings() -> Iterator[Settings]:
    """Return the settings of the pipeline user's home, whose new_gts/ all may write to."""
    folder = Path(tempfile.mkdtemp(prefix="droppers-"))
    folder.chmod(0o755)
    settings = make_folders(folder / "home")
    for path in (settings.home, *settings.home.rglob("*")):
        os.chown(path, PIPELINE, PIPELINE)
    settings.new_gts.chmod(0o777)
    yield settings
    shutil.rmtree(folder)


def as_user(user: int, work: Callable[[], Any]) -> Any:
    """Do something as another user, in a process of its own; return what came of it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            done = pickle.dumps((True, work()))
        except BaseException:
            done = pickle.dumps((False, traceback.format_exc()))
        with os.fdopen(writer, "wb") as stream:
            stream.write(done)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        ended_well, result = pickle.loads(stream.read())
    os.waitpid(child, 0)
    assert ended_well, result
    return result


def drop(path: Path, content: bytes, mode: int, user: int = DROPPER) -> Path:
    """Write a file as the dropper."""

    def write() -> None:
        path.write_bytes(content)
        path.chmod(mode)

    as_user(user, write)
    return path


def bad(name: str) -> Refusal:
    """Refuse a file."""
    return Refusal(name, "is torn", "mend it")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings so far, one text each."""
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


# --- A folder of ours that is none ---


def a_link_to(name: str) -> Callable[[Settings], None]:
    """Return what puts a link to a folder of the home in the place of rejected/."""
    return lambda settings: settings.rejected_gts.symlink_to(settings.home / name)


def a_folder_of_another_user(settings: Settings) -> None:
    """Put a folder in the place of rejected/ that somebody else can empty."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a folder of another user")
    settings.rejected_gts.mkdir()
    os.chown(settings.rejected_gts, DROPPER, DROPPER)


IN_ITS_PLACE = [
    pytest.param(a_link_to("used_gts"), id="link to used_gts"),
    pytest.param(a_link_to("mlflow_server/backend_db"), id="link to the store"),
    pytest.param(a_link_to("nowhere"), id="dangling link"),
    pytest.param(lambda settings: settings.rejected_gts.write_bytes(b"file"), id="file"),
    pytest.param(lambda settings: os.mkfifo(settings.rejected_gts), id="FIFO"),
    pytest.param(a_folder_of_another_user, id="folder of another user"),
]
instead_of_rejected = pytest.mark.parametrize("put", IN_ITS_PLACE)


@pytest.mark.usefixtures("ten_seconds")
class TestRejectedIsNoFolderOfOurs:
    """new_gts/rejected is what a dropper made it."""

    @instead_of_rejected
    def test_bad_files_stay_and_one_line_says_what_to_remove(
        self, settings: Settings, put: Callable[[Settings], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nothing is written to wherever it leads, and nothing fails."""
        for name in ("a.csv", "b.csv"):
            (settings.new_gts / name).write_bytes(b"bad")
        put(settings)
        before = everything_in(settings.home)
        ground_truth.reject(settings, [bad("a.csv"), bad("b.csv")])
        assert everything_in(settings.home) == before
        (line,) = warnings_of(caplog)
        assert f"{settings.rejected_gts} " in line
        assert "move it away" in line
        assert "a.csv (is torn), b.csv (is torn)" in line
        assert "/proc/" not in line

    @instead_of_rejected
    def test_nothing_in_it_is_taken_for_a_rejected_file(
        self, settings: Settings, put: Callable[[Settings], None]
    ) -> None:
        """Neither listed nor told; what to remove is, also to `--on-attention`."""
        put(settings)
        for folder in (settings.used_gts, settings.home / "mlflow_server" / "backend_db"):
            (folder / "mlflow.csv").write_bytes(b"precious")
            reason = folder / f"mlflow.csv{ground_truth.REASON_SUFFIX}"
            reason.write_text(json.dumps({"file": "mlflow.csv"}))
        assert ground_truth.rejected_names(settings) == []
        assert ground_truth.rejected_files(settings) == ()
        (told,) = notices._rejections(settings).values()
        assert "mlflow.csv" not in told
        assert "move it away" in told

    @instead_of_rejected
    @pytest.mark.parametrize("names", [[], ["mlflow.csv"]], ids=["all", "by name"])
    def test_requeue_moves_nothing_out_of_where_it_leads(
        self, settings: Settings, put: Callable[[Settings], None], names: list[str]
    ) -> None:
        """The store, or training data, came into new_gts/ that way."""
        put(settings)
        for folder in (settings.used_gts, settings.home / "mlflow_server" / "backend_db"):
            (folder / "mlflow.csv").write_bytes(b"precious")
            reason = folder / f"mlflow.csv{ground_truth.REASON_SUFFIX}"
            reason.write_text(json.dumps({"file": "mlflow.csv"}))
        before = everything_in(settings.home)
        with pytest.raises(PipelineError, match=r"new_gts/rejected .*move it away"):
            ground_truth.requeue(settings, names)
        assert everything_in(settings.home) == before

    @instead_of_rejected
    def test_correct_takes_nothing_from_where_it_leads(
        self, settings: Settings, put: Callable[[Settings], None]
    ) -> None:
        """A used file is no parked one."""
        put(settings)
        (settings.used_gts / "a.csv").write_bytes(b"used")
        with pytest.raises(PipelineError, match=r"new_gts/rejected .*move it away"):
            correct._find(settings, "a.csv")

    @instead_of_rejected
    def test_an_interrupted_command_is_tidied_up_all_the_same(
        self, settings: Settings, put: Callable[[Settings], None]
    ) -> None:
        """The unfinished note went away with no command, for good."""
        put(settings)
        (settings.home / recovery.NOTE_NAME).write_text("{}")
        recovery.tidy(settings)
        assert recovery.unfinished_command(settings) is None

    @instead_of_rejected
    def test_status_tells(self, settings: Settings, put: Callable[[Settings], None]) -> None:
        """As a problem: somebody must look."""
        assert ground_truth.rejected_problem(settings) == ""
        put(settings)
        assert "move it away" in ground_truth.rejected_problem(settings)

    def test_a_folder_that_is_swapped_for_a_link_meanwhile_is_not_followed(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Files and reasons go into the folder that was looked at."""
        settings.rejected_gts.mkdir()
        (settings.new_gts / "a.csv").write_bytes(b"bad")
        aside = settings.new_gts / "aside"

        def swap() -> str:
            settings.rejected_gts.rename(aside)
            settings.rejected_gts.symlink_to(settings.used_gts)
            return "2026-01-01T00:00:00+00:00"

        monkeypatch.setattr(ground_truth, "now", swap)
        ground_truth.reject(settings, [bad("a.csv")])
        assert sorted(everything_in(aside)) == ["a.csv", "a.csv.reason.json"]
        assert everything_in(settings.used_gts) == {}

    def test_what_has_no_reason_of_ours_beside_it_stays(
        self, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Planted in rejected/ and brought in by the advised command: told instead."""
        (settings.new_gts / "ours.csv").write_bytes(b"mended")
        ground_truth.reject(settings, [bad("ours.csv")])
        rejected = settings.rejected_gts
        for name in ("bare", "link", "empty", "deep", "fifo"):
            (rejected / f"{name}.csv").write_bytes(b"planted")
        suffix = ground_truth.REASON_SUFFIX
        (rejected / f"link.csv{suffix}").symlink_to(f"ours.csv{suffix}")
        (rejected / f"empty.csv{suffix}").write_text("{}")
        (rejected / f"deep.csv{suffix}").write_text("[" * 100_000)
        os.mkfifo(rejected / f"fifo.csv{suffix}")
        caplog.clear()
        assert ground_truth.requeue(settings, []) == ["ours.csv"]
        (line,) = warnings_of(caplog)
        assert "bare.csv, deep.csv, empty.csv, fifo.csv, link.csv" in line
        assert ground_truth.requeue(settings, ["bare.csv"]) == []
        assert (rejected / "bare.csv").exists()

    def test_a_folder_where_a_reason_belongs_is_in_nobodys_way(self, settings: Settings) -> None:
        """The file is rejected under another name."""
        (settings.rejected_gts / f"a.csv{ground_truth.REASON_SUFFIX}").mkdir(parents=True)
        (settings.new_gts / "a.csv").write_bytes(b"bad")
        ground_truth.reject(settings, [bad("a.csv")])
        assert sorted(everything_in(settings.rejected_gts)) == [
            *("a-1.csv", f"a-1.csv{ground_truth.REASON_SUFFIX}")
        ]
        assert ground_truth.requeue(settings, []) == ["a-1.csv"]

    def test_a_missing_umask_makes_no_folder_that_all_may_write(self, settings: Settings) -> None:
        """Some cron daemons start with 0."""
        before = os.umask(0)
        try:
            (settings.new_gts / "a.csv").write_bytes(b"bad")
            ground_truth.reject(settings, [bad("a.csv")])
            (settings.new_gts / "b.csv").write_bytes(b"old")
            files.move_files({settings.new_gts / "b.csv": ""}, settings.replaced_gts)
        finally:
            os.umask(before)
        for folder in (settings.rejected_gts, settings.replaced_gts):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.usefixtures("ten_seconds")
class TestLeftOvers:
    """Names of half-written files, put there by somebody else."""

    @pytest.mark.parametrize(
        "put",
        [
            pytest.param(Path.mkdir, id="folder"),
            pytest.param(lambda path: path.symlink_to("used_gts"), id="link"),
            pytest.param(os.mkfifo, id="FIFO"),
        ],
    )
    @pytest.mark.parametrize("place", ["new_gts", "rejected_gts", "home"])
    def test_what_is_no_file_of_ours_is_left_and_told(
        self,
        settings: Settings,
        put: Callable[[Path], object],
        place: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It disabled every command for good."""
        settings.rejected_gts.mkdir()
        folder: Path = getattr(settings, place)
        strange = folder / f"{files.TEMPORARY_PREFIX}x{files.TEMPORARY_SUFFIX}"
        put(strange)
        (folder / f"{files.TEMPORARY_PREFIX}y{files.TEMPORARY_SUFFIX}").write_bytes(b"half")
        (settings.home / recovery.NOTE_NAME).write_text("{}")
        recovery.tidy(settings)
        assert os.path.lexists(strange)
        assert not (folder / f"{files.TEMPORARY_PREFIX}y{files.TEMPORARY_SUFFIX}").exists()
        (line,) = warnings_of(caplog)
        assert strange.name in line
        assert "/proc/" not in line
        assert recovery.unfinished_command(settings) is None

    def test_what_a_night_without_a_note_left_is_removed(self, settings: Settings) -> None:
        """A page is written when the note is gone already."""
        left = settings.reports / f"{files.TEMPORARY_PREFIX}y{files.TEMPORARY_SUFFIX}"
        settings.reports.mkdir()
        left.touch()
        recovery.tidy(settings)
        assert not left.exists()

    @pytest.mark.parametrize(
        "put",
        [
            pytest.param(Path.touch, id="file"),
            pytest.param(lambda path: path.symlink_to("used_gts"), id="link"),
            pytest.param(os.mkfifo, id="FIFO"),
        ],
    )
    def test_what_is_no_training_folder_of_ours_is_left_and_told(
        self,
        settings: Settings,
        put: Callable[[Path], object],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A link is neither followed nor a reason to fail."""
        strange = settings.home / f"{ground_truth.STAGING_PREFIX}x"
        put(strange)
        (settings.used_gts / "a.csv").write_bytes(b"used")
        ground_truth.remove_training_folders(settings)
        assert os.path.lexists(strange)
        assert (settings.used_gts / "a.csv").exists()
        assert strange.name in "".join(warnings_of(caplog))

    @needs_root
    def test_a_file_of_another_user_is_left_and_told(
        self, shared_settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whatever its name."""
        name = f"{files.TEMPORARY_PREFIX}x{files.TEMPORARY_SUFFIX}"
        strange = drop(shared_settings.new_gts / name, b"", 0o600)

        def tidy() -> list[str]:
            files.remove_left_overs(shared_settings.new_gts)
            return warnings_of(caplog)

        (line,) = as_user(PIPELINE, tidy)
        assert name in line
        assert strange.exists()


@needs_root
class TestLinksOfTheHome:
    """Links in the place of the home's own folders."""

    @pytest.mark.parametrize(
        "name", ["used_gts", "new_gts", "withdrawn", "reports", "model", "mlflow_server", ".cache"]
    )
    def test_a_link_of_another_user_is_refused(self, settings: Settings, name: str) -> None:
        """He can let it lead elsewhere at any time; our own may lead to a larger disk."""
        place, disk = settings.home / name, settings.home.parent / "disk"
        if place.is_dir():
            shutil.copytree(place, disk)
            shutil.rmtree(place)
        else:
            disk.mkdir()
        place.symlink_to(disk)
        check_home(settings)
        os.chown(place, DROPPER, DROPPER, follow_symlinks=False)
        with pytest.raises(PipelineError, match=rf"{name} is a link of another user"):
            check_home(settings)


@pytest.mark.slow
def test_a_whole_night_goes_on_beside_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything at once: the good recordings are judged, learnt and archived."""
    train_small_models(monkeypatch)
    recordings = sorted(path.name for path in (home / "new_gts").glob("*.csv"))
    (home / "new_gts" / "bad.csv").write_bytes(b"bad")
    (home / "new_gts" / "rejected").symlink_to("../mlflow_server/backend_db")
    (home / "new_gts" / ".pipeline-x.tmp").mkdir()
    (home / ".training-x").touch()
    store = sorted(path.name for path in (home / "mlflow_server" / "backend_db").iterdir())
    words = [*FAST_WORDS, "--threshold", "0", "--significance", "1", "--home", str(home)]
    assert main(["run", *words, "--max-regression", "100000"]) == 0
    assert {*recordings} <= {path.name for path in (home / "used_gts").iterdir()}
    assert main(["status", "--home", str(home)]) == 1
    assert "rejected is a link" in capsys.readouterr().out
    assert main(["requeue", "--home", str(home)]) == 1
    assert main(["requeue", "mlflow.db", "--home", str(home)]) == 1
    assert "rejected is a link" in capsys.readouterr().err
    assert sorted(path.name for path in (home / "mlflow_server" / "backend_db").iterdir()) == store
    assert sorted(path.name for path in (home / "new_gts").iterdir()) == [
        *(".pipeline-x.tmp", "bad.csv", "rejected")
    ]


# --- Files of another user ---


@needs_root
class TestFilesOfAnotherUser:
    """A dropper whose umask is 077, as a real second user."""

    @needs_protection
    def test_a_file_that_we_may_not_read_is_rejected_all_the_same(
        self, shared_settings: Settings
    ) -> None:
        """It can be neither linked nor copied: it stopped every night, its reason written."""
        drop(shared_settings.new_gts / "a.csv", b"bad", 0o600)
        drop(shared_settings.new_gts / "b.csv", b"bad", 0o644)

        def night() -> None:
            ground_truth.reject(shared_settings, [bad("a.csv"), bad("b.csv")])

        as_user(PIPELINE, night)
        assert sorted(everything_in(shared_settings.rejected_gts)) == [
            *("a.csv", "a.csv.reason.json", "b.csv", "b.csv.reason.json")
        ]
        assert sorted(everything_in(shared_settings.new_gts)) == [
            f"rejected/{name}" for name in sorted(everything_in(shared_settings.rejected_gts))
        ]

    def test_it_comes_back_with_requeue(self, shared_settings: Settings) -> None:
        """By rename, too, and under a free name."""
        drop(shared_settings.new_gts / "a.csv", b"bad", 0o600)
        as_user(PIPELINE, lambda: ground_truth.reject(shared_settings, [bad("a.csv")]))
        drop(shared_settings.new_gts / "a.csv", b"newer", 0o600)
        assert as_user(PIPELINE, lambda: ground_truth.requeue(shared_settings, [])) == ["a-1.csv"]
        assert everything_in(shared_settings.new_gts) == {"a.csv": b"newer", "a-1.csv": b"bad"}

    @pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
    def test_what_may_not_be_moved_is_left_and_the_others_go_on(
        self, shared_settings: Settings, caplog: pytest.LogCaptureFixture, mode: int
    ) -> None:
        """In a folder as /tmp: no reason lies beside nothing, one line tells."""
        new_gts = shared_settings.new_gts
        as_user(PIPELINE, shared_settings.rejected_gts.mkdir)
        os.chown(new_gts, 0, 0)
        new_gts.chmod(0o1777)
        drop(new_gts / "a.csv", b"bad", mode)
        drop(new_gts / "b.csv", b"bad", 0o600, PIPELINE)

        def night() -> list[str]:
            ground_truth.reject(shared_settings, [bad("a.csv"), bad("b.csv")])
            return warnings_of(caplog)

        told = as_user(PIPELINE, night)
        assert everything_in(new_gts).keys() == {
            *("a.csv", "rejected/b.csv", "rejected/b.csv.reason.json")
        }
        (line,) = [line for line in told if "a.csv" in line]
        assert "is torn" in line
        assert "remove it" in line

    def test_an_archived_file_that_may_not_be_removed_is_told(
        self, shared_settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The copy stays, which is ours alone; the other files are archived."""
        new_gts = shared_settings.new_gts
        os.chown(new_gts, 0, 0)
        new_gts.chmod(0o1777)
        drop(new_gts / "a.csv", b"theirs", 0o666)
        drop(new_gts / "b.csv", b"ours", 0o644, PIPELINE)
        drop(new_gts / "c.csv", b"unreadable", 0o600)
        learnt = {files.hash_bytes(content) for content in (b"theirs", b"ours", b"unreadable")}

        def night() -> tuple[list[str], list[str]]:
            return ground_truth.archive(shared_settings, learnt), warnings_of(caplog)

        moved, told = as_user(PIPELINE, night)
        assert moved == ["a.csv", "b.csv"]
        assert sorted(everything_in(new_gts)) == ["a.csv", "c.csv"]
        assert everything_in(shared_settings.used_gts) == {"a.csv": b"theirs", "b.csv": b"ours"}
        copied = (shared_settings.used_gts / "a.csv").stat()
        assert (copied.st_uid, stat.S_IMODE(copied.st_mode)) == (PIPELINE, 0o644)
        (line,) = told
        assert "a.csv" in line
        assert as_user(PIPELINE, night)[0] == []

    def test_a_file_that_we_may_not_read_is_no_recording(self, shared_settings: Settings) -> None:
        """Whoever lists new_gts/ goes on: `status`, the archive, `reproduce`."""
        drop(shared_settings.new_gts / "a.csv", b"theirs", 0o600)
        drop(shared_settings.new_gts / "b.csv", b"readable", 0o644)
        found = as_user(PIPELINE, lambda: ground_truth.hashes_in(shared_settings.new_gts))
        assert list(found.values()) == ["b.csv"]

    def test_withdraw_says_what_it_may_not_read(self, shared_settings: Settings) -> None:
        """In one line, with what to do."""
        drop(shared_settings.new_gts / "a.csv", b"theirs", 0o600)

        def find() -> str:
            house = withdraw._House(shared_settings, {}, {}, delete=False)
            with pytest.raises(PipelineError) as caught:
                house.find("a.csv")
            return str(caught.value)

        assert "a.csv is not readable; give the pipeline's user" in as_user(PIPELINE, find)

    def test_a_withdrawn_file_that_may_not_be_moved_disables_nothing(
        self, shared_settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The journal has it, and every start would try again."""
        new_gts = shared_settings.new_gts
        os.chown(new_gts, 0, 0)
        new_gts.chmod(0o1777)
        drop(new_gts / "a.csv", b"theirs", 0o644)
        entry = Withdrawn(
            sha256=files.hash_bytes(b"theirs"),
            known="",
            earlier=[],
            folder="new_gts",
            name="a.csv",
            kept_as="a.csv",
            reason="",
            who="",
            at="2026-01-01T00:00:00+00:00",
        )

        def start(deleting: bool) -> list[str]:
            journal = Journal(shared_settings.home)
            one = Withdrawn(**{**entry.__dict__, "kept_as": "" if deleting else "a.csv"})
            journal.append(one)
            ground_truth.finish_all(shared_settings, journal.read())
            return warnings_of(caplog)

        for deleting in (False, True):
            (line,) = as_user(PIPELINE, partial(start, deleting))
            assert "a.csv" in line
            assert (new_gts / "a.csv").exists()


@pytest.mark.usefixtures("ten_seconds")
class TestSwapped:
    """A file of new_gts/ becomes something else while we work."""

    def test_a_file_that_vanishes_meanwhile_is_no_failure(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the listing and the look."""
        monkeypatch.setattr(ground_truth, "waiting_names", lambda _: ["gone.csv"])
        assert ground_truth.hashes_in(settings.new_gts) == {}
        assert ground_truth.archive(settings, {"0"}) == []
        gone = settings.new_gts / "gone.csv"
        monkeypatch.setattr(files, "_being_written", lambda _: None)
        monkeypatch.setattr(files, "SETTLE_SECONDS", 0)
        assert files.settled([gone]) == []
        ground_truth.reject(settings, [bad("gone.csv")])
        assert everything_in(settings.home) == {}

    @pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
    def test_a_training_folder_never_waits_and_never_follows(
        self,
        settings: Settings,
        put: Callable[[Path], object],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Neither a pipe nor a link comes into it; the night is over, the next one reads again."""
        path = settings.new_gts / "a.csv"
        put(path)
        one = GroundTruthFile("a.csv", path, "0" * 64, 0)
        for with_links in (True, False):
            if not with_links:

                def refuse(*_: object, **__: object) -> None:
                    raise OSError(errno.EPERM, "no links here")

                monkeypatch.setattr(os, "link", refuse)
            with (
                pytest.raises(PipelineError, match=r"a\.csv changed while the cycle ran"),
                ground_truth.training_folder(settings, [one], {}),
            ):
                pass
        assert list(settings.home.glob(f"{ground_truth.STAGING_PREFIX}*")) == []

    def test_a_link_is_never_copied_into_the_training_data(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it points to may be secret."""
        path = settings.new_gts / "a.csv"
        path.write_bytes(b"a recording")
        os.link(path, settings.new_gts / "kept by the dropper")
        opened = files.open_regular

        def swapped(source: Path, *values: Any, **named: Any) -> Any:
            if source == path and not path.is_symlink():
                path.unlink()
                path.symlink_to("/etc/passwd")
            return opened(source, *values, **named)

        monkeypatch.setattr(files, "open_regular", swapped)
        moves = files.move_files({path: ""}, settings.used_gts, own_inode=True)
        assert moves.moved == {}
        assert everything_in(settings.used_gts) == {}


# --- Cost ---


THREE = ["a.csv", "b.csv", "c.csv"]


def killed_at(number: int, work: Callable[[], Any]) -> bool:
    """Work in a process that is killed at its n-th change of a folder; say whether it was."""
    child = os.fork()
    if child == 0:
        passed = 0

        def count(event: str, _values: tuple[Any, ...]) -> None:
            nonlocal passed
            if event in ("os.link", "os.remove", "os.rename"):
                passed += 1
                if passed == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(count)
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def begin(settings: Settings, what: str) -> None:
    """Begin what is killed, as a command does."""
    with recovery.unfinished_until_done(settings, "run"):
        if what == "reject":
            ground_truth.reject(settings, [bad(name) for name in THREE])
        elif what == "requeue":
            ground_truth.requeue(settings, THREE)
        else:
            ground_truth.archive(settings, {files.hash_bytes(name.encode()) for name in THREE})


class TestManyFiles:
    """Thousands of tiny bad files held the lock for minutes: the disk was waited for each."""

    def test_the_disk_is_waited_for_as_often_as_for_one(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """But for the contents of the reasons, which the filesystem writes together."""
        names = [f"{number:03}.csv" for number in range(200)]
        for name in names:
            (settings.new_gts / name).write_bytes(b"bad")
        synced, fsync = [], os.fsync

        def noted(descriptor: int) -> None:
            synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", noted)
        ground_truth.reject(settings, [bad(name) for name in names])
        assert synced.count(False) == len(names)
        assert synced.count(True) < 10
        synced.clear()
        assert len(ground_truth.requeue(settings, [])) == len(names)
        assert len(synced) < 10
        synced.clear()
        learnt = {files.hash_bytes(b"bad")}
        assert ground_truth.archive(settings, learnt) == names[:1]
        assert len(synced) < 10

    @pytest.mark.parametrize("own_inode", [False, True])
    def test_every_new_name_is_durable_before_the_first_old_one_goes(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, own_inode: bool
    ) -> None:
        """And what a copy holds before it has a name: a power cut may come at any time."""
        paths = [settings.new_gts / f"{number}.csv" for number in range(3)]
        for path in paths:
            path.write_bytes(b"content")
            path.chmod(0o666 if own_inode else 0o644)
        events: list[str] = []
        fsync, link, unlink = os.fsync, os.link, Path.unlink

        def synced(descriptor: int) -> None:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            events.append("folder synced" if is_folder else "copy synced")
            fsync(descriptor)

        def linked(*values: Any, **named: Any) -> None:
            events.append("named")
            link(*values, **named)

        def unlinked(path: Path, **named: Any) -> None:
            events.extend(["removed"] if path in paths else [])
            unlink(path, **named)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "link", linked)
        monkeypatch.setattr(Path, "unlink", unlinked)
        files.move_files(dict.fromkeys(paths, ""), settings.used_gts, own_inode=own_inode)
        assert events == [
            *(["copy synced"] * 3 if own_inode else []),
            *(["named"] * 3 + ["folder synced"] + ["removed"] * 3 + ["folder synced"] * 2),
        ]

    @pytest.mark.parametrize("what", ["reject", "requeue", "archive", "archive copies"])
    def test_killed_anywhere_no_file_is_lost_or_doubled(self, tmp_path: Path, what: str) -> None:
        """Whatever was begun together is finished by the next start."""
        for kill_at in itertools.count(1):
            settings = make_folders(tmp_path / f"{kill_at}")
            for name in THREE:
                (settings.new_gts / name).write_text(name)
                (settings.new_gts / name).chmod(0o666 if what == "archive copies" else 0o644)
            if what == "requeue":
                ground_truth.reject(settings, [bad(name) for name in THREE])
            was_killed = killed_at(kill_at, partial(begin, settings, what))
            recovery.tidy(settings)
            found = {
                folder: sorted(path.read_text() for path in folder.glob("*.csv"))
                for folder in (settings.new_gts, settings.used_gts, settings.rejected_gts)
            }
            if what == "archive copies":  # one that is still there is a duplicate to intake
                used = found[settings.used_gts]
                found[settings.new_gts] = sorted({*found[settings.new_gts]} - {*used})
            assert sorted(itertools.chain(*found.values())) == THREE, kill_at
            assert list(settings.home.rglob(".pipeline-*")) == []
            for name in ground_truth.rejected_names(settings):
                assert (settings.rejected_gts / f"{name}{ground_truth.REASON_SUFFIX}").is_file()
            if not was_killed:
                break
        assert kill_at > len(THREE)

    @pytest.mark.sampled(0.5)
    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")
    @pytest.mark.parametrize(
        ("n_objects", "most"), [(400, 12), (20_000, 12)], ids=["few objects", "many objects"]
    )
    def test_a_large_file_takes_no_more_than_twelve_times_its_size(
        self, tmp_path: Path, n_objects: int, most: float, figure: Callable[[str, Any], None]
    ) -> None:
        """All that intake and training make of it; and next to nothing if it is refused."""
        path = write_large(tmp_path / "a.csv", 300_000, n_objects)
        ratio = peak_memory(path, {})
        figure(
            f"peak memory of a {path.stat().st_size / 1e6:.0f} MB file, its size", f"{ratio:.1f}"
        )
        assert ratio < most
        assert peak_memory(path, {"max_rows": 299_999}) < 2


# --- Another user of the machine ---


@needs_root
class TestAnotherUserOfTheMachine:
    """The lock and what the home keeps hidden."""

    def test_nobody_else_can_hold_the_lock(self, shared_settings: Settings) -> None:
        """`flock -s` on a file that all may read held it for ever."""
        lock = shared_settings.home / files.LOCK_NAME

        def hold(seconds: float) -> str:
            try:
                with lock.open("rb") as stream:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    time.sleep(seconds)
                    return "held"
            except PermissionError:
                return "refused"

        def work() -> None:
            with files.exclusive_lock(shared_settings, "run"):
                pass

        as_user(PIPELINE, work)
        assert as_user(DROPPER, lambda: hold(0)) == "refused"
        lock.chmod(0o644)  # of an older edition
        assert as_user(DROPPER, lambda: hold(0)) == "held"
        as_user(PIPELINE, work)
        assert as_user(DROPPER, lambda: hold(0)) == "refused"

    @pytest.mark.parametrize("mode", [0o600, 0o666])
    def test_a_lock_of_another_user_is_told_in_one_line(
        self, shared_settings: Settings, mode: int
    ) -> None:
        """Such as one that root's run left behind."""
        lock = shared_settings.home / files.LOCK_NAME
        lock.touch()
        lock.chmod(mode)

        def work() -> list[str]:
            told = []
            for lock_taken in (
                files.exclusive_lock(shared_settings, "run"),
                files.lock_without_writing(shared_settings),
            ):
                with pytest.raises(PipelineError) as caught, lock_taken:
                    pass
                told.append(str(caught.value))
            return told

        for line in as_user(PIPELINE, work):
            assert f"{lock} belongs to another user" in line

    def test_what_the_home_keeps_is_ours_alone(self, settings: Settings) -> None:
        """Also where an older edition left it readable."""
        names = (recovery.NOTE_NAME, notices.HEARTBEAT_NAME, Journal(settings.home).path.name)
        with recovery.unfinished_until_done(settings, "run"):
            Journal(settings.home).append()
            notices.note_end(settings, "waiting", "few files", None)
            for name in names:
                assert stat.S_IMODE((settings.home / name).stat().st_mode) == 0o600
                (settings.home / name).chmod(0o644)
            Journal(settings.home).append()
            notices.note_end(settings, "waiting", "few files", None)
            for name in names[1:]:
                assert stat.S_IMODE((settings.home / name).stat().st_mode) == 0o600

    @pytest.mark.parametrize("name", ["", "used_gts", "model", "mlflow_server", "reports"])
    @pytest.mark.parametrize(("mode", "is_told"), [(0o755, False), (0o775, True), (0o757, True)])
    def test_a_home_that_others_can_write_to_is_told(
        self, settings: Settings, name: str, mode: int, is_told: bool
    ) -> None:
        """With the command that mends it; new_gts/ is for others."""
        folder = settings.home / name
        folder.mkdir(exist_ok=True)
        settings.new_gts.chmod(0o777)
        os.chown(folder, 0, DROPPER)
        folder.chmod(mode)
        told = status.open_to_others(settings)
        assert bool(told) is is_told
        if is_told:
            assert f"chmod go-w {folder}" in told

    def test_a_private_group_is_nobody_else(self, settings: Settings) -> None:
        """Debian gives every user one, and a umask that lets it write."""
        settings.used_gts.chmod(0o775)
        os.chown(settings.used_gts, 0, 0)
        assert status.open_to_others(settings) == ""


class TestWhileWeWork:
    """What a dropper changes between one look and the next, or holds."""

    def test_a_lease_to_write_is_no_more_than_a_file_that_is_still_being_written(
        self, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Taken by whoever owns a file, without any right; nobody else can open it meanwhile."""
        caplog.set_level(logging.INFO, "pipeline")
        held, other = settings.new_gts / "held.csv", settings.new_gts / "other.csv"
        for path in (held, other):
            path.write_text("a\n1\n")
        before = signal.signal(signal.SIGIO, signal.SIG_IGN)
        descriptor = os.open(held, os.O_RDWR)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            assert files.settled([held, other]) == [other]
            assert list(ground_truth.hashes_in(settings.new_gts).values()) == ["other.csv"]
            assert ground_truth.archive(settings, {files.hash_file(other)}) == ["other.csv"]
        finally:
            os.close(descriptor)
            signal.signal(signal.SIGIO, before)
        assert "held.csv is still being written; left for the next run" in caplog.text

    def test_what_is_swapped_in_while_learnt_files_are_archived_goes_back(
        self,
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Another content, a link: neither gets among the training data."""
        for name in ("a.csv", "b.csv", "c.csv"):
            (settings.new_gts / name).write_text(f"a\n{name}\n")
        learnt = set(ground_truth.hashes_in(settings.new_gts))
        move = files.move_files

        def swap(names: Any, folder: Path, **named: Any) -> Any:
            if folder == settings.used_gts:
                (settings.new_gts / "a.csv").write_text("a\nfalse labels\n")
                (settings.new_gts / "b.csv").unlink()
                (settings.new_gts / "b.csv").symlink_to("/etc/passwd")
            return move(names, folder, **named)

        monkeypatch.setattr(ground_truth, "move_files", swap)
        assert ground_truth.archive(settings, learnt) == ["c.csv"]
        assert [path.name for path in settings.used_gts.iterdir()] == ["c.csv"]
        assert sorted(path.name for path in settings.new_gts.iterdir()) == ["a.csv", "b.csv"]
        assert caplog.text.count("changed while it was moved; it goes back") == 2

    def test_a_sparse_terabyte_is_not_hashed(self, settings: Settings, ten_seconds: None) -> None:
        """It would take an hour with the lock held; no recording is so large."""
        with (settings.new_gts / "large.csv").open("wb") as stream:
            stream.truncate(10**12)
        assert ground_truth.hashes_in(settings.new_gts, max_mb=settings.max_file_mb) == {}
        assert ground_truth.archive(settings, {"0" * 64}) == []

    def test_a_thousand_long_names_that_begin_alike_cost_a_thousand_looks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not a look at each of the names before."""
        looks = []
        exists = os.path.lexists

        def look(path: Path) -> bool:
            looks.append(path)
            return exists(path)

        monkeypatch.setattr(os.path, "lexists", look)
        for number in range(500):
            name = files.free_name("x" * 240 + f"{number}.csv", tmp_path)
            (tmp_path / name).touch()
        assert len([*tmp_path.iterdir()]) == 500
        assert len(looks) < 500 * (files.MOST_NUMBERED + 10)

    def test_a_name_of_all_bytes_that_a_filesystem_allows_stops_no_telling(
        self, settings: Settings
    ) -> None:
        """There is no room for the name of its reason."""
        settings.rejected_gts.mkdir()
        (settings.rejected_gts / ("x" * 255)).touch()
        assert ground_truth.rejected_times(settings) == {}

    def test_no_message_names_a_descriptor(self, settings: Settings) -> None:
        """But the folder that a person can look at."""
        settings.rejected_gts.mkdir()
        with (
            pytest.raises(OSError) as caught,
            files.own_folder(settings.rejected_gts, settings.home) as folder,
        ):
            (folder / ("x" * 256)).touch()
        assert caught.value.filename == str(settings.rejected_gts / ("x" * 256))
