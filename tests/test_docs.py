"""The documents say what the code does, and their commands run."""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import functools
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import house
import pytest
from conftest import BATCH, ROOT, free_port
from sample_gts import write_recordings

from pipeline_orchestrator import REPLAY, RUN
from retraining import notices
from retraining.commands import COMMANDS
from retraining.errors import EXIT_ERROR, EXIT_SIGNAL_BASE, EXIT_STATUSES, EXIT_USAGE
from retraining.registry import facts
from retraining.settings import Settings, environment_variable, flag

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
MEASURED = {f"docs/{name}.md" for name in ("benchmarks", "crash_sweep", "outage_sweep")} | {
    f"docs/{name}.md" for name in ("before_labels_figures", "drift_halves", "gate", "real_splits")
}
"""Written by programs of tests/tools/."""
DOCUMENTS = "\n".join(text for name, text in PAGES.items() if name not in MEASURED)
README, OPERATIONS = PAGES["README.md"], PAGES["docs/operations.md"]
SERVING, OWN_MODEL = PAGES["docs/serving.md"], PAGES["docs/own_model.md"]
LARGEST_README_BYTES = 12_000
WORDS_OF_A_SENTENCE = 7
COMMAND_NAMES = [command.name for command in (RUN, *COMMANDS, REPLAY)]
SCRIPTS = (
    *("pipeline_orchestrator.py", "register_first_model.py", "train_classification_model.py"),
    "docs/own_model/make_samples.py",
)
FOLDER, SECOND_HOME = "/srv/stems", "/srv/oaks"

RUN_ELSEWHERE = {
    "git pull": "needs a remote",
    "sudo": "changes the machine",
    "brew": "for macOS",
    "systemctl": "asks a systemd that runs",
    "journalctl": "asks a systemd that runs",
    "python3 -m venv": "fetches packages",
    ".venv/bin/pip": "fetches packages",
    "export": "for the shell of a server",
    "mlflow models": "tests/test_serving.py",
    ".venv/bin/python docs/serv": "tests/test_serving.py",
    "curl": "tests/test_serving.py",
    "WEBHOOK_SECRET=": "tests/test_webhook_receiver.py",
    ".venv/bin/mlflow server": "tests/test_postgresql.py",
    ".venv/bin/mlflow db upgrade": "tests/test_postgresql.py",
    "pg_dump": "needs a database",
    "aws": "needs a bucket",
}
OTHER_PROGRAMS = {
    "apprise": {"--title", "--config"},
    "xcode-select": {"--install"},
    "systemctl": {"--now"},
    "journalctl": {"--unit"},
    "createuser": {"--pwprompt"},
    "createdb": {"--owner"},
    "pg_dump": {"--format", "--file"},
    "pip": {"--upgrade"},
    "dask": {"--nthreads", "--nworkers"},
    "curl": {
        *("--fail", "--silent", "--show-error", "--output", "--max-time"),
        *("--header", "--data-binary"),
    },
}
SCHEDULE = re.compile(r"((?:[\d*/,-]+ +){4}[\d*/,-]+) +(.+)")
ASSIGNMENT = re.compile(r"([A-Z_0-9]+)=(.*)")


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of one language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def shell_lines(text: str) -> list[str]:
    """Return the lines of all shell blocks, comments left out."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return [bare for line in lines if (bare := re.sub(r"\s+#.*", "", line).strip())]


def crontab_lines(text: str) -> list[str]:
    """Return the lines of all crontabs, comments left out."""
    lines = [line for block in blocks(text, "crontab") for line in block.splitlines()]
    return [line for line in lines if not line.startswith("#")]


def run_elsewhere(line: str) -> bool:
    """Say whether a command has a reason not to be run here."""
    return line.startswith(tuple(RUN_ELSEWHERE))


@functools.cache
def help_of(script: str, *command: str) -> str:
    """Return what --help says."""
    done = subprocess.run(
        [sys.executable, script, *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def flags(text: str) -> set[str]:
    """Return the long flags that a text names."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", text))


def links(text: str) -> list[str]:
    """Return the targets of a page's links and pictures that lie in this checkout."""
    return re.findall(r"\]\((?!http)([^)]+)\)", text)


def sentences(text: str) -> list[str]:
    """Return what a page says outside of code, in sentences and cells that are no mere labels."""
    prose = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE)
    parts = re.split(r"[.:;?!]\s|\n\s*(?:\n|[-*#|] ?)| \| ", prose)
    said = (" ".join(part.split()).strip(" |.") for part in parts)
    return [one for one in said if len(one.split()) >= WORDS_OF_A_SENTENCE]


def cells(text: str) -> list[str]:
    """Return the first cells of a page's tables, headings left out."""
    return re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)


class TestReference:
    """Settings, commands, exit statuses and names."""

    @pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: field.name)
    def test_every_setting_stands_in_the_settings(self, field: dataclasses.Field[object]) -> None:
        """With its flag, its environment variable and its default."""
        lines = PAGES["docs/settings.md"].splitlines()
        (row,) = [line for line in lines if line.startswith(f"| `{flag(field)}` ")]
        assert f"`{environment_variable(field)}`" in row
        if field.default is None:
            assert f"the training module's `{field.name.upper()}`" in row
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f" {field.default:.15g} " in row

    def test_every_setting_of_the_settings_exists(self) -> None:
        """No row is left of one that went."""
        rows = re.findall(r"^\| `(--[\w-]+)` ", PAGES["docs/settings.md"], re.MULTILINE)
        assert rows == [flag(field) for field in dataclasses.fields(Settings)]

    def test_every_exit_status_stands_in_the_readme(self) -> None:
        """In the words of --help."""
        for status, meaning in EXIT_STATUSES.items():
            assert f"| {status} | {meaning} |" in README

    def test_every_exit_status_of_the_text_exists(self) -> None:
        """Also that of systemd's lines."""
        text = DOCUMENTS.replace(f"{EXIT_SIGNAL_BASE} + n", "")
        named = set(re.findall(r"(?:exits? (?:with )?|exit status |Status )(\d+)", text))
        assert "75" in named
        assert named <= set(EXIT_STATUSES)
        assert f"RestartPreventExitStatus={EXIT_ERROR} {EXIT_USAGE}\n" in OPERATIONS
        assert f"SuccessExitStatus={EXIT_SIGNAL_BASE + signal.SIGTERM}\n" in OPERATIONS

    @pytest.mark.parametrize("name", COMMAND_NAMES)
    def test_every_command_stands_in_docs_and_help(self, name: str) -> None:
        """With its options; each has a help of its own."""
        assert re.search(rf"pipeline_orchestrator\.py \[?{name}\b", PAGES["docs/commands.md"])
        assert flags(help_of("pipeline_orchestrator.py", name)) - {"--help"} <= flags(DOCUMENTS)

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_every_option_of_a_script_stands_in_the_docs(self, script: str) -> None:
        """Also of those that have no commands; make_samples.py says it itself."""
        text = DOCUMENTS + (ROOT / script).read_text()
        assert flags(help_of(script)) - {"--help"} <= flags(text)

    def test_every_flag_of_the_text_exists(self) -> None:
        """In one of the scripts, in MLflow's programs or in a program that is named."""
        from mlflow.cli import cli

        ours = [help_of(SCRIPTS[0], name) for name in COMMAND_NAMES] + [
            help_of(name) for name in SCRIPTS
        ]
        models = cli.commands["models"].commands
        programs = [cli.commands["server"], models["serve"], models["predict"]]
        mlflow_flags = {one for each in programs for p in each.params for one in p.opts}
        known = flags("\n".join(ours)) | mlflow_flags | set().union(*OTHER_PROGRAMS.values())
        assert flags(DOCUMENTS) - known == set()

    @pytest.mark.parametrize("program", OTHER_PROGRAMS)
    def test_flags_of_other_programs_exist(self, program: str) -> None:
        """Where the program is at hand."""
        beside = Path(sys.executable).with_name(program)
        path = str(beside) if beside.exists() else shutil.which(program)
        path = sys.executable if program == "pip" else path
        if path is None:
            pytest.skip(f"no {program} on this machine")
        ask = {
            "pip": ["-m", "pip", "install", "--help"],
            "curl": ["--help", "all"],
            "dask": ["worker", "--help"],
        }
        words = [path, *ask.get(program, ["--help"])]
        shown = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        assert OTHER_PROGRAMS[program] <= flags(shown.replace("=", " "))

    def test_every_environment_variable_exists(self) -> None:
        """Ours in the settings, MLflow's in MLflow."""
        import mlflow

        ours = {environment_variable(field) for field in dataclasses.fields(Settings)}
        assert set(re.findall(r"\bPIPELINE_\w+", DOCUMENTS)) <= ours
        source = "".join(
            path.read_text()
            for path in (
                Path(mlflow.__path__[0]) / "environment_variables.py",
                Path(mlflow.__path__[0]) / "server" / "auth" / "__init__.py",
            )
        )
        for name in set(re.findall(r"\bMLFLOW_\w+", DOCUMENTS)):
            assert f'"{name}"' in source, name

    def test_every_run_name_exists(self) -> None:
        """The README and the glossary name the runs as MLflow shows them."""
        runs = {facts.MONITORING_RUN, facts.RETRAINING_RUN, facts.PROMOTION_RUN}
        for text in (README, OPERATIONS):
            assert set(re.findall(r"\bModel[A-Z]\w+", text)) == runs
        for alias in (facts.PRODUCTION, facts.PREVIOUS):
            assert f"`{alias}`" in DOCUMENTS

    @pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z-]+)", DOCUMENTS))))
    def test_every_make_target_exists(self, target: str) -> None:
        """And what it needs."""
        subprocess.run(
            ["make", "-n", target, f"PYTHON={sys.executable}"],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )


class TestPages:
    """The README is the door: short, and every page is reached from it."""

    def test_the_readme_is_short(self) -> None:
        """What does not fit has a page in docs/."""
        assert len(README.encode()) <= LARGEST_README_BYTES

    @pytest.mark.parametrize("name", [*PAGES, "CHANGELOG.md"])
    def test_every_link_leads_somewhere(self, name: str) -> None:
        """To a file, and to a heading of it."""
        page = ROOT / name
        for target in links(page.read_text()):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.is_file(), target
            if anchor:
                headings = re.findall(r"^#+ (.+)", file.read_text(), re.MULTILINE)
                assert anchor in [
                    re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings
                ], target

    def test_every_page_is_linked(self) -> None:
        """And every program and picture of docs/: from the README, or from a page that is."""
        reached, waiting = {Path("README.md")}, [Path("README.md")]
        while waiting:
            page = waiting.pop()
            targets = {target.partition("#")[0] for target in links((ROOT / page).read_text())}
            found = {Path(os.path.normpath(page.parent / one)) for one in targets if one} - reached
            reached |= found
            waiting += [one for one in found if one.suffix == ".md"]
        there = {path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.*")}
        kept = {path for path in there if path.suffix in {".md", ".py", ".png"}}
        assert kept - reached == set()

    def test_no_sentence_stands_twice(self) -> None:
        """A fact has one place; elsewhere is a link."""
        places: dict[str, list[str]] = {}
        for name, text in PAGES.items():
            for sentence in sentences(text):
                places.setdefault(sentence, []).append(name)
        assert {one: names for one, names in places.items() if len(names) > 1} == {}

    def test_the_readme_shows_the_house(self) -> None:
        """Its tables name every script and every part of the package, in the order of imports."""
        section = README.split("## Where things are")[1].split("\n## ")[0]
        top, package = section.split("Inside `retraining/`")
        named = re.findall(r"`(\w+)\.py`", top)
        assert sorted(named) == sorted(house.SCRIPTS)
        rows = [re.findall(r"`(\w+)(?:\.py|/)`", line) for line in cells(package)]
        *inside, _scripts = ([one.removesuffix(".*") for one in row] for row in house.ORDER)
        assert [sorted(row) for row in rows] == [sorted(row) for row in inside]


class TestCommandLines:
    """Every line that a reader may copy is complete; quick checks without a cycle."""

    @pytest.mark.parametrize(
        "line", [*shell_lines(DOCUMENTS), *re.findall(r"`([^`\n]+\.py [^`]+)`", DOCUMENTS)]
    )
    def test_flags_belong_to_the_script(self, line: str) -> None:
        """Each flag is one of that very command."""
        words = shlex.split(line)
        for script in SCRIPTS:
            if not any(word.endswith(script) for word in words[:2]):
                continue
            rest = words[[word.endswith(script) for word in words].index(True) + 1 :]
            command = rest[:1] if rest and rest[0] in COMMAND_NAMES else []
            if script == SCRIPTS[0] and not command:
                command = ["run"]
            named = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert named <= flags(help_of(script, *command))

    @pytest.mark.parametrize(
        "line",
        [one for one in shell_lines(DOCUMENTS) if re.match(r"(\.venv/bin/)?mlflow ", one)],
    )
    def test_flags_belong_to_mlflow(self, line: str) -> None:
        """`mlflow server`, `mlflow db upgrade` and `mlflow models`."""
        from mlflow.cli import cli

        command: Any = cli
        words = shlex.split(line)[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        with command.make_context(command.name, words) as context:
            assert context.params

    @pytest.mark.parametrize("line", crontab_lines(DOCUMENTS))
    def test_crontab_lines_are_valid(self, line: str) -> None:
        """A schedule that comes every day, without a bare %; or a variable that exists."""
        from croniter import croniter

        scheduled = SCHEDULE.fullmatch(line)
        if scheduled is None:
            assigned = ASSIGNMENT.fullmatch(line)
            assert assigned is not None, line
            assert assigned[1] == "MAILTO" or assigned[1].startswith(("PIPELINE_", "MLFLOW_"))
            assert '"' not in assigned[2]  # cron would keep them
            return
        times = croniter(scheduled[1], 0)
        assert times.get_next() <= 86_400
        assert "%" not in scheduled[2]  # cron takes it for the end of a line
        assert f"cd {FOLDER} && " in scheduled[2]

    def test_systemd_units_are_valid(self, tmp_path: Path) -> None:
        """The service runs what cron runs; `systemd-analyze verify` where there is one."""
        service, timer = blocks(OPERATIONS, "ini")
        units = configparser.ConfigParser(interpolation=None)
        units.optionxform = str  # type: ignore[assignment,method-assign]
        units.read_string(service)
        python, script = units["Service"]["ExecStart"].split(maxsplit=1)
        assert f"{units['Service']['WorkingDirectory']}/.venv/bin/python" == python
        assert script in SCRIPTS
        if shutil.which("systemd-analyze") is None:
            pytest.skip("no systemd-analyze on this machine")
        (tmp_path / "stems.service").write_text(
            service.replace(python, sys.executable).replace(FOLDER, str(tmp_path))
        )
        (tmp_path / "stems.timer").write_text(timer)
        done = subprocess.run(
            ["systemd-analyze", "verify", tmp_path / "stems.service", tmp_path / "stems.timer"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_the_curl_hook_posts_the_document(self, tmp_path: Path) -> None:
        """To an address on loopback, through the pipeline's own call."""
        if shutil.which("curl") is None:
            pytest.skip("no curl on this machine")
        (line,) = [one for one in crontab_lines(OPERATIONS) if "=curl " in one]
        posted: list[dict[str, Any]] = []

        class Receiver(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Content-Type"] == "application/json"
                posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

        with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
            threading.Thread(target=server.handle_request, daemon=True).start()
            command = line.partition("=")[2].replace(
                "https://hooks.example.org", f"http://127.0.0.1:{server.server_port}"
            )
            settings = Settings(home=tmp_path, on_attention=command)
            notices.call_for_attention(settings, "failed", "a message")
        assert [(one["event"], one["message"]) for one in posted] == [("failed", "a message")]

    @pytest.mark.parametrize("code", blocks(DOCUMENTS, "python"))
    def test_python_blocks_compile(self, code: str) -> None:
        """They are run by the slow tests and by tests/test_webhook_receiver.py."""
        compile(code, "a document", "exec")


@dataclasses.dataclass(frozen=True)
class Machine:
    """A fresh machine as the documents assume it: a checkout at FOLDER, recordings in ~."""

    root: Path

    def run(self, line: str, *, quick: bool = True) -> str:
        """Run one line as cron does, with nothing in the environment; return its output."""
        print(f"$ {line}", flush=True)
        done = subprocess.run(
            ["/bin/sh", "-c", line.replace("/srv/", f"{self.root}/srv/")],
            cwd=self.root / FOLDER.lstrip("/"),
            env={
                "HOME": str(self.root / "person"),
                "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
                **(
                    {"PIPELINE_MIN_NEW_FILES": f"{BATCH}", "PIPELINE_N_FOLDS": "3"} if quick else {}
                ),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        print(done.stdout, flush=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Give a fresh machine; its .venv is the tester's Python, whose packages stay as they are."""
    stems = tmp_path / FOLDER.lstrip("/")
    stems.mkdir(parents=True)
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.txt"), ROOT / "Makefile"]:
        shutil.copy(path, stems)
    for name in ("retraining", "tests", "docs"):
        shutil.copytree(ROOT / name, stems / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("new_gts", "used_gts", "model", ".venv/bin"):
        (stems / name).mkdir(parents=True)
    for name, words in {"python": "", "mlflow": " -m mlflow"}.items():
        program = stems / ".venv" / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{words} "$@"\n')
        program.chmod(0o755)
    for mark in (".runtime", ".development"):
        (stems / ".venv" / mark).touch()
    for season, kind, seed in (("last_season", "old", 1), ("new_season", "new", 2)):
        folder = tmp_path / "person" / "checked" / season
        folder.mkdir(parents=True)
        write_recordings(folder, BATCH, kind, seed=seed, prefix=season)
    return Machine(tmp_path)


@contextlib.contextmanager
def running(machine: Machine, line: str) -> Iterator[str]:
    """Run a server of `make` on a free port until the block ends; give its address."""
    port = free_port()
    process = subprocess.Popen(
        [*shlex.split(line), f"PORT={port}"],
        cwd=machine.root / FOLDER.lstrip("/"),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health"):
                break
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.slow
class TestAFreshMachine:
    """The commands of the documents, in their order, as a person and as cron."""

    def test_the_commands_run(self, machine: Machine) -> None:
        """Own data, a cycle, nights with cron, a second model, an upgrade, serving."""
        for line in shell_lines(README + OWN_MODEL):
            if not run_elsewhere(line):
                machine.run(line)
        for home in ("", " --home /srv/grain --model-name Grain"):
            state = machine.run(f".venv/bin/python pipeline_orchestrator.py status{home}")
            assert "production: version 2 " in state
        for line in shell_lines(SERVING + OPERATIONS):
            if not run_elsewhere(line):
                machine.run(line)
        for line in crontab_lines(DOCUMENTS):
            if scheduled := SCHEDULE.fullmatch(line):
                assert machine.run(scheduled[2]) == ""
        assert (machine.root / "srv/stems/pipeline.log").read_text() == ""
        (serving,) = blocks(SERVING, "python")
        recording = next((machine.root / "person/checked/new_season").iterdir())
        machine.run(f"cp {recording} recording.csv")
        machine.run(f"{shlex.quote(sys.executable)} -c {shlex.quote(serving)}")

    def test_the_demo_and_its_server(self, machine: Machine) -> None:
        """`make demo` tells the whole story; `make server` shows it."""
        assert "promoted" in machine.run("make demo", quick=False)
        with running(machine, "make server HOME_FOLDER=demo") as address:
            for path in ("/health", "/"):
                with urllib.request.urlopen(address + path) as answer:
                    assert answer.status == 200
