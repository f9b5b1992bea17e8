"""Whom the contract is tried on: each kind of domain is a `GuestMaker`.

Without Xen these are the in-memory domains. With `--xen`, the makers of `xen_makers.py` in this folder are
added: it must define

    def makers() -> list[GuestMaker]: ...

one for each kind of real domain that this host can run, and should raise when it can run none: where Xen was
asked for, its absence is a failure. A maker may keep a booted domain from test to test; every test leaves it
running, with log-dirty off.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guest_makers import MEMORY_MAKERS, GuestMaker

from saverestore.guest.ports import SaveGuest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--xen", action="store_true", help="try the contract on real domains, too (needs Xen)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "maker" not in metafunc.fixturenames:
        return
    makers = list(MEMORY_MAKERS)
    if metafunc.config.getoption("--xen", default=False):
        from xen_makers import makers as makers_of_real_domains

        makers += makers_of_real_domains()
    metafunc.parametrize("maker", makers, ids=lambda maker: maker.name)


@pytest.fixture
def guest(maker: GuestMaker) -> Iterator[SaveGuest]:
    """A running domain of the kind, opened for saving."""
    with maker.running() as found:
        yield found
