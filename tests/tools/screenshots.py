"""Open MLflow's pages and a cycle's page in Chromium, as a person would, and take pictures.

Usage::

    make screenshots          (after `make demo`; the pictures go to docs/screenshots/)

Debian's chromium or any other of `BROWSERS` must be installed.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from playwright.sync_api import Browser, Frame, Page, Request, Response, Route, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
LOCAL = {"127.0.0.1", "localhost", ""}
PATIENCE = 30_000
"""Milliseconds for a page; the first one of a server takes the longest."""


def browser_path() -> str | None:
    """Return the first browser that is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


LOOKS: dict[str, dict[str, Any]] = {
    "report": {},
    "report_dark": {"color_scheme": "dark"},
    "report_phone": {"viewport": {"width": 390, "height": 844}},
}
"""Of a cycle's page."""


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=OPTIONS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """One page in a browser, and what it did behind the scenes.

    Parameters
    ----------
    page
        The tab.
    outside
        Addresses beyond this machine that it asked for; they are refused.
    complaints
        Errors on its console.
    refused
        Paths that a server answered with an error.
    """

    page: Page
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE)
        self.page.route("**/*", self._stay_here)
        self.page.on("request", self._note)
        self.page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type == "error" else None,
        )
        self.page.on("response", self._check)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note(self, request: Request) -> None:
        if urlparse(request.url).hostname not in {*LOCAL, None}:
            self.outside.append(request.url)

    def _check(self, response: Response) -> None:
        if response.status >= 400:
            self.refused.append(urlparse(response.url).path)

    def _stay_here(self, route: Route) -> None:
        host = urlparse(route.request.url).hostname
        route.continue_() if host in {*LOCAL, None} else route.abort()


@contextlib.contextmanager
def visit(browser: Browser, **look: Any) -> Iterator[Visit]:
    """Open a tab of its own."""
    context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **look})
    yield Visit(context.new_page())
    context.close()


def newest_report(home: Path) -> tuple[str, str]:
    """Return experiment and run id of the newest run that carries a cycle's page."""
    database = home / "mlflow_server/backend_db/mlflow.db"
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as store:
        rows = store.execute(
            "SELECT experiment_id, run_uuid, artifact_uri FROM runs ORDER BY start_time DESC"
        ).fetchall()
    for experiment, run, uri in rows:
        if Path(urlparse(uri).path, "cycle_report.html").is_file():
            return str(experiment), str(run)
    raise FileNotFoundError(f"no run of {home} carries a cycle's page")


def show_experiment(page: Page, server: str, experiment: str) -> None:
    """Open the list of runs."""
    page.goto(f"{server}/#/experiments/{experiment}/runs")
    page.get_by_text("ModelMonitoring").first.wait_for()


def show_model(page: Page, server: str, name: str) -> None:
    """Open the registered model."""
    page.goto(f"{server}/#/models/{name}")
    page.get_by_text("production", exact=False).first.wait_for()


def show_report(page: Page, server: str, experiment: str, run: str) -> Frame:
    """Open a cycle's page in the artifact viewer; return its frame."""
    page.goto(f"{server}/#/experiments/{experiment}/runs/{run}/artifacts/cycle_report.html")
    page.locator("iframe").first.wait_for()
    frame = page.locator("iframe").first.element_handle().content_frame()
    assert frame is not None
    frame.locator("h1").first.wait_for()
    return frame


def main() -> int:
    """Take the pictures for the documentation."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import serve

    parser = argparse.ArgumentParser(description="Take pictures of the demo.")
    parser.add_argument("--home", type=Path, default=ROOT / "demo")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "screenshots")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    experiment, run = newest_report(options.home)
    reports = sorted((options.home / "reports").glob("????-??-??T*.html"))
    with serve(options.home) as server, open_browser() as browser:
        with visit(browser) as one:
            show_experiment(one.page, server, experiment)
            one.page.screenshot(path=options.folder / "experiment.png")
            show_model(one.page, server, "StemClassifierPostprocessing")
            one.page.screenshot(path=options.folder / "model.png")
            show_report(one.page, server, experiment, run)
            path = one.page.get_by_text("Path: ")  # of the machine where the demo ran
            one.page.screenshot(path=options.folder / "report_in_mlflow.png", mask=[path])
        for name, look in LOOKS.items():
            with visit(browser, **look) as one:
                one.page.goto(reports[-1].as_uri())
                one.page.screenshot(path=options.folder / f"{name}.png")
    print(f"wrote {len(list(options.folder.glob('*.png')))} pictures to {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
