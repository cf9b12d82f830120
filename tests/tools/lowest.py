"""Run a small set of tests with the lowest versions that the requirements allow, and elsewhere.

Usage::

    python tests/tools/lowest.py [--python VERSION ...]

With the oldest Python the lowest version of each package that requirements.txt and
tests/requirements.txt name, as `uv pip install --resolution lowest-direct` finds them, so that the
lower bounds are real; with every other Python at hand the newest ones. Each in a virtual
environment of its own, which is removed. A Python that is not there is told, and skipped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OLDEST, *OTHERS = "3.11", "3.12", "3.13", "3.14"
CYCLES = "tests/test_pipeline_orchestrator.py"
FEW = (f"{CYCLES}::TestPromotion", "tests/test_workers.py")
MORE = (f"{CYCLES}::TestHealthyProduction", "tests/registry/test_store.py")
"""With the lowest versions."""


def interpreter(version: str) -> str | None:
    """Return a Python of a version that works; None if there is none."""
    beside = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    candidates = [
        *([sys.executable] if sys.version.startswith(f"{version}.") else []),
        *([found] if (found := shutil.which(f"python{version}")) else []),
        *map(str, sorted(beside.glob(f"{version}*/bin/python{version}"))),
    ]
    for candidate in candidates:
        asked = subprocess.run(
            [candidate, "-c", "import sqlite3, ssl"], capture_output=True, check=False
        )
        if asked.returncode == 0:
            return candidate
    return None


def uv(*words: str) -> bool:
    """Run a command of uv; say whether that went well."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
    program = shutil.which("uv", path=beside) or "uv"
    return subprocess.run([program, *words, "--quiet"], cwd=ROOT, check=False).returncode == 0


def run_tests(version: str, python: str) -> int:
    """Install what the tests need and run them; return the exit status."""
    how = "lowest-direct" if version == OLDEST else "highest"
    with tempfile.TemporaryDirectory(prefix="pipeline-lowest-") as folder:
        environment = Path(folder, "venv")
        begun = time.monotonic()
        install = ["pip", "install", "--python", str(environment / "bin/python")]
        if not (uv("venv", "--python", python, str(environment)) and uv(*install, "iniconfig")):
            print(f"Python {version}: uv can install nothing here: skipped")
            return 0
        # Compiling later would show the packages' own warnings, which fail a test.
        options = ["--resolution", how, "--compile-bytecode"]
        if not uv(*install, *options, "-r", "requirements.txt", "-r", "tests/requirements.txt"):
            return 1
        print(f"Python {version}, {how} versions: {time.monotonic() - begun:.0f} s to install")
        return subprocess.run(
            [
                *(environment / "bin/python", "-m", "pytest", "-q", "-m", "not slow"),
                *("-n", "auto", "--dist", "loadfile", "-p", "no:cacheprovider"),
                *FEW,
                *(MORE if version == OLDEST else ()),
            ],
            cwd=ROOT,
            check=False,
        ).returncode


def main() -> int:
    """Run all; return 1 if one fails, or if there is no oldest Python."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="*", default=[OLDEST, *OTHERS], help="3.11 3.12 ...")
    failed = False
    for version in parser.parse_args().python:
        python = interpreter(version)
        if python is None:
            print(f"Python {version} is not at hand: skipped")
            continue
        failed |= run_tests(version, python) != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
