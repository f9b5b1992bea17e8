import logging
import sys
from pathlib import Path

import pytest

# The samples belong to the vectors, and are shared by several folders of tests.
sys.path.insert(0, str(Path(__file__).parents[2] / "vectors"))

from saverestore.process import ending


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch):
    """The helper owns its process, and its log. Here that must not outlive the test."""
    loggers = (logging.getLogger(), logging.getLogger("pyxc.libxc"))
    levels = [logger.level for logger in loggers]
    monkeypatch.setattr(loggers[0], "handlers", [])
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def followed(monkeypatch) -> list[bool]:
    """Whether libxl need not wait for the memory of the helper's process: an entry each time that is said."""
    said: list[bool] = []
    monkeypatch.setattr(ending, "let_memory_follow", lambda: said.append(True))
    return said
