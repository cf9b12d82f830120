"""What who starts a script leaves it: closed or broken streams, a locale that is not UTF-8."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import FAST_WORDS, ROOT
from fast_module import write_fast_module
from test_odd_places import only_registered

from retraining.journal import Journal, Withdrawn

ORCHESTRATOR = str(ROOT / "pipeline_orchestrator.py")
SCRIPTS = (
    "pipeline_orchestrator.py",
    *(
        pytest.param(script, marks=pytest.mark.slow)
        for script in ("register_first_model.py", "train_classification_model.py")
    ),
)
OPENS_A_FILE = """
import os, sys
sys.path.insert(0, {root!r})
from retraining import command_line
from retraining.command_line import Command, no_flags

def work(settings, options):
    descriptor = os.open({file!r}, os.O_RDWR)
    os.system("echo from a child; echo and its error >&2")
    for stream in (sys.stdout, sys.stderr):
        print("from Python", file=stream, flush=True)
    for number in (1, 2):
        os.write(number, b"from a library")
    return 0

sys.exit(command_line.main([Command("do", "it", no_flags, work)], None, "prog", "what"))
"""


def run(
    words: Sequence[str], *streams: int, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python, whose standard output is buffered as it is unless somebody sets a variable."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    stdout, stderr = streams or (subprocess.PIPE, subprocess.PIPE)
    return subprocess.run(
        [sys.executable, *words] if words[0] != "bash" else words,
        cwd=ROOT,
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
        check=False,
        timeout=200,
        env=known | environment,
    )


def in_shell(end: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with streams as a shell makes them."""
    return run(["bash", "-c", f'exec "$0" "$@" {end}', sys.executable, *words])


@contextlib.contextmanager
def nobody_reads() -> Iterator[int]:
    """Give the end of a pipe whose other one is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


class TestStreams:
    """Whoever started a command need not listen."""

    @pytest.mark.parametrize("end", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
    def test_no_file_takes_the_number_of_a_closed_one(self, tmp_path: Path, end: str) -> None:
        """What is printed would be written into it: into a recording, a lock, a database."""
        file = tmp_path / "database"
        file.write_bytes(b"precious" * 100)
        code = OPENS_A_FILE.format(root=str(ROOT), file=str(file))
        done = in_shell(end, "-c", code)
        assert (done.returncode, file.read_bytes()) == (0, b"precious" * 100), done.stderr

    @pytest.mark.parametrize("script", SCRIPTS)
    @pytest.mark.parametrize(("word", "status"), [("--help", 0), ("--no-such-flag", 2)])
    def test_help_and_complaints_need_no_reader(self, script: str, word: str, status: int) -> None:
        """Closed, or a pipe whose reader is gone: no traceback, the same status."""
        closed = in_shell(">&-" if word == "--help" else "2>&-", script, word)
        assert (closed.returncode, "Traceback" in closed.stderr) == (status, False)
        with nobody_reads() as broken:
            streams = (broken, subprocess.PIPE) if word == "--help" else (subprocess.PIPE, broken)
            done = run([script, word], *streams)
        assert (done.returncode, done.stderr or "") == (status, "")

    @pytest.mark.parametrize("words", [["status"], ["run", "--min-new-files", "99"]])
    def test_a_failure_that_nobody_reads_has_its_status(
        self, tmp_path: Path, words: list[str]
    ) -> None:
        """Not that of Python's last flush."""
        with nobody_reads() as broken:
            done = run([ORCHESTRATOR, *words, "--home", str(tmp_path)], broken, broken)
        assert done.returncode == 1


NOT_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


class TestLocale:
    """A locale whose names and texts are ASCII, and Python's own remedies switched off."""

    def test_it_begins_again_in_utf8(self) -> None:
        """Once, with the same words; what is printed is escaped."""
        code = (
            "import sys; from retraining.command_line import words_of, print_result; "
            "print_result(words_of(None), {}, as_json=False); "
            "sys.exit(sys.getfilesystemencoding() != 'utf-8')"
        )
        done = run(["-c", code, "two words", "größe"], **NOT_UTF8)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == ["two words", r"gr\xf6\xdfe"]

    @pytest.mark.slow
    def test_a_life_in_it(self, registered_template: Path, tmp_path: Path) -> None:
        """All that it writes is UTF-8, under the names that another locale knows, too."""
        home = only_registered(registered_template, tmp_path / "höhe")
        (tmp_path / "module").mkdir()
        module = ["--training-module", str(write_fast_module(tmp_path / "module"))]
        (home / "used_gts/old_01.csv").rename(home / "used_gts/größe.csv")
        (home / "new_gts/new_01.csv").rename(home / "new_gts/höhe.csv")
        (home / "new_gts/üble.csv").write_text("größe;ä", encoding="utf-8")

        def asked(name: str, *words: str) -> str:
            done = run([name, *words, *module, "--home", str(home)], **NOT_UTF8)
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stderr
            return done.stdout

        asked("register_first_model.py")
        asked(ORCHESTRATOR, *FAST_WORDS)
        used = {one.name for one in (home / "used_gts").iterdir()}
        assert {"größe.csv", "höhe.csv"} < used
        reason = json.loads((home / "new_gts/rejected/üble.csv.reason.json").read_bytes())
        assert reason["file"] == "üble.csv"
        (page,) = (home / "reports").glob("*.html")
        assert "höhe.csv" in page.read_text(encoding="utf-8")
        lines = asked(ORCHESTRATOR, "withdraw", "größe.csv", "--reason", "zu groß").splitlines()
        assert lines[0].startswith(r"withdrawn: gr\xf6\xdfe.csv, kept as withdrawn/gr\xf6\xdfe.csv")
        (entry,) = Journal(home).read().all(Withdrawn)
        assert (entry.name, entry.reason) == ("größe.csv", "zu groß")
        assert (home / "withdrawn/größe.csv").is_file()
        for words in (["status"], ["history"]):
            assert asked(ORCHESTRATOR, *words).isascii()
