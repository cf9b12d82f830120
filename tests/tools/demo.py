"""The whole story in a folder of its own: train, register, degrade, retrain, promote, rest.

Runs the very commands that a person or cron would run, on synthetic recordings.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from sample_gts import write_recordings

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "demo"
FOLDERS = ("new_gts", "used_gts", "model", "mlflow_server/artifacts", "mlflow_server/backend_db")


def tell(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


def command(*words: str) -> str:
    """Show and run one of the project's commands; return what it printed."""
    shown = " ".join(words)
    print(f"$ python {shown} --home demo", flush=True)
    result = subprocess.run(
        [sys.executable, str(ROOT / words[0]), *words[1:], "--home", str(HOME)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(result.stdout, end="", flush=True)
    if result.returncode:
        sys.exit(f"the demo stopped: {shown} ended with status {result.returncode}")
    return result.stdout


def main() -> None:
    """Run the story from an empty folder."""
    shutil.rmtree(HOME, ignore_errors=True)
    for folder in FOLDERS:
        (HOME / folder).mkdir(parents=True)
    tell(
        "1. Eighteen recordings of last season, checked by hand, and a first model trained on them"
    )
    write_recordings(HOME / "used_gts", 18, "old", seed=1, prefix="last_season")
    command("train_classification_model.py")
    tell("2. Once: the first model becomes production")
    command("register_first_model.py")
    tell(
        "3. A new season: fifteen recordings whose false counts look different; cron's nightly run"
    )
    write_recordings(HOME / "new_gts", 15, "new", seed=2, prefix="new_season")
    command("pipeline_orchestrator.py")
    tell("4. The next night: nothing to do")
    command("pipeline_orchestrator.py")
    tell("5. What a person sees")
    command("pipeline_orchestrator.py", "status")
    command("pipeline_orchestrator.py", "history")
    tell("What happened")
    print(
        "Production erred far beyond 10 % on the new season, so a challenger was trained on both\n"
        "seasons, compared on the fifteen new recordings, promoted, and the files archived in\n"
        "demo/used_gts/. The page in demo/reports/ tells it with charts: open it in a browser.\n"
        "Look at runs, versions and aliases with\n\n"
        "    make server HOME_FOLDER=demo        then open http://127.0.0.1:5000\n"
    )


if __name__ == "__main__":
    main()
