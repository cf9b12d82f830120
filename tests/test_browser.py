"""What a person sees in a browser: MLflow's pages, and the page of a cycle."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import FAST, ROOT, copy_home, serve
from playwright.sync_api import Browser, Frame
from screenshots import (
    LOOKS,
    Visit,
    browser_path,
    newest_report,
    open_browser,
    show_experiment,
    show_model,
    show_report,
    visit,
)
from small import make_fast_classifier

import train_classification_model as training
from pipeline_orchestrator import run_orchestrator
from retraining.outcome import Outcome
from retraining.settings import Settings

PICTURES = ROOT / "build" / "pictures"
SERIOUS = {"serious", "critical"}
MODEL = "StemClassifierPostprocessing"
NO_ACCOUNTS = "/ajax-api/2.0/mlflow/users/current"
"""MLflow's pages ask who the user is, and its server without accounts does not know."""
KNOWN_COMPLAINTS = re.compile(r"status of 404 \(Not Found\)|ResizeObserver loop")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a browser, or skip."""
    if browser_path() is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    PICTURES.mkdir(parents=True, exist_ok=True)
    with open_browser() as one:
        yield one


@pytest.fixture(scope="module")
def promoted(
    registered_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Give a home after a promotion, and the verdict."""
    home = copy_home(registered_template, tmp_path_factory.mktemp("browser") / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_classifier", make_fast_classifier)
        result = run_orchestrator(Settings(home=home, **FAST))  # type: ignore[arg-type]
    assert result.outcome is Outcome.PROMOTED
    return home, result.message


def assert_pictures_show(frame: Frame) -> None:
    """Every picture of a page takes room."""
    sizes = frame.eval_on_selector_all(
        "svg[role=img], img", "all => all.map(one => one.getBoundingClientRect().width)"
    )
    assert len(sizes) >= 3
    assert min(sizes) > 100


@pytest.fixture(scope="module")
def server(promoted: tuple[Path, str]) -> Iterator[str]:
    """Serve the home as `make server` does."""
    with serve(promoted[0]) as address:
        yield address


def assert_quiet(one: Visit) -> None:
    """Nothing left this machine, and only MLflow's own pages complained, of what is known."""
    assert one.outside == []
    assert set(one.refused) <= {NO_ACCOUNTS}
    assert [said for said in one.complaints if not KNOWN_COMPLAINTS.search(said)] == []


class TestMlflow:
    """A real server on the home's own store."""

    def test_the_runs_and_the_model_are_there(
        self, browser: Browser, promoted: tuple[Path, str], server: str
    ) -> None:
        """The list of runs, and the alias on the registered model."""
        experiment, _ = newest_report(promoted[0])
        with visit(browser) as one:
            show_experiment(one.page, server, experiment)
            for name in ("ModelMonitoring", "ModelRetraining", "ModelPromotion"):
                one.page.get_by_text(name).first.wait_for()
            one.page.screenshot(path=PICTURES / "experiment.png")
            show_model(one.page, server, MODEL)
            one.page.get_by_text("promoted 20").first.wait_for()
            one.page.screenshot(path=PICTURES / "model.png")
            assert_quiet(one)

    def test_the_page_of_the_cycle_opens_in_the_artifact_viewer(
        self, browser: Browser, promoted: tuple[Path, str], server: str
    ) -> None:
        """With the verdict and its pictures."""
        home, message = promoted
        gain = message.partition("replaces version 1: ")[2].partition(" on ")[0]
        experiment, run = newest_report(home)
        with visit(browser) as one:
            frame = show_report(one.page, server, experiment, run)
            said = " ".join(frame.locator("body").inner_text().split())
            assert "Promoted Version 2 is production now" in said
            assert gain.replace("->", "→") in said
            assert_pictures_show(frame)
            one.page.screenshot(path=PICTURES / "report_in_mlflow.png")
            assert_quiet(one)


class TestReport:
    """The file in reports/, opened without a server."""

    @pytest.mark.sampled(0.34)
    @pytest.mark.parametrize("name", LOOKS)
    def test_it_reads_well_in_every_look(
        self, browser: Browser, promoted: tuple[Path, str], name: str
    ) -> None:
        """Light, dark and on a phone: no complaint, no request, nothing that shuts people out."""
        (page,) = (promoted[0] / "reports").glob("????-??-??T*.html")
        look: dict[str, Any] = LOOKS[name]
        with visit(browser, **look) as one:
            one.page.goto(page.as_uri())
            assert_pictures_show(one.page.main_frame)
            width = one.page.evaluate("document.documentElement.scrollWidth")
            assert width <= one.page.viewport_size["width"]  # type: ignore[index]
            found = Axe().run(one.page).response["violations"]
            one.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
            assert [rule["help"] for rule in found if rule["impact"] in SERIOUS] == []
            assert (one.complaints, one.outside) == ([], [])

    def test_it_can_be_read_by_keyboard(self, browser: Browser, promoted: tuple[Path, str]) -> None:
        """Every link and every wide table can be reached, and shows that it has the focus."""
        (page,) = (promoted[0] / "reports").glob("????-??-??T*.html")
        with visit(browser) as one:
            one.page.goto(page.as_uri())
            stops = one.page.locator("a[href], summary, [tabindex='0']")
            shown = [stop for stop in stops.all() if stop.is_visible()]
            for stop in shown:
                one.page.keyboard.press("Tab")
                assert stop.evaluate("stop => stop === document.activeElement")
                assert stop.evaluate("stop => getComputedStyle(stop).outlineStyle") == "solid"
            assert len(shown) > 5

    def test_what_got_into_it_neither_runs_nor_fetches(
        self, browser: Browser, promoted: tuple[Path, str], tmp_path: Path
    ) -> None:
        """Whoever finds a hole in the escaping gets no script and no request; all else shows."""
        (page,) = (promoted[0] / "reports").glob("????-??-??T*.html")
        with socket.create_server(("127.0.0.1", 0)) as outside, visit(browser) as one:
            address = f"http://127.0.0.1:{outside.getsockname()[1]}"
            hole = (
                "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
                f"<img src={address}/x><iframe src={address}/y></iframe>"
                f"<form action={address}/z><input name=x></form>"
            )
            attacked = tmp_path / "page.html"
            attacked.write_text(page.read_text().replace("<main>", f"<main>{hole}"))
            one.page.goto(attacked.as_uri())
            assert one.page.title() not in ("", "run")
            details = one.page.locator("details").first
            details.locator("summary").click()
            assert details.locator("table, p").first.is_visible()
            assert one.page.locator("svg[role=img]").first.is_visible()
            one.page.evaluate("document.forms[0].submit()")
            one.page.wait_for_timeout(300)
            assert one.page.url == attacked.as_uri()
            said = " ".join(one.complaints)
            for what in ("Executing inline script", "Framing", "the image", "Sending form data"):
                assert what in said
            assert heard(outside) == b""


def heard(server: socket.socket) -> bytes:
    """Return what clients have sent; a browser may connect before it looks at the policy."""
    server.settimeout(0.3)
    sent = b""
    with contextlib.suppress(TimeoutError):
        while True:
            client, _ = server.accept()
            with client, contextlib.suppress(TimeoutError):
                client.settimeout(0.3)
                sent += client.recv(1000)
    return sent
