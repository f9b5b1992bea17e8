"""Whom the contract is tried on: each kind of domain is a `GuestMaker`.

Without Xen these are the in-memory domains. With `--xen` these are real ones, and no others: the in-memory ones take
minutes under emulation and were tried where there is no Xen. `xen_makers.py` in this folder must define

    def makers() -> list[KeepingMaker]: ...

one for each kind of real domain that this host can run, and should raise when it can run none: where Xen was
asked for, its absence is a failure. A maker may keep a booted domain from test to test; every test leaves it
running, with log-dirty off. When the contract is done they are closed: other tests follow, who want no domain but
theirs.

Xenstore has a contract, too: kept in memory, or with `--xen` by the daemon. So has QEMU's monitor, which needs no
Xen: the fake keeps it, and a QEMU that is installed; with `--xen` only the latter is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from guest_makers import MEMORY_MAKERS, GuestMaker, KeepingMaker

from saverestore.guest.ports import SaveGuest

KEEPING: pytest.StashKey[list[KeepingMaker]] = pytest.StashKey()
"""Makers that keep domains from test to test."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--xen", action="store_true", help="try the contract on real domains (needs Xen)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    with_xen = metafunc.config.getoption("--xen", default=False)
    if "store_kind" in metafunc.fixturenames:
        metafunc.parametrize("store_kind", ["xen" if with_xen else "memory"])
    if "monitor_kind" in metafunc.fixturenames:
        metafunc.parametrize("monitor_kind", ["qemu"] if with_xen else ["fake", "qemu"])
    if "maker" not in metafunc.fixturenames:
        return
    makers: Sequence[GuestMaker] = MEMORY_MAKERS
    if with_xen:
        from xen_makers import makers as makers_of_real_domains

        makers = metafunc.config.stash.setdefault(KEEPING, makers_of_real_domains())
    metafunc.parametrize("maker", makers, ids=lambda maker: maker.name)


@pytest.fixture(scope="module", autouse=True)
def kept_domains_end_with_the_contract(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for maker in request.config.stash.get(KEEPING, []):
        maker.close()


@pytest.fixture
def guest(maker: GuestMaker) -> Iterator[SaveGuest]:
    """A running domain of the kind, opened for saving."""
    with maker.running() as found:
        yield found
