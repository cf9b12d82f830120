"""The note of an unfinished command."""

from __future__ import annotations

from pathlib import Path

import pytest

from retraining.recovery import NOTE_NAME, unfinished_command, unfinished_until_done
from retraining.settings import Settings


class TestNote:
    """`unfinished_until_done` and `unfinished_command`."""

    def test_a_command_that_ended_leaves_no_note(self, tmp_path: Path) -> None:
        """Begun: the note is there. Ended, also where somebody else removed it: it is not."""
        settings = Settings(home=tmp_path)
        assert unfinished_command(settings) is None
        for is_removed in (False, True):
            with unfinished_until_done(settings, "rollback") as cycle_id:
                note = unfinished_command(settings)
                assert note is not None
                assert note.pop("since").startswith("2")
                assert note == {"cycle_id": cycle_id, "command": "rollback"}
                if is_removed:
                    (tmp_path / NOTE_NAME).unlink()
            assert unfinished_command(settings) is None

    def test_a_command_that_failed_leaves_its_note(self, tmp_path: Path) -> None:
        """So that the next start knows that there is work to finish."""
        settings = Settings(home=tmp_path)
        with (
            pytest.raises(ZeroDivisionError),
            unfinished_until_done(settings, "rollback") as cycle_id,
        ):
            raise ZeroDivisionError
        note = unfinished_command(settings)
        assert note is not None
        assert note["cycle_id"] == cycle_id

    @pytest.mark.parametrize(
        "content", [b"", b'{"cycle_id": "a', b"\xff\xfe\x00", b"null", b"3", b"[1, 2]", b'"text"']
    )
    def test_a_damaged_note_still_says_that_there_is_work(
        self, tmp_path: Path, content: bytes
    ) -> None:
        """An empty note is a note: tidying needs no more than that."""
        (tmp_path / NOTE_NAME).write_bytes(content)
        assert unfinished_command(Settings(home=tmp_path)) == {}
