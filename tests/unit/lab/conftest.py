from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))


@pytest.fixture
def lab_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In a folder whose name is short: there are sockets below it."""
    with tempfile.TemporaryDirectory(prefix="lab-") as name:
        folder = Path(name) / "cache"
        monkeypatch.setenv("PYSAVE_LAB_CACHE", str(folder))
        yield folder
