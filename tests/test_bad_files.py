"""Every kind of bad file at once, through the real command."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BATCH, FAST_WORDS, SHARED, script
from sample_gts import make_recording
from test_files import TRAPS, a_link, a_socket
from test_train_classification_model import BAD_FILES


def fill(folder: Path) -> dict[str, bytes | None]:
    """Put every kind of bad file into a folder; return name -> content, None for no plain file."""
    bad: dict[str, bytes | None] = {
        f"bad_{number:03d}.csv": content.encode() if isinstance(content, str) else content
        for number, (_, content, _) in enumerate(BAD_FILES)
    }
    good = make_recording(5, n_tracks=5).to_csv(index=False).encode()
    traps = {name: good + b"\n" * number for number, name in enumerate(TRAPS)}
    bad |= traps | {
        "new_01_again.csv": (folder / "new_01.csv").read_bytes(),
        "zz_huge.csv": b"1" * 2**21,
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content or b"")
    makers: dict[str, Callable[[Path], None]] = {
        "link.csv": a_link,
        "socket.csv": a_socket,
        "pipe.csv": os.mkfifo,
        "folder.csv": Path.mkdir,
    }
    for name, make in makers.items():
        make(folder / name)
        bad[name] = None
    return bad


@pytest.mark.slow
def test_the_good_ones_go_on(home: Path, figure: Callable[[str, Any], None]) -> None:
    """Each bad one is rejected beside its own reason, none is lost; a second night is silent."""
    bad = fill(home / "new_gts")
    words = (*FAST_WORDS, "--max-file-mb", "1", "--threshold", "1000")
    done = script("pipeline_orchestrator.py", *words, home=home)
    assert done.returncode == 0, done.stderr
    assert f"on {BATCH} new recordings" in done.stdout
    assert "Traceback" not in done.stderr
    rejected = home / "new_gts" / "rejected"
    reasons = {}
    for name, content in bad.items():
        reason = json.loads((rejected / f"{name}.reason.json").read_text())
        reasons[name] = reason["what"]
        assert reason["file"] == name
        assert reason["what"] and reason["remedy"]
        assert os.path.lexists(rejected / name)
        assert content is None or (rejected / name).read_bytes() == content
    for number, (_, _, what) in enumerate(BAD_FILES):
        assert what in reasons[f"bad_{number:03d}.csv"]
    assert len(list((home / "new_gts").glob("*.csv"))) == BATCH
    figure("kinds of bad file rejected, each with its reason, none lost", len(bad))
    again = script("pipeline_orchestrator.py", "--quiet", *words, home=home)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.usefixtures("shared_folder")
def test_no_real_recording_is_rejected(home: Path, figure: Callable[[str, Any], None]) -> None:
    """All of them are taken in as they arrived."""
    real = list((SHARED / "gts").glob("*.csv"))
    for path in real:
        shutil.copy(path, home / "new_gts")
    done = script("pipeline_orchestrator.py", *FAST_WORDS, "--threshold", "1000", home=home)
    assert done.returncode == 0, done.stderr
    assert f"on {BATCH + len(real)} new recordings" in done.stdout
    assert not (home / "new_gts" / "rejected").exists()
    figure("real recordings taken in, none rejected", len(real))
