"""What whoever names a file, edits a tag or answers as a server can make us say, and does not get.

Control sequences, forged lines and secrets, through every way on which text leaves the process.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST_WORDS, QUICK_PROCESS, ROOT, copy_home

from retraining import command_line, notices, records
from retraining.command_line import print_result, start_logging
from retraining.commands.history import change_line
from retraining.cycle import RecordingResult
from retraining.errors import PipelineError
from retraining.ground_truth import Refusal
from retraining.outcome import Outcome
from retraining.registry import open_registry
from retraining.registry.facts import TAG_MESSAGE, TAG_WHO, TAG_WHY
from retraining.settings import Settings

FORGED = "2026-05-01 02:00:00 INFO promoted: version 99 replaces version 1"
SEQUENCES = ("\x1b[2J\x1b]0;x\x07", "\x9b31m", "\u202e", "\u200b", "\u2028", "\x85", "\r", "\n")
HOSTILE = "a" + "".join(f"{one}{FORGED}" for one in SEQUENCES)
PASSWORD = "correct horse/9"
SECRETS = (PASSWORD, "correct%20horse%2F9", "S3CR3T")
LEAK = f"{PASSWORD} http://me:S3CR3T@host/x?token=S3CR3T password='a S3CR3T' correct%20horse%2F9"


@pytest.fixture(autouse=True)
def known_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the process a password, as a store with accounts needs it."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def assert_harmless(printed: str, n_lines: int | None = None) -> None:
    """Nothing but lines of ours, without what moves a cursor and without secrets."""
    lines = printed.split("\n")
    assert lines.pop() == ""
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith(FORGED) for line in lines)
    assert [printed.partition(one)[0][-80:] for one in SECRETS if one in printed] == []
    assert n_lines is None or len(lines) == n_lines


@pytest.fixture
def told(tmp_path: Path) -> tuple[str, Callable[[], list[dict[str, Any]]]]:
    """Give a command that keeps what it is told, and a reader of that."""
    target, hook = tmp_path / "told.jsonl", tmp_path / "hook.py"
    hook.write_text(f"import sys\nopen({str(target)!r}, 'a').write(sys.stdin.read() + chr(10))\n")

    def read() -> list[dict[str, Any]]:
        text = target.read_text() if target.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    return f"{sys.executable} {hook}", read


class TestStandardOutputAndError:
    """Each function that writes, with texts of an attacker."""

    def test_a_log_line_stays_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Whoever names a file or answers as a server writes no line into the log."""
        root, logger = logging.getLogger(), logging.getLogger("pipeline")
        before, level = root.handlers[:], logger.level
        root.handlers.clear()
        try:
            start_logging(quiet=False)
            logger.info("%s is gone", HOSTILE)
            logger.warning("%s", ValueError(f"{HOSTILE} {LEAK}"))
            logging.getLogger("a package").error(HOSTILE)
        finally:
            root.handlers[:] = before
            logger.setLevel(level)
        assert_harmless(capsys.readouterr().err, 3)

    def test_a_failure_stays_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Whatever the server or a file made the exception say."""

        def fail(_: Settings) -> int:
            raise PipelineError(f"the store refused: {HOSTILE} {LEAK}")

        parser = command_line.OneLineParser()
        command_line.add_settings(parser)
        assert command_line.run_command(fail, parser.parse_args([])) == 1
        assert_harmless(capsys.readouterr().err, 1)

    def test_a_wrong_flag_stays_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A file that is called like a flag is named by a shell's *."""
        parser = command_line.OneLineParser(prog="script.py")
        with pytest.raises(SystemExit):
            parser.parse_args([f"--{HOSTILE} {LEAK}"])
        assert_harmless(capsys.readouterr().err, 1)

    @pytest.mark.parametrize("as_json", [False, True])
    def test_a_result_stays_one_line(
        self, as_json: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As text and as a document."""
        text = f"requeued {HOSTILE} {LEAK}"
        print_result(text, {"names": [HOSTILE, {"why": LEAK}]}, as_json=as_json)
        assert_harmless(capsys.readouterr().out, 1)

    @pytest.mark.parametrize("field", ["event", "who", "why", "unit"])
    def test_a_tag_forges_no_change_of_production(
        self, field: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Whoever edits tags on the server adds no line to `history`."""
        change = {
            **{"at": "2026-01-01T00:00:00+00:00", "from": 1, "to": 2, "event": "promotion"},
            "clock_went_back": False,
            **{"mean_error_before": 2.0, "mean_error_after": 1.0, "unit": "%"},
            **{"who": "me", "why": "better"},
            field: f"{HOSTILE} {LEAK}",
        }
        print_result([change_line(change)], {}, as_json=False)
        assert_harmless(capsys.readouterr().out, 1)

    def test_the_table_of_recordings_has_a_line_for_each(self) -> None:
        """A name with line breaks is one row of `--verbose`, in its columns."""
        rows = [
            RecordingResult(name, 10, 10, 1.0, 10, 1.0) for name in (HOSTILE, f"{LEAK}.csv", "a")
        ]
        table = records.recordings_table(rows, "%")
        assert_harmless(table, 4)
        assert len({len(line) for line in table.splitlines()[1:]}) == 1


class TestHooksAndHeartbeat:
    """What the operator's commands are told, and what stays in the home."""

    @pytest.fixture
    def settings(self, tmp_path: Path, told: Any) -> Settings:
        """Give an empty home with a hook."""
        home = tmp_path / "home"
        for name in ("new_gts", "used_gts"):
            (home / name).mkdir(parents=True)
        return Settings(home=home, on_attention=told[0])

    def test_a_failure_tells_no_secret(self, settings: Settings, told: Any) -> None:
        """Neither hook nor heartbeat; a mail with the message has one line."""
        with pytest.raises(PipelineError), notices.failure_noted(settings):
            raise PipelineError(f"the store refused: {HOSTILE} {LEAK}")
        ((details),) = told[1]()
        heartbeat = notices.read_heartbeat(settings)
        for message in (details["message"], heartbeat["message"]):
            assert message.startswith("the store refused: ")
            assert_harmless(f"{message}\n", 1)

    def test_a_rejected_file_forges_no_line_and_is_told_once(
        self, settings: Settings, told: Any
    ) -> None:
        """By its name or by its reason."""
        name = f"a{FORGED}\n{FORGED} token=S3CR3T.csv".replace("/", "")
        (settings.new_gts / name).write_text("x")
        from retraining import ground_truth

        ground_truth.reject(settings, [Refusal(name, "is bad", "mend it")])
        for _ in range(2):
            notices.note_end(settings, Outcome.WAITING.value, f"waiting {LEAK}", f"stuck: {LEAK}")
        (details,) = told[1]()
        assert len(details["items"]) == 2
        for text in (details["message"], *details["items"]):
            assert_harmless(f"{text}\n", 1)
        heartbeat = notices.read_heartbeat(settings)
        texts = (heartbeat["message"], *heartbeat["attention"].values())
        assert_harmless("".join(f"{text}\n" for text in texts))

    @pytest.mark.parametrize(
        ("command", "said"),
        [
            ("{python} -c 'import sys; sys.exit(3)' -u me:S3CR3T", "exit status 3"),
            ("{python} -c 'import time; time.sleep(9)' S3CR3T", "it took more than 1 s"),
            ("/nowhere/at/all S3CR3T", "No such file or directory: '/nowhere/at/all'"),
        ],
    )
    def test_a_failed_hook_is_named_without_its_words(
        self, command: str, said: str, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """They may hold a password, and the log is read by others."""
        command = command.replace("{python}", sys.executable)
        loud = Settings(home=settings.home, on_attention=command, hook_timeout=1)
        notices.call_for_attention(loud, "failed", "x")
        (message,) = caplog.messages
        assert said in message
        assert "S3CR3T" not in message

    @pytest.mark.parametrize("content", [b'{"attention": [1]}', b'{"attention": "x"}', b"[]"])
    def test_a_strange_heartbeat_stops_nothing(self, content: bytes, settings: Settings) -> None:
        """Whoever may write the home's file gets no traceback."""
        (settings.home / notices.HEARTBEAT_NAME).write_bytes(content)
        notices.note_end(settings, Outcome.WAITING.value, "waiting", None)
        assert notices.read_heartbeat(settings)["attention"] == {}


def test_what_mlflow_keeps_of_the_settings_holds_no_secret(tmp_path: Path) -> None:
    """Parameters of a run are read by everybody who may read the server."""
    settings = Settings(home=tmp_path, scheduler=f"tcp://me:S3CR3T@host:8786/{PASSWORD}")
    assert not any(secret in str(settings.for_the_run(5.0)) for secret in SECRETS)


# --- Real commands ---


@pytest.fixture(scope="module")
def attacked(registered_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a home with hostile names in new_gts/ and hostile tags on what `history` reads."""
    home = copy_home(registered_template, tmp_path_factory.mktemp("attacked") / "home")
    settings = Settings(home=home)
    good = sorted((home / "new_gts").glob("*.csv"))
    for name, path in zip((f"{FORGED}.csv", "=cmd() token=S3CR3T.csv"), good, strict=False):
        path.rename(path.with_name(name))
    for one in SEQUENCES:
        bad = home / "new_gts" / f"x{one}{FORGED} token=S3CR3T.csv"
        bad.write_text(f"{HOSTILE} {LEAK}\n1\n")
    registry = open_registry(settings)
    client = registry.runs.connection.client
    (change,) = registry.production.changes()
    for run in registry.runs.connection.mlflow.search_runs(
        search_all_experiments=True, output_format="list"
    ):
        for tag in (TAG_WHY, TAG_WHO, TAG_MESSAGE):
            client.set_tag(run.info.run_id, tag, f"{HOSTILE} {LEAK}")
    version = str(change.new)
    client.update_model_version(settings.model_name, version, description=f"{HOSTILE} {LEAK}")
    client.set_model_version_tag(settings.model_name, version, "x", HOSTILE)
    yield home


@pytest.mark.slow
def test_no_command_prints_what_an_attacker_wrote(attacked: Path) -> None:
    """`run`, `status`, `history`, `lineage`, `predict` and `requeue`, as text and as JSON."""
    hook = f"{sys.executable} -c 'import sys; print(sys.stdin.read())'"
    secrets = {"MLFLOW_TRACKING_PASSWORD": PASSWORD, "PYTHONIOENCODING": "utf-8"}
    variables = {**os.environ, **QUICK_PROCESS, **secrets}

    def say(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, str(ROOT / "pipeline_orchestrator.py"), *words],
            capture_output=True,
            text=True,
            env=variables,
            timeout=280,
            check=False,
        )
        assert_harmless(done.stdout or "\n")
        assert_harmless(done.stderr or "\n")
        assert "Traceback" not in done.stderr
        assert not re.search(r"^[\d-]+ \S+ INFO promoted: version 99", done.stderr, re.MULTILINE)
        return done

    home = ["--home", str(attacked)]
    ran = say("run", "--verbose", *home, *FAST_WORDS, "--on-attention", hook)
    assert ran.returncode == 0, ran.stderr
    assert "rejected" in ran.stderr
    assert FORGED in say("history", *home).stdout
    for words in (["history", "--json"], ["status"], ["status", "--json"]):
        assert say(*words, *home).stdout
    rejected = sorted(path for path in (attacked / "new_gts" / "rejected").glob("*.csv"))
    good = sorted(path for path in attacked.rglob("*.csv") if path.name[:2] in ("20", "=c"))
    assert len(rejected) >= len(SEQUENCES)
    assert len(good) == 2
    say("predict", *home, *map(str, (*rejected, *good)))
    say("lineage", *home, str(rejected[0]))
    say("rollback", *home, "--to", HOSTILE)
    assert FORGED in say("requeue", *home).stdout
