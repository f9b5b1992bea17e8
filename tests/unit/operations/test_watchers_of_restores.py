"""When a restore starts the process that watches its domain, and when that gets the domain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import RestoringHost, image_in

from saverestore.engine.progress import Silence
from saverestore.operations.requests import RestoreRequest
from saverestore.operations.restore import restore_domain
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, empty_like


class Watched(RestoringHost):
    """Writes down what becomes of its watcher."""

    def __init__(self, domain: MemoryDomain) -> None:
        super().__init__(MemoryRestore(empty_like(domain)))
        self.story: list[str] = []
        self.on_create = lambda: self.story.append("the domain is there")

    @contextmanager
    def watcher(self, _name: str) -> Iterator[Any]:
        self.story.append("started")
        yield SimpleNamespace(
            watch=lambda domid: self.story.append(f"has domain {domid}, running: {self.running}")
        )
        self.story.append("let go")


def test_it_starts_before_the_domain_and_gets_it_once_it_runs(tmp_path: Path):
    saved = MemoryDomain.pvh(64)
    host = Watched(saved)
    restore_domain(RestoreRequest(str(image_in(tmp_path, saved))), Silence(), host=host)
    assert host.story == ["started", "the domain is there", "has domain 5, running: {5}", "let go"]


def test_none_is_started_where_none_is_wanted(tmp_path: Path):
    saved = MemoryDomain.pvh(64)
    host = Watched(saved)
    restore_domain(RestoreRequest(str(image_in(tmp_path, saved)), watch=False), Silence(), host=host)
    assert host.story == ["the domain is there"]
