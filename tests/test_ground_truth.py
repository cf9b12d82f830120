"""Intake, rejection, requeue, archive and the training folder, on real ground truth files."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from sample_gts import make_recording
from test_files import GOOD_NAMES, TRAPS, everything_in, fail_with, python_process

import train_classification_model as training
from retraining import ground_truth
from retraining.errors import PipelineError, TryLaterError
from retraining.files import hash_bytes, move_file, waiting_names
from retraining.ground_truth import GroundTruthFile, Refusal
from retraining.settings import Settings
from retraining.training import load_training_module


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return the settings of an empty home."""
    home = tmp_path / "home"
    for name in ("new_gts", "used_gts"):
        (home / name).mkdir(parents=True)
    return Settings(home=home)


def recording(seed: int) -> bytes:
    """Return a small valid ground truth file."""
    return make_recording(seed, n_tracks=2).to_csv(index=False).encode()


def one_of(settings: Settings, name: str, content: bytes) -> GroundTruthFile:
    """Put a file into new_gts/ and return it as intake would."""
    (settings.new_gts / name).write_bytes(content)
    return GroundTruthFile(name, hash_bytes(content), 0, "", read=lambda: None)


def taken_in(
    settings: Settings, trained_on: Mapping[str, str] | None = None
) -> ground_truth.Intake:
    """Read new_gts/ with the default training module."""
    return ground_truth.take_in(settings, load_training_module(settings), trained_on or {})


class TestIntake:
    """`take_in`, `reject` and `requeue`."""

    def test_only_regular_files_of_the_given_sizes_are_hashed(self, tmp_path: Path) -> None:
        """No link, no folder, no pipe (it would wait for ever), no file of another size."""
        (tmp_path / "three.csv").write_bytes(b"abc")
        (tmp_path / "four.csv").write_bytes(b"abcd")
        (tmp_path / "link.csv").symlink_to("three.csv")
        (tmp_path / "folder.csv").mkdir()
        os.mkfifo(tmp_path / "pipe.csv")
        assert list(ground_truth.hashes_in(tmp_path, {3}).values()) == ["three.csv"]
        assert sorted(ground_truth.hashes_in(tmp_path).values()) == ["four.csv", "three.csv"]

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
        assert intake.files[0].sha256 == hash_bytes(content)
        assert len(intake.files[0].rows) == content.count(b"\n") - 1
        assert intake.files[0].n_rows == len(intake.files[0].rows)

    def test_a_large_batch_is_not_kept_in_memory_but_read_again(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only what fits is kept; the rows are the same."""
        for number in (1, 2):
            (settings.new_gts / f"{number}.csv").write_bytes(recording(number))
        kept = taken_in(settings).files
        monkeypatch.setattr(ground_truth, "KEPT_ROWS", kept[0].n_rows)
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
        monkeypatch.setattr(ground_truth, "KEPT_ROWS", 0)
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
            trained_on[hash_bytes(content)] = "first.csv"
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
        ground_truth.reject(settings, intake.refusals)
        assert [one.name for one in intake.files] == ["good.csv"]
        assert [(one.name, one.what) for one in intake.refusals] == [("odd.csv", what)]
        assert waiting_names(settings.new_gts) == ["good.csv"]
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
        ground_truth.reject(settings, taken_in(settings).refusals)
        (kept,) = ground_truth.rejected_names(settings)
        reason = settings.rejected_gts / f"{kept}{ground_truth.REASON_SUFFIX}"
        assert (settings.rejected_gts / kept).read_bytes() == b"bad"
        assert kept.endswith(".csv")
        assert json.loads(reason.read_bytes())["file"] == path.name
        assert waiting_names(settings.new_gts) == []

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
        ground_truth.reject(settings, intake.refusals)
        assert ground_truth.rejected_names(settings) == [name]

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
        ground_truth.reject(settings, [Refusal("a.csv", "is torn", "mend it")])
        reason = json.loads((settings.rejected_gts / "a.csv.reason.json").read_bytes())
        assert reason.pop("rejected_at").startswith("2")
        assert reason == {"file": "a.csv", "what": "is torn", "remedy": "mend it"}
        assert (settings.rejected_gts / "a.csv").read_bytes() == b"bad"
        assert "rejected 'a.csv': is torn; mend it" in caplog.text

    @pytest.mark.usefixtures("ten_seconds")
    def test_a_rejected_file_is_listed_with_its_reason(self, settings: Settings) -> None:
        """And without one, where somebody removed, edited or replaced it."""
        assert ground_truth.rejected_files(settings) == ()
        (settings.new_gts / "a.csv").write_bytes(b"bad")
        refusal = Refusal("a.csv", "is torn", "mend it")
        ground_truth.reject(settings, [refusal])
        assert ground_truth.rejected_files(settings) == (refusal,)
        reason = settings.rejected_gts / "a.csv.reason.json"
        for content in (b"", b"null", b"[1]", b'{"what": ', b"[" * 10**5):
            reason.write_bytes(content)
            assert ground_truth.rejected_files(settings) == (Refusal("a.csv", "", ""),)
        reason.unlink()
        os.mkfifo(reason)
        assert ground_truth.rejected_files(settings) == (Refusal("a.csv", "", ""),)

    def test_the_same_name_rejected_twice_is_kept_twice(self, settings: Settings) -> None:
        """Neither file nor reason is overwritten."""
        for content in (b"first", b"second"):
            (settings.new_gts / "a.csv").write_bytes(content)
            ground_truth.reject(settings, [Refusal("a.csv", content.decode(), "mend it")])
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
            ground_truth.reject(settings, [Refusal(name, "is torn", "mend it")])
        assert ground_truth.requeue(settings, names) == back
        assert waiting_names(settings.new_gts) == back
        left = sorted({"a.csv", "b.csv"} - set(back))
        assert ground_truth.rejected_names(settings) == left
        reasons = sorted(path.name for path in settings.rejected_gts.glob("*.json"))
        assert reasons == [f"{name}.reason.json" for name in left]

    @pytest.mark.parametrize("unknown", ["c.csv", "a.csv.reason.json", "../outside.csv", ""])
    def test_an_unknown_name_moves_nothing(self, settings: Settings, unknown: str) -> None:
        """The message says what is there instead."""
        (settings.new_gts / "outside.csv").write_bytes(b"outside")
        (settings.new_gts / "a.csv").write_bytes(b"bad")
        ground_truth.reject(settings, [Refusal("a.csv", "is torn", "mend it")])
        before = everything_in(settings.home)
        with pytest.raises(PipelineError, match=r"it holds: a\.csv$"):
            ground_truth.requeue(settings, ["a.csv", unknown])
        assert everything_in(settings.home) == before

    def test_nothing_rejected_is_nothing_to_requeue(self, settings: Settings) -> None:
        """Without the folder there is no file, and no error unless one is named."""
        assert ground_truth.requeue(settings, []) == []
        with pytest.raises(PipelineError, match="it holds: nothing"):
            ground_truth.requeue(settings, ["a.csv"])

    def test_requeue_overwrites_no_new_file_of_that_name(self, settings: Settings) -> None:
        """The mended one comes back under a free name."""
        (settings.new_gts / "a.csv").write_bytes(b"mended")
        ground_truth.reject(settings, [Refusal("a.csv", "is torn", "mend it")])
        (settings.new_gts / "a.csv").write_bytes(b"newer")
        assert ground_truth.requeue(settings, []) == ["a-1.csv"]
        assert everything_in(settings.new_gts) == {"a.csv": b"newer", "a-1.csv": b"mended"}


class TestArchive:
    """`archive`."""

    def test_archive_goes_by_content(self, settings: Settings) -> None:
        """A renamed file is archived; one that changed since, or is new, stays."""
        (settings.new_gts / "renamed.csv").write_bytes(b"trained on")
        (settings.new_gts / "changed.csv").write_bytes(b"trained on, then changed")
        (settings.new_gts / "new.csv").write_bytes(b"new")
        trained_on = {hash_bytes(b"trained on"): "original.csv"}
        assert ground_truth.archive(settings, trained_on) == ["renamed.csv"]
        assert everything_in(settings.used_gts) == {"renamed.csv": b"trained on"}
        assert sorted(everything_in(settings.new_gts)) == ["changed.csv", "new.csv"]
        assert ground_truth.archive(settings, trained_on) == []

    def test_archive_keeps_equal_names(self, settings: Settings) -> None:
        """Same name, other content: a free name, nothing overwritten."""
        (settings.used_gts / "a.csv").write_bytes(b"old")
        (settings.new_gts / "a.csv").write_bytes(b"new")
        assert ground_truth.archive(settings, {hash_bytes(b"new")}) == ["a-1.csv"]
        assert everything_in(settings.used_gts) == {"a.csv": b"old", "a-1.csv": b"new"}

    def test_archive_leaves_a_true_copy_for_intake(self, settings: Settings) -> None:
        """It was archived before; the copy is a duplicate and gets a reason."""
        for folder in (settings.new_gts, settings.used_gts):
            (folder / "a.csv").write_bytes(b"trained on")
        before = everything_in(settings.home)
        assert ground_truth.archive(settings, {hash_bytes(b"trained on")}) == []
        assert everything_in(settings.home) == before

    def test_archive_touches_plain_files_only(self, settings: Settings) -> None:
        """Links, folders and pipes are no recordings."""
        (settings.home / "target.csv").write_bytes(b"trained on")
        (settings.new_gts / "link.csv").symlink_to(settings.home / "target.csv")
        (settings.new_gts / "folder.csv").mkdir()
        os.mkfifo(settings.new_gts / "pipe.csv")
        assert ground_truth.archive(settings, {hash_bytes(b"trained on")}) == []
        assert len(waiting_names(settings.new_gts)) == 3

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
                move_file(settings.new_gts / "a.csv", folder)
        assert (settings.new_gts / "a.csv").stat().st_nlink == 2
        assert ground_truth.archive(settings, {}) == []
        assert waiting_names(settings.new_gts) == ["untouched.csv"]
        older = {"a.csv": b"older"} if collision else {}
        assert everything_in(folder) == {**older, "a-1.csv" if collision else "a.csv": b"abc"}


class TestTrainingFolder:
    """`training_folder` and what it leaves."""

    def test_it_holds_old_and_new_files_as_hard_links(self, settings: Settings) -> None:
        """Nothing is copied; an equal name becomes a free one; the manifest names what is there."""
        (settings.used_gts / "a.csv").write_bytes(b"old")
        files = [one_of(settings, "a.csv", b"new"), one_of(settings, "b.csv", b"other")]
        with ground_truth.training_folder(settings, files) as (folder, manifest):
            assert everything_in(folder) == {"a.csv": b"old", "a-1.csv": b"new", "b.csv": b"other"}
            assert (folder / "a-1.csv").samefile(settings.new_gts / "a.csv")
            assert manifest == {
                "a.csv": hash_bytes(b"old"),
                "a-1.csv": hash_bytes(b"new"),
                "b.csv": hash_bytes(b"other"),
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
        with ground_truth.training_folder(settings, files) as (folder, _):
            assert everything_in(folder) == {"a.csv": b"new"}
            assert (settings.new_gts / "a.csv").stat().st_nlink == 1

    def test_only_the_batch_is_added(self, settings: Settings) -> None:
        """A file that came after intake waits for the next cycle."""
        (settings.new_gts / "late.csv").write_bytes(b"late")
        with ground_truth.training_folder(settings, []) as (folder, manifest):
            assert (everything_in(folder), manifest) == ({}, {})

    def test_a_file_that_changed_since_intake_ends_the_cycle(self, settings: Settings) -> None:
        """What was judged must be what is trained on."""
        files = [one_of(settings, "a.csv", b"read")]
        (settings.new_gts / "a.csv").write_bytes(b"changed")
        with (
            pytest.raises(TryLaterError, match=r"a\.csv changed"),
            ground_truth.training_folder(settings, files),
        ):
            pytest.fail("was trained on")
        assert list(settings.home.glob(f"{ground_truth.STAGING_PREFIX}*")) == []

    @pytest.mark.parametrize("where", ["new_gts", "used_gts"])
    def test_a_file_that_changes_during_training_ends_the_cycle(
        self, settings: Settings, where: str
    ) -> None:
        """Written into the very file that the hard link shows."""
        files = [one_of(settings, "new.csv", b"new")]
        (settings.used_gts / "used.csv").write_bytes(b"used")
        with (
            pytest.raises(TryLaterError, match="changed during training"),
            ground_truth.training_folder(settings, files),
        ):
            (settings.home / where / f"{where.removesuffix('_gts')}.csv").write_bytes(b"changed")
        assert list(settings.home.glob(f"{ground_truth.STAGING_PREFIX}*")) == []

    def test_a_recording_twice_in_used_gts_is_an_error(self, settings: Settings) -> None:
        """One copy would be tested by a model that was trained on the other."""
        for name in ("a.csv", "b.csv"):
            (settings.used_gts / name).write_bytes(b"same")
        with (
            pytest.raises(PipelineError, match=r"twice, as a\.csv and b\.csv; delete one"),
            ground_truth.training_folder(settings, []),
        ):
            pytest.fail("was trained on")
        assert list(settings.home.glob(f"{ground_truth.STAGING_PREFIX}*")) == []

    def test_it_is_removed_when_training_fails(self, settings: Settings) -> None:
        """And the files stay where they were."""
        files = [one_of(settings, "a.csv", b"new")]
        with (
            pytest.raises(ZeroDivisionError),
            ground_truth.training_folder(settings, files),
        ):
            raise ZeroDivisionError
        assert everything_in(settings.home) == {"new_gts/a.csv": b"new"}

    def test_the_folder_of_a_dead_cycle_is_removed(self, settings: Settings) -> None:
        """Its files have their other names; other folders stay."""
        files = [one_of(settings, "a.csv", b"new")]
        left_over = settings.home / f"{ground_truth.STAGING_PREFIX}dead"
        left_over.mkdir()
        os.link(settings.new_gts / files[0].name, left_over / "a.csv")
        ground_truth.remove_training_folders(settings)
        assert everything_in(settings.home) == {"new_gts/a.csv": b"new"}
        assert sorted(path.name for path in settings.home.iterdir()) == ["new_gts", "used_gts"]
