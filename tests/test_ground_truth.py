"""Rejection, requeue, archive and the training folder, on real files."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from test_files import everything_in, fail_with, move_file

from retraining import ground_truth
from retraining.errors import PipelineError, TryLaterError
from retraining.files import hash_bytes, waiting_names
from retraining.ground_truth import GroundTruthFile, Refusal
from retraining.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return the settings of an empty home."""
    home = tmp_path / "home"
    for name in ("new_gts", "used_gts"):
        (home / name).mkdir(parents=True)
    return Settings(home=home)


def one_of(settings: Settings, name: str, content: bytes) -> GroundTruthFile:
    """Put a file into new_gts/ and return it as intake would."""
    (settings.new_gts / name).write_bytes(content)
    return GroundTruthFile(name, settings.new_gts / name, hash_bytes(content), 0)


class TestRejectedFiles:
    """`hashes_in`, `reject` and `requeue`."""

    def test_only_regular_files_of_the_given_sizes_are_hashed(self, tmp_path: Path) -> None:
        """No link, no folder, no pipe (it would wait for ever), no file of another size."""
        (tmp_path / "three.csv").write_bytes(b"abc")
        (tmp_path / "four.csv").write_bytes(b"abcd")
        (tmp_path / "link.csv").symlink_to("three.csv")
        (tmp_path / "folder.csv").mkdir()
        os.mkfifo(tmp_path / "pipe.csv")
        assert list(ground_truth.hashes_in(tmp_path, {3}).values()) == ["three.csv"]
        assert sorted(ground_truth.hashes_in(tmp_path).values()) == ["four.csv", "three.csv"]

    def test_a_rejected_file_lies_beside_its_reason(
        self, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What is wrong, what to do, and when; the log says so too."""
        (settings.new_gts / "a.csv").write_bytes(b"bad")
        ground_truth.reject(settings, [Refusal("a.csv", "is torn", "mend it")])
        reason = json.loads((settings.rejected_gts / "a.csv.reason.json").read_bytes())
        assert reason.pop("rejected_at").startswith("2")
        assert reason == {"file": "a.csv", "what": "is torn", "remedy": "mend it", "kind": ""}
        assert (settings.rejected_gts / "a.csv").read_bytes() == b"bad"
        assert (
            "rejected 'a.csv': is torn; mend it (then: pipeline_orchestrator.py requeue)"
            in caplog.text
        )

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
        with ground_truth.training_folder(settings, files, {}) as (folder, manifest):
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
        with ground_truth.training_folder(settings, files, {}) as (folder, _):
            assert everything_in(folder) == {"a.csv": b"new"}
            assert (settings.new_gts / "a.csv").stat().st_nlink == 1

    def test_only_the_batch_is_added(self, settings: Settings) -> None:
        """A file that came after intake waits for the next cycle."""
        (settings.new_gts / "late.csv").write_bytes(b"late")
        with ground_truth.training_folder(settings, [], {}) as (folder, manifest):
            assert (everything_in(folder), manifest) == ({}, {})

    def test_a_file_that_changed_since_intake_ends_the_cycle(self, settings: Settings) -> None:
        """What was judged must be what is trained on."""
        files = [one_of(settings, "a.csv", b"read")]
        (settings.new_gts / "a.csv").write_bytes(b"changed")
        with (
            pytest.raises(TryLaterError, match=r"a\.csv changed"),
            ground_truth.training_folder(settings, files, {}),
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
            ground_truth.training_folder(settings, files, {}),
        ):
            (settings.home / where / f"{where.removesuffix('_gts')}.csv").write_bytes(b"changed")
        assert list(settings.home.glob(f"{ground_truth.STAGING_PREFIX}*")) == []

    def test_a_used_file_that_is_none_is_an_error(self, settings: Settings) -> None:
        """It was learnt, so it is not left out without a word."""
        os.mkfifo(settings.used_gts / "a.csv")
        with (
            pytest.raises(PipelineError, match=r"used_gts/a\.csv cannot be read; let it be a reg"),
            ground_truth.training_folder(settings, [], {}),
        ):
            pass

    def test_a_recording_twice_in_used_gts_is_an_error(self, settings: Settings) -> None:
        """One copy would be tested by a model that was trained on the other."""
        for name in ("a.csv", "b.csv"):
            (settings.used_gts / name).write_bytes(b"same")
        with (
            pytest.raises(PipelineError, match=r"twice, as a\.csv and b\.csv; delete one"),
            ground_truth.training_folder(settings, [], {}),
        ):
            pytest.fail("was trained on")
        assert list(settings.home.glob(f"{ground_truth.STAGING_PREFIX}*")) == []

    def test_it_is_removed_when_training_fails(self, settings: Settings) -> None:
        """And the files stay where they were."""
        files = [one_of(settings, "a.csv", b"new")]
        with (
            pytest.raises(ZeroDivisionError),
            ground_truth.training_folder(settings, files, {}),
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
