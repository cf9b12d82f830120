"""Small models and no charts: what takes most of the time of a cycle, and is proved elsewhere."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def make_fast_classifier(random_state: int = 42) -> Any:
    """Return a small classifier: milliseconds instead of seconds for a fit."""
    from sklearn.ensemble import ExtraTreesClassifier

    return ExtraTreesClassifier(
        20, min_samples_leaf=2, class_weight="balanced", random_state=random_state
    )


MODELS = {"make_classifier": make_fast_classifier, "N_TREES": 10}
"""What stands in for names of the two training modules."""


class NoCharts:
    """Stands in for `retraining.report.charts`: draws nothing."""

    def __getattr__(self, name: str) -> Any:
        """Return a constant, or what makes no figure, whatever it is given."""
        from retraining.report import charts

        found = getattr(charts, name)
        return (lambda *_, **__: None) if callable(found) else found


def without_charts(page: ModuleType) -> dict[str, Any]:
    """Return what stands in for names of `retraining.report.page`."""
    return {
        "charts": NoCharts(),
        "_chart": lambda _n, _f, said, *_, **__: page.Paragraph(said),
    }
