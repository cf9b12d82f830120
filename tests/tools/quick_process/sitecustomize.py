"""Let a process that has this folder in PYTHONPATH train small models and draw no charts."""

from __future__ import annotations

import importlib.machinery
from types import ModuleType

from small import MODELS, without_charts

_execute = importlib.machinery.SourceFileLoader.exec_module


def execute(loader: importlib.machinery.SourceFileLoader, module: ModuleType) -> None:
    """Execute a module; then let what is small stand in for some of its names."""
    _execute(loader, module)
    for name, value in MODELS.items():
        if hasattr(module, name):
            setattr(module, name, value)
    if module.__name__ == "retraining.report.page":
        vars(module).update(without_charts(module))


importlib.machinery.SourceFileLoader.exec_module = execute  # type: ignore[assignment,method-assign]
