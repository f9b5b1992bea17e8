"""Transactions of xenstore are tried again, but not without end."""

from __future__ import annotations

import errno

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from pyxc import XenError
from saverestore.guest.common.transactions import ATTEMPTS, in_transaction, write_below
from saverestore.testing.store import MemoryStore


def test_a_transaction_that_is_disturbed_once_succeeds_the_next_time():
    store, attempts = MemoryStore(), []

    def work(transaction):
        attempts.append(transaction.read("/a"))
        if len(attempts) == 1:
            store.write("/a", "meanwhile")
        transaction.write("/b", "mine")
        return "done"

    assert in_transaction(store, work) == "done"
    assert attempts == [None, "meanwhile"]
    assert store.read("/b") == "mine"


def test_one_that_is_disturbed_each_time_is_given_up_with_nothing_written():
    store, attempts = MemoryStore(), []

    def work(transaction):
        transaction.read("/a")
        attempts.append(None)
        store.write("/a", str(len(attempts)))
        transaction.write("/b", "mine")

    with pytest.raises(XenError) as caught:
        in_transaction(store, work)
    assert caught.value.errno == errno.EAGAIN
    assert len(attempts) == ATTEMPTS
    assert store.read("/b") is None


def test_nothing_is_written_below_a_domain_that_is_gone_also_when_it_goes_meanwhile():
    store = MemoryStore({"/local/domain/7/name": "web1"})
    assert write_below(store, 7, "pysave/cap", "0")
    assert store.contents() == {"/local/domain/7/name": "web1", "/local/domain/7/pysave/cap": "0"}
    store.moments.on("transaction_end", 1, lambda: store.remove("/local/domain/7"))
    assert not write_below(store, 7, "pysave/cap", "50")
    assert not write_below(store, 7, "pysave/cap", "50")
    assert store.list("/local/domain") == []
