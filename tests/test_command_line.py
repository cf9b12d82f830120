"""How every script starts and ends, seen from outside: real processes, signals really sent."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retraining import command_line
from retraining.command_line import (
    Command,
    OneLineParser,
    add_settings,
    combinations,
    print_result,
    read_settings,
)
from retraining.errors import UsageError
from retraining.outcome import Outcome
from retraining.settings import SCRIPTS, Settings

SCRIPT = """
import logging, signal, sys
from retraining.command_line import OneLineParser, add_settings, run_command
from retraining.errors import *
from retraining.errors import stop_request

def command(settings):
    {body}

parser = OneLineParser(prog="script.py")
add_settings(parser)
parser.add_argument("--quiet", action="store_true")
sys.exit(run_command(command, parser.parse_args()))
"""

TWO_STEPS = """stop_request.obey()
    print("first step", flush=True)
    sys.stdin.readline()
    print("first step done", flush=True)
    {between}
    stop_request.obey()
    print("second step", flush=True)
    return 0"""

Calls = list[tuple[str, Settings, argparse.Namespace]]
"""Name of a command, its settings and its options."""
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Return where a test writes its script."""
    return tmp_path / "script.py"


def environment() -> dict[str, str]:
    """Return an environment in which the script finds the modules, and no settings."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "PYTHONPATH": str(SCRIPTS), "PYTHONIOENCODING": "utf-8:strict"}


def run(script: Path, body: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script whose command has this body."""
    script.write_text(SCRIPT.format(body=body))
    return subprocess.run(
        [sys.executable, str(script), *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextlib.contextmanager
def started(
    script: Path, *, ignored: tuple[int, ...] = (), between: str = "pass"
) -> Iterator[subprocess.Popen[str]]:
    """Start a script of two steps, wait until it is in the first, and end it in any case."""
    inherited = "import signal\n" + "".join(
        f"signal.signal({number:d}, signal.{'SIG_IGN' if number in ignored else 'SIG_DFL'})\n"
        for number in SIGNALS
    )
    script.write_text(inherited + SCRIPT.format(body=TWO_STEPS.format(between=between)))
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "first step\n"
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[str]) -> str:
    """Wait until the process says that it noticed a signal."""
    assert process.stderr is not None
    return process.stderr.readline()


class TestFlags:
    """`OneLineParser` and `add_settings`."""

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            (["--nonsense"], "unrecognized arguments: --nonsense"),
            (["--nonsense=two\nlines"], "unrecognized arguments: --nonsense=two lines"),
            (["--nonsense=a\x1b[2Jb"], "unrecognized arguments: --nonsense=a\\x1b[2Jb"),
            (["--url=http://me:secret@host"], "unrecognized arguments: --url=http://host"),
            (["stray"], "unrecognized arguments: stray"),
            (["--threshold"], "argument --threshold: expected one argument"),
        ],
    )
    def test_a_complaint_is_one_line_and_status_2(
        self, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
    ) -> None:
        """A mail from cron shows what was wrong and where to look."""
        parser = OneLineParser(prog="script.py")
        add_settings(parser)
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(words)
        out, error = capsys.readouterr()
        assert ended.value.code == 2
        assert (out, error) == ("", f"error: {complaint}; script.py --help lists what there is\n")

    def test_a_command_complains_in_one_line_too(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The parser of a command is of the same kind."""
        parser = OneLineParser(prog="script.py")
        parser.add_subparsers().add_parser("run")
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["run", "--nonsense"])
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_script_can_take_some_settings_only(self) -> None:
        """The others are unknown to it, and so an error."""
        parser = OneLineParser()
        add_settings(parser, only=("home", "n_jobs"))
        assert vars(parser.parse_args(["--n-jobs", "2"])) == {"home": None, "n_jobs": "2"}


class TestCombinations:
    """Flags that take several values."""

    @staticmethod
    def read(*words: str) -> list[Settings]:
        """Return the settings that a command line names."""
        parser = OneLineParser()
        add_settings(parser, several=("threshold", "window", "decide"))
        options = parser.parse_args(words)
        return combinations(read_settings(options, {"PIPELINE_THRESHOLD": "7"}), options)

    def test_each_with_each(self) -> None:
        """In the order of the values; a value counts once, and spaces do not."""
        found = self.read("--threshold", "5, 8,5", "--decide", "point,bound", "--n-folds", "3")
        assert [(one.threshold, one.decide) for one in found] == [
            *((5.0, "point"), (5.0, "bound")),
            *((8.0, "point"), (8.0, "bound")),
        ]
        assert {one.n_folds for one in found} == {3}

    def test_without_them_there_is_one(self) -> None:
        """That of the environment and the defaults."""
        assert self.read() == [Settings(threshold=7.0)]

    def test_the_environment_holds_one_value(self) -> None:
        """A crontab's setting is one night's."""
        parser = OneLineParser()
        add_settings(parser, several=("window",))
        options = parser.parse_args([])
        with pytest.raises(UsageError, match="PIPELINE_WINDOW '5,8': must be an integer"):
            read_settings(options, {"PIPELINE_WINDOW": "5,8"})

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            (("--threshold", "5,x"), "--threshold 'x': must be a number"),
            (("--threshold", "5,,8"), "--threshold '': must be a number"),
            (("--window", "30,1.5"), "--window '1.5': must be an integer"),
            (("--window", "30,0"), "--window 0: must be from 1 to 100000 files"),
            (("--decide", "point,guess"), "--decide 'guess': must be one of point, bound"),
        ],
    )
    def test_each_value_is_checked(self, words: tuple[str, str], complaint: str) -> None:
        """And named."""
        with pytest.raises(UsageError, match=complaint):
            self.read(*words)


@pytest.fixture
def called() -> Calls:
    """Return where the commands of a test note how they were called."""
    return []


@pytest.fixture
def commands(called: Calls) -> list[Command]:
    """Give two commands, each with a flag of its own."""

    def make(name: str, flag: str, status: int) -> Command:
        def add_flag(parser: argparse.ArgumentParser) -> None:
            parser.add_argument(flag)

        def work(settings: Settings, options: argparse.Namespace) -> int:
            called.append((name, settings, options))
            return status

        return Command(name, f"to {name}", add_flag, work)

    return [make("walk", "--slowly", 0), make("run", "--fast", 1)]


class TestCommands:
    """`main`: one list of commands, and the first word names one of them."""

    @staticmethod
    def main(commands: list[Command], *words: str) -> int:
        """Run a command line."""
        return command_line.main(commands, words, prog="script.py", description="Moves.")

    def test_the_first_word_names_a_command(self, commands: list[Command], called: Calls) -> None:
        """It gets its settings and its own flags, and its status is the status."""
        assert self.main(commands, "run", "--fast", "very", "--n-folds", "3") == 1
        ((name, settings, options),) = called
        assert (name, settings.n_folds, options.fast) == ("run", 3, "very")

    @pytest.mark.parametrize("words", [(), ("--slowly", "so"), ("--n-folds", "3")])
    def test_without_one_it_is_the_first(
        self,
        commands: list[Command],
        called: Calls,
        words: tuple[str, ...],
    ) -> None:
        """A crontab line needs no word."""
        assert self.main(commands, *words) == 0
        assert [name for name, _, _ in called] == ["walk"]

    def test_flags_of_another_command_are_refused(
        self, commands: list[Command], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """And so is a word that is no command."""
        for words in (("run", "--slowly", "so"), ("stroll",)):
            with pytest.raises(SystemExit, match="2"):
                self.main(commands, *words)
            assert capsys.readouterr().err.startswith("error: unrecognized arguments: ")

    def test_help_lists_commands_and_exit_statuses(
        self, commands: list[Command], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """That of a command lists its own flags and the settings."""
        with pytest.raises(SystemExit, match="0"):
            self.main(commands, "--help")
        general = " ".join(capsys.readouterr().out.split())
        assert "walk to walk run to run" in general
        assert "75: try again later" in general
        with pytest.raises(SystemExit, match="0"):
            self.main(commands, "run", "--help")
        special = capsys.readouterr().out
        assert "--fast FAST" in special
        assert "--n-folds FOLDS" in special
        assert "--slowly" not in special

    def test_the_words_of_the_process_are_the_default(
        self,
        commands: list[Command],
        called: Calls,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Without the program's name."""
        monkeypatch.setattr(sys, "argv", ["script.py", "run"])
        assert command_line.main(commands, None, prog="script.py", description="Moves.") == 1
        assert called[0][0] == "run"


class TestExit:
    """`run_command`: one line and a status for what is expected, a traceback for a bug."""

    @pytest.mark.parametrize(
        ("body", "status", "line"),
        [
            ("raise PipelineError('a\\n  b')", 1, "error: a b"),
            ("raise UsageError('no such file')", 2, "error: no such file"),
            ("raise TryLaterError('locked')", 75, "error: locked"),
            (
                "raise StoppedBySignal(15)",
                143,
                "error: stopped by signal 15; the next run goes on from here",
            ),
            (
                "open('/nowhere/at/all')",
                1,
                "error: [Errno 2] No such file or directory: '/nowhere/at/all'; check the disk "
                f"and the rights of {SCRIPTS}",
            ),
            ("raise PipelineError('caf\\udce9')", 1, "error: caf\\udce9"),
            ("raise PipelineError('a\\x1b[2Jb')", 1, "error: a\\x1b[2Jb"),
            (
                "raise PipelineError('http://me:secret@host/a?key=secret\\n fails')",
                1,
                "error: http://host/a fails",
            ),
        ],
    )
    def test_an_expected_failure_is_one_line(
        self, script: Path, body: str, status: int, line: str
    ) -> None:
        """Without a traceback, on standard error."""
        ended = run(script, body)
        assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", f"{line}\n")

    @pytest.mark.parametrize("word", ["--threshold=-1", "--threshold=ten", "--model-name=a/b"])
    def test_a_wrong_setting_is_one_line(self, script: Path, word: str) -> None:
        """The command does not begin."""
        ended = run(script, "print('begun')", word)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith(f"error: {word.partition('=')[0]} ")
        assert ended.stderr.count("\n") == 1

    @pytest.mark.parametrize("words", [(), ("--quiet",)])
    def test_a_bug_keeps_its_traceback(self, script: Path, words: tuple[str, ...]) -> None:
        """Nobody can mend what is not shown; also when quiet."""
        ended = run(script, "settings.hook_timeout / 0", *words)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "ERROR unexpected failure, please report it" in ended.stderr
        assert "Traceback" in ended.stderr
        assert "ZeroDivisionError" in ended.stderr

    @pytest.mark.parametrize("status", [0, 1])
    def test_the_status_of_the_command_is_the_status(self, script: Path, status: int) -> None:
        """`status` ends with 1 without an error."""
        ended = run(script, f"return {status}")
        assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", "")

    @pytest.mark.parametrize(
        ("words", "seen"), [((), ["INFO step", "WARNING look"]), (("--quiet",), ["WARNING look"])]
    )
    def test_quiet_logs_only_what_somebody_must_look_at(
        self, script: Path, words: tuple[str, ...], seen: list[str]
    ) -> None:
        """Dated lines on standard error; other packages never below a warning."""
        body = """logger = logging.getLogger("pipeline")
    logger.info("step")
    logger.warning("look")
    logging.getLogger("alembic").info("chatter")
    return 0"""
        ended = run(script, body, *words)
        lines = [line.split(" ", 2) for line in ended.stderr.splitlines()]
        assert [text for _, _, text in lines] == seen
        assert all(len(day) == 10 and len(time) == 8 for day, time, _ in lines)

    def test_a_logged_message_is_one_harmless_line(self, script: Path) -> None:
        """A name with a line break cannot forge another line, nor one with escapes the screen."""
        body = """logging.getLogger("pipeline").info("%s", "a\\n2026-01-01 ERROR \\x1b[2J")
    return 0"""
        ended = run(script, body)
        assert ended.stderr.count("\n") == 1
        assert ended.stderr.endswith(" INFO a\\n2026-01-01 ERROR \\x1b[2J\n")

    def test_a_traceback_is_harmless_too(self, script: Path) -> None:
        """Its lines stay lines."""
        ended = run(script, "raise ValueError('a\\x1b[2Jb http://me:secret@host')")
        assert ended.stderr.splitlines()[-1] == "  ValueError: a\\x1b[2Jb http://host"
        assert ended.stderr.count("\n") > 3

    def test_a_traceback_forges_no_line_of_the_log(self, script: Path) -> None:
        """Whatever line breaks are in the text of an exception."""
        forged = "2026-01-01 00:00:00 INFO promoted: version 99"
        text = "".join(f"a{end}{forged}" for end in "\n\r\x0b\x0c\x1c\x85\u2028\u2029")
        ended = run(script, f"raise ValueError({text!a})")
        lines = ended.stderr.splitlines()
        assert forged in ended.stderr
        assert [line for line in lines if line.startswith("20")] == lines[:1]

    def test_a_warning_of_a_package_is_one_harmless_line(self, script: Path) -> None:
        """It may quote a recording."""
        ended = run(script, "import warnings; warnings.warn('a\\n\\x1b[2J'); return 0")
        assert ended.stderr.endswith("UserWarning: a\\n\\x1b[2J\n")
        assert ended.stderr.count("\n") == 1


class TestStopping:
    """`StopRequest`: between two steps, or at once if asked twice."""

    @pytest.mark.parametrize("number", SIGNALS)
    def test_a_signal_stops_after_the_step(self, script: Path, number: signal.Signals) -> None:
        """The step at hand is finished, the next not begun: status 128 + n and one line."""
        with started(script) as process:
            process.send_signal(number)
            assert f"signal {number:d}: stopping after this step" in heard(process)
            out, error = process.communicate("\n")
        assert process.returncode == 128 + number
        assert out == "first step done\n"
        assert error == f"error: stopped by signal {number:d}; the next run goes on from here\n"

    @pytest.mark.parametrize("number", SIGNALS)
    def test_a_failure_after_a_signal_is_the_stop(
        self, script: Path, number: signal.Signals
    ) -> None:
        """What breaks because it was interrupted is no bug to report."""
        with started(script, between="raise ConnectionError('interrupted')") as process:
            process.send_signal(number)
            heard(process)
            _, error = process.communicate("\n")
        assert process.returncode == 128 + number
        assert "Traceback" not in error

    @pytest.mark.parametrize("first", SIGNALS)
    @pytest.mark.parametrize("second", SIGNALS)
    def test_a_second_signal_stops_at_once(
        self, script: Path, first: signal.Signals, second: signal.Signals
    ) -> None:
        """In the middle of the step, also if it is another one."""
        with started(script) as process:
            process.send_signal(first)
            heard(process)
            process.send_signal(second)
            assert process.wait(timeout=60) == -second
            assert process.stdout is not None
            assert process.stdout.read() == ""

    @pytest.mark.parametrize("number", SIGNALS)
    def test_an_ignored_signal_stays_ignored(self, script: Path, number: signal.Signals) -> None:
        """Under nohup a command survives the end of the session."""
        with started(script, ignored=(number,)) as process:
            process.send_signal(number)
            out, error = process.communicate("\n")
        assert (process.returncode, error) == (0, "")
        assert out == "first step done\nsecond step\n"

    def test_without_a_signal_nothing_stops(self, script: Path) -> None:
        """Both steps are done."""
        with started(script) as process:
            out, error = process.communicate("\n")
        assert (process.returncode, out, error) == (0, "first step done\nsecond step\n", "")


class TestResult:
    """`print_result`."""

    def test_people_get_a_text_and_programs_a_document(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One line either way, with the version of the document's form."""
        facts = {"outcome": "healthy", "name": "Bäume\n"}
        print_result("healthy", facts, as_json=False)
        assert capsys.readouterr().out == "healthy\n"
        print_result("healthy", facts, as_json=True)
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        assert json.loads(out) == {"schema_version": 2, **facts}

    def test_a_document_holds_no_secret(self, capsys: pytest.CaptureFixture[str]) -> None:
        """However deep in it."""
        facts = {"why": ["http://me:pw@host", {"x": "token=abc"}], "n": 1}
        print_result("", facts, as_json=True)
        printed = json.loads(capsys.readouterr().out)
        assert printed == {
            "schema_version": 2,
            "why": ["http://host", {"x": "token=***"}],
            "n": 1,
        }

    def test_several_lines_are_given_as_such(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A line break within one is of a name from outside, and only shown."""
        print_result(["a\nb", "c\x1b[2J"], {}, as_json=False)
        assert capsys.readouterr().out == "a\\nb\nc\\x1b[2J\n"

    def test_a_name_that_is_not_utf8_can_be_printed(self, script: Path) -> None:
        """A file of that name was moved already when its name is printed."""
        body = """from retraining.command_line import print_result
    print_result("requeued caf\\udce9.csv, grün.csv", {}, as_json=False)
    return 0"""
        ended = run(script, body)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == "requeued caf\\udce9.csv, grün.csv\n"

    def test_a_latin_terminal_is_no_failure(self) -> None:
        """What it cannot show becomes an escape."""
        ended = subprocess.run(
            [
                sys.executable,
                "-c",
                """from retraining.command_line import print_result
print_result("▁█ grün", {}, as_json=False)""",
            ],
            cwd=SCRIPTS,
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
            stdout=subprocess.PIPE,
            check=True,
        )
        assert ended.stdout == "\\u2581\\u2588 grün\n".encode("latin-1")

    def test_every_tone_of_an_outcome_that_a_run_prints_has_its_colour(self) -> None:
        """Where there is nothing to feel there is none; a failed run prints no result."""
        printed = {one.tone for one in Outcome if one is not Outcome.FAILED}
        assert printed - {""} == set(command_line.COLOURS)

    @pytest.mark.parametrize(
        ("terminal", "environment", "coloured"),
        [
            (True, {"TERM": "xterm"}, True),
            (True, {"TERM": "dumb"}, False),
            (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
            (False, {"TERM": "xterm"}, False),
        ],
    )
    def test_only_a_person_sees_colours(
        self,
        terminal: bool,
        environment: dict[str, str],
        coloured: bool,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """None in a log, a mail or a pipe, and none for who does not want them."""
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        print_result("healthy: all is well", {}, as_json=False, tone="good")
        expected = "\x1b[1;32mhealthy:\x1b[0m all is well" if coloured else "healthy: all is well"
        assert capsys.readouterr().out == f"{expected}\n"
