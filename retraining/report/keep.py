"""Make a page, keep it in reports/, and give it to MLflow.

Nothing depends on a page: one that cannot be made or kept is a line in the log. Nothing heavy is
imported here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from retraining.cycle import Cycle, CycleResult
from retraining.files import free_name, hash_bytes, make_folder, write_durably
from retraining.outcome import Outcome
from retraining.registry import Registry
from retraining.registry.facts import REPORT_FILE, TAG_BATCH, TAG_CHAMPION, MonitoredBatch
from retraining.registry.store import as_pipeline_error
from retraining.report import facts
from retraining.report.facts import PageFacts
from retraining.settings import Settings
from retraining.text import moment
from retraining.training import load_training_module

if TYPE_CHECKING:
    from pathlib import Path

    from retraining.report.page import Page

LONGEST_HISTORY = 500
"""Monitored batches that a page and the trend in MLflow go back to."""
KEPT_REPORTS = 30
QUIET_NIGHT = "quiet_night.html"
TIME = re.compile('<time datetime="([^"]+)">([^<]+)</time>')

logger = logging.getLogger("pipeline")


def monitored_batches(
    registry: Registry, left_out: Mapping[str, str] | None = None
) -> tuple[MonitoredBatch, ...]:
    """Return how production did on the last batches, the oldest first.

    Parameters
    ----------
    registry
        Has the runs. Of a batch that was monitored again with the same production, the last one.
    left_out
        Tags with the batch and the champion that are about to be monitored, perhaps again.
    """
    found: dict[tuple[str, str], MonitoredBatch] = {}
    for one in reversed(registry.runs.monitored(limit=LONGEST_HISTORY)):
        found.pop((one.batch, one.version), None)
        found[one.batch, one.version] = one
    if left_out:
        found.pop((left_out[TAG_BATCH], left_out[TAG_CHAMPION]), None)
    return tuple(found.values())


def keep_page(cycle: Cycle) -> None:
    """Keep the page of a cycle whose verdict is final, at home and in MLflow."""
    with _only_logged():
        page = _kept(facts.of_cycle(cycle))
        _give_to_mlflow(cycle, page)


def keep_failure_page(cycle: Cycle, error: Exception) -> None:
    """Keep the page of a cycle that failed after monitoring; the store may be what failed."""
    with _only_logged():
        known = as_pipeline_error(error, cycle.settings) or error
        _kept(facts.of_failure(cycle, f"the cycle failed: {str(known) or type(known).__name__}"))


def keep_rollback_page(
    settings: Settings, registry: Registry, run_id: str, number: int, message: str
) -> None:
    """Keep the page of a rollback by hand, at home and with the run of the change.

    Parameters
    ----------
    run_id
        The run `ModelPromotion`.
    number
        The version that is production now.
    message
        What was done, in one line.
    """
    with _only_logged():
        training = load_training_module(settings)
        history = facts.of_rollback(
            settings, training, lambda: monitored_batches(registry), number, message
        )
        page = _kept(history)
        registry.runs.log_file(page.content.encode(), REPORT_FILE, run_id)


def keep_quiet_night(settings: Settings, result: CycleResult) -> None:
    """Keep the page of a night on which nothing was judged; it replaces the one before.

    A cycle that judged something has a page of its own.
    """
    if result.outcome not in (Outcome.WAITING, Outcome.ALREADY_JUDGED):
        return
    with _only_logged():
        make_folder(settings.reports)
        path = settings.reports / QUIET_NIGHT
        told = facts.of_quiet_night(settings, result)
        digest = hash_bytes(repr(dataclasses.replace(told, at="")).encode())
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        # Where nothing but the time is new, Jinja2 would cost as much as all else of such a night.
        if before.endswith(f"<!-- {digest} -->\n") and (time := TIME.search(before)):
            content = before.replace(time[1], told.at).replace(time[2], moment(told.at))
        else:
            content = f"{_made(told).content}<!-- {digest} -->\n"
        write_durably(path, content.encode())


@contextlib.contextmanager
def _only_logged() -> Iterator[None]:
    """Log in one line why there is no page: nothing depends on it."""
    try:
        yield
    except Exception as error:
        logger.warning(
            "the page of this cycle is missing or not in MLflow; all else went on: %s",
            facts.why(error),
        )


def _made(told: PageFacts) -> Page:
    """Make a page; what that takes is not imported on a night like the last one."""
    from retraining.report.page import make_page

    return make_page(told)


def _kept(told: PageFacts) -> Page:
    """Make a page and keep it in reports/, together with those before it."""
    page = _made(told)
    # A disk that is full does not keep it from MLflow.
    with _only_logged():
        folder = told.settings.reports
        make_folder(folder)
        name = f"{told.at[:19].replace(':', '-')}_{told.outcome.value}.html"
        path = folder / free_name(name, folder)
        write_durably(path, page.content.encode())
        kept = oldest_first(folder.glob("????-??-??T*.html"), told.at)
        for old in kept[:-KEPT_REPORTS]:
            old.unlink()
        logger.info("report: %s", path)
    return page


def oldest_first(pages: Iterable[Path], at: str) -> list[Path]:
    """Return pages by their names; first those of days to come, of a clock that was ahead.

    Parameters
    ----------
    at
        The moment that it is, as `text.now` tells it.
    """
    tomorrow = datetime.date.fromisoformat(at[:10]) + datetime.timedelta(days=1)
    return sorted(pages, key=lambda page: (page.stem[:10] <= f"{tomorrow}", page.stem))


def _give_to_mlflow(cycle: Cycle, page: Page) -> None:
    """Give MLflow the page and the charts, each with the run that a person would look at."""
    runs, run_id = cycle.registry.runs, cycle.monitoring_run
    runs.log_file(page.content.encode(), REPORT_FILE, run_id)
    version = cycle.challenger.version if cycle.challenger else None
    training_run = version.run_id if version else ""
    places = {
        "error_over_time": run_id,
        "true_and_predicted": training_run or run_id,
        "importance": training_run,
    }
    from retraining.report.charts import house_style

    with house_style("mlflow"):
        for name, run in places.items():
            if run and name in page.figures:
                runs.log_figure(run, page.figures[name], f"{name}.png")
