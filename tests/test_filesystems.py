"""Filesystems without links, locks or writing, and two mounts of one disk: nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FAST_WORDS, ROOT, make_home
from crash_sweep import describe

from pipeline_orchestrator import main

Run = Callable[..., subprocess.CompletedProcess[str]]
MOVE = """
import sys
from pathlib import Path
from retraining.files import move_files
folder = Path(sys.argv[1])
done = move_files({one: "" for one in sorted((folder / "new").iterdir())}, folder / "used")
print(len(done.moved), len(done.left))
"""
ARCHIVE = """
import logging, sys
from pathlib import Path
from retraining import ground_truth
from retraining.files import hash_file
from retraining.settings import Settings
logging.basicConfig(format="%(message)s")
settings = Settings(home=Path(sys.argv[1]))
known = [hash_file(one) for one in settings.new_gts.glob("*.csv")]
print(ground_truth.archive(settings, known), ground_truth.archive(settings, known))
"""
REJECT = """
import logging, sys
from pathlib import Path
from retraining import ground_truth
from retraining.settings import Settings
logging.basicConfig(format="%(message)s")
one = ground_truth.Refusal("a.csv", "is a duplicate", "delete it")
ground_truth.reject(Settings(home=Path(sys.argv[1])), [one])
"""
LOCK = """
import sys
from pathlib import Path
from retraining import files
from retraining.errors import PipelineError
from retraining.settings import Settings
settings = Settings(home=Path(sys.argv[1]))
lock = files.lock_without_writing(settings) if len(sys.argv) > 2 else files.exclusive_lock(
    settings, "run")
try:
    with lock:
        print("held")
except PipelineError as error:
    print(error.exit_status, error)
"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the library that answers as other filesystems do, or skip."""
    if shutil.which("cc") is None or sys.platform != "linux":
        pytest.skip("no C compiler (cc) for the shim")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = ROOT / "tests/tools/filesystem_shim.c"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source, "-ldl"], check=True
    )
    return library


@pytest.fixture
def run(shim: Path) -> Run:
    """Give a runner of Python under the shim."""

    def start(*words: object, **answers: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
            env={
                **os.environ,
                "LD_PRELOAD": str(shim),
                **{name: str(value) for name, value in answers.items()},
            },
        )
        assert "Traceback" not in done.stderr or "OSError" in done.stderr, done.stderr
        return done

    return start


def in_own_mounts(home: Path, mounts: str, code: str) -> str:
    """Run code with mounts that nobody else sees; return all that it said."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount anything (unshare -m)")
    done = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-ec",
            f'{mounts}\nexec "$@"',
            "sh",
            sys.executable,
            "-c",
            code,
            home,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def two_folders(tmp_path: Path) -> Path:
    """Give a folder with two files to move, the name of one of which is taken."""
    for name in ("new", "used"):
        (tmp_path / name).mkdir()
    (tmp_path / "new/a.csv").write_text("a")
    (tmp_path / "new/b.csv").write_text("b")
    (tmp_path / "used/b.csv").write_text("another b")
    return tmp_path


class TestWithoutLinks:
    """FAT, CIFS, FUSE and others."""

    @pytest.mark.parametrize(
        "number",
        [
            *(errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK),
            *(errno.EINVAL, errno.EXDEV, 524),
        ],
    )
    def test_files_are_moved_whatever_the_number(
        self, run: Run, two_folders: Path, number: int
    ) -> None:
        """None is overwritten, none stays, no temporary file is left."""
        assert run("-c", MOVE, two_folders, LINK_ERRNO=number).stdout == "2 0\n"
        used = {one.name: one.read_text() for one in (two_folders / "used").iterdir()}
        assert used == {"a.csv": "a", "b.csv": "another b", "b-1.csv": "b"}
        assert [*(two_folders / "new").iterdir()] == []

    @pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
    def test_a_disk_that_fails_is_told(self, run: Run, two_folders: Path, number: int) -> None:
        """It is no filesystem without links; everything stays where it was."""
        done = run("-c", MOVE, two_folders, LINK_ERRNO=number)
        assert os.strerror(number) in done.stderr
        assert len([*(two_folders / "new").iterdir()]) == 2
        assert [one.name for one in (two_folders / "used").iterdir()] == ["b.csv"]

    @pytest.mark.slow
    def test_a_whole_cycle(
        self, home: Path, fast_training: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every file arrives, and nothing else is left."""

        def has_none(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        before = describe(home)
        monkeypatch.setattr(os, "link", has_none)
        assert main(["run", *FAST_WORDS, "--home", str(home)]) == 0
        after = describe(home)
        assert (after["new"], after["left over"]) == ([], [])
        assert after["used"] == sorted(before["new"] + before["used"])


class TestLocks:
    """What flock answers where files come over a network."""

    def test_a_lock_that_is_held_on_cifs(self, run: Run, tmp_path: Path) -> None:
        """EACCES: tried later."""
        for words in ([], ["look"]):
            (tmp_path / ".pipeline.lock").touch(0o600)
            said = run("-c", LOCK, tmp_path, *words, FLOCK_ERRNO=errno.EACCES).stdout
            assert said.startswith("75 ")
            assert "is held by" in said

    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
    def test_a_filesystem_without_locks(self, run: Run, tmp_path: Path, number: int) -> None:
        """Refused with the remedy: two runs at once would do harm."""
        said = run("-c", LOCK, tmp_path, FLOCK_ERRNO=number).stdout
        assert said.startswith(f"1 the filesystem of {tmp_path}/.pipeline.lock gives no lock (")
        assert "rpc.statd" in said

    def test_nfs_locks_what_may_be_written(self, run: Run, tmp_path: Path) -> None:
        """Also where nothing is written, as in a dry run."""
        lock = tmp_path / ".pipeline.lock"
        lock.touch(0o600)
        for words in ([], ["look"]):
            assert run("-c", LOCK, tmp_path, *words, FLOCK_AS_NFS=1).stdout == "held\n"
        assert lock.read_bytes() == b""

    def test_a_lock_that_may_only_be_read(self, tmp_path: Path) -> None:
        """A home on a disk that is mounted read-only can be looked at."""
        (tmp_path / ".pipeline.lock").touch(0o600)
        mounts = f"mount --bind {tmp_path} {tmp_path}; mount -o remount,bind,ro {tmp_path}"
        code = LOCK.replace("len(sys.argv) > 2", "True")
        assert in_own_mounts(tmp_path, mounts, code) == "held\n"
        mounts = f"export LD_PRELOAD= FLOCK_AS_NFS=1; {mounts}"
        assert in_own_mounts(tmp_path, mounts, code) == "held\n"


class TestMounts:
    """Folders of the home on mounts of their own."""

    @pytest.fixture
    def small_home(self, tmp_path: Path) -> Path:
        """Give a home with two new files."""
        home = make_home(tmp_path / "home")
        for name in ("a", "b"):
            (home / f"new_gts/{name}.csv").write_text(name)
        return home

    def test_two_mounts_of_one_disk(self, small_home: Path) -> None:
        """One device number, and still neither links nor renames between them."""
        mounts = "\n".join(
            f"mount --bind {small_home}/{name} {small_home}/{name}"
            for name in ("new_gts", "used_gts")
        )
        said = in_own_mounts(small_home, mounts, ARCHIVE)
        assert said == "['a.csv', 'b.csv'] []\n"
        assert [*(small_home / "new_gts").glob("*.csv")] == []
        # A crash came between the copy and the removal.
        shutil.copy2(small_home / "used_gts/a.csv", small_home / "new_gts/a.csv")
        assert in_own_mounts(small_home, mounts, ARCHIVE) == "[] []\n"
        assert [*(small_home / "new_gts").glob("*.csv")] == []
        assert sorted(one.name for one in (small_home / "used_gts").iterdir()) == ["a.csv", "b.csv"]

    @pytest.mark.parametrize("same_disk", [True, False])
    def test_new_gts_that_may_only_be_read(self, small_home: Path, same_disk: bool) -> None:
        """Each file is copied once and no more; what to do is told."""
        new = small_home / "new_gts"
        mounts = f"mount --bind {new} {new}\nmount -o remount,bind,ro {new}"
        if not same_disk:
            mounts = (
                f"cp -r {new} {small_home}/kept\nmount -t tmpfs tmpfs {new}\n"
                f"cp {small_home}/kept/* {new}\nmount -o remount,ro {new}"
            )
        for night in range(3):
            said = in_own_mounts(small_home, mounts, ARCHIVE)
            assert ("['a.csv', 'b.csv'] []" in said) == (night == 0), said
            if night == 0:
                assert "a.csv was copied, but may not be moved (Read-only file system)" in said
                assert f"mount {new} for writing" in said
            shutil.rmtree(small_home / "kept", ignore_errors=True)
        assert sorted(one.name for one in (small_home / "used_gts").iterdir()) == ["a.csv", "b.csv"]
        assert sorted(one.name for one in new.glob("*.csv")) == ["a.csv", "b.csv"]

    def test_what_cannot_go_to_rejected_stays_and_is_told(self, small_home: Path) -> None:
        """The nights after, when the copies are known."""
        new = small_home / "new_gts"
        mounts = f"mount --bind {new} {new}\nmount -o remount,bind,ro {new}"
        said = in_own_mounts(small_home, mounts, REJECT)
        assert "rejected cannot be made: Read-only file system; let the pipeline's user" in said
        assert "stays in new_gts/ until then: a.csv (is a duplicate)" in said
        (new / "rejected").mkdir()
        said = in_own_mounts(small_home, mounts, REJECT)
        assert "rejected may not be written to" in said
        assert sorted(one.name for one in new.glob("*.csv")) == ["a.csv", "b.csv"]
