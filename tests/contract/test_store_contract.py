"""What `pyxc.XenStore` promises, held by xenstore in memory or, with `--xen`, by the daemon of this host."""

from __future__ import annotations

import errno
import select
from collections.abc import Callable, Iterator

import pytest

try:
    from pyxc import ClosedHandle, XenError, XenStore
    from pyxc.store import Permission
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from saverestore.testing.store import MemoryStore

HOME = "/tool/pysave-contract"
DEADLINE_S = 60


@pytest.fixture
def make(store_kind: str) -> Callable[[], XenStore | MemoryStore]:
    return MemoryStore if store_kind == "memory" else XenStore


@pytest.fixture
def store(make) -> Iterator[XenStore | MemoryStore]:
    with make() as found:
        found.write("/tool/pysave-contract-other", "")  # so that the parent is there, whoever runs this
        yield found
        found.remove(HOME)
        found.remove("/tool/pysave-contract-other")


def event_of(store: XenStore | MemoryStore) -> tuple[str, str]:
    """The next one, waited for as long as it takes the daemon."""
    poll = select.poll()
    poll.register(store.fileno(), select.POLLIN)
    while (event := store.take_watch_event()) is None:
        assert poll.poll(DEADLINE_S * 1000), "no event"
    return event


def refused(do: Callable[[], object]) -> int:
    with pytest.raises(XenError) as caught:
        do()
    return caught.value.errno or 0


# ---- nodes ---------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_a_node_that_is_not_there_is_none(store):
    assert store.read(f"{HOME}/a") is None
    for value in ("first", "", "second", "with spaces, ünïcode"):
        store.write(f"{HOME}/a", value)
        assert store.read(f"{HOME}/a") == value


def test_parents_are_made_and_empty(store):
    store.write(f"{HOME}/a/b/c", "x")
    assert store.read(f"{HOME}/a") == store.read(f"{HOME}/a/b") == ""
    assert store.list(f"{HOME}/a") == ["b"]


def test_the_names_directly_below_a_node_are_listed(store):
    for name in ("a", "b/below", "c"):
        store.write(f"{HOME}/{name}", "x")
    assert sorted(store.list(HOME)) == ["a", "b", "c"]
    assert store.list(f"{HOME}/a") == []
    assert store.list(f"{HOME}/missing") == []
    assert "tool" in store.list("/")


def test_making_a_node_leaves_one_that_exists_as_it_is(store):
    store.make(f"{HOME}/a/b")
    assert store.read(f"{HOME}/a/b") == ""
    store.write(f"{HOME}/a/b", "x")
    store.make(f"{HOME}/a/b")
    assert store.read(f"{HOME}/a/b") == "x"


def test_a_node_is_removed_with_all_below_it_and_its_parent_stays(store):
    store.write(f"{HOME}/a/b", "x")
    store.write(f"{HOME}/ab", "x")
    store.remove(f"{HOME}/a")
    assert store.read(f"{HOME}/a/b") is None
    assert store.list(HOME) == ["ab"]
    store.remove(f"{HOME}/ab")
    assert store.read(HOME) == ""
    store.remove(f"{HOME}/ab")
    store.remove(f"{HOME}/missing/missing")


def test_a_path_without_a_slash_at_its_start_is_below_the_home_of_domain_0(store):
    name = HOME.rpartition("/")[2]
    try:
        store.write(name, "x")
        assert store.read(f"/local/domain/0/{name}") == "x"
    finally:
        store.remove(name)


@pytest.mark.parametrize("path", [f"{HOME}/", f"{HOME}//a", f"{HOME}/a b", f"{HOME}/" + "x" * 3100])
def test_a_path_that_is_none_is_refused(store, path):
    assert refused(lambda: store.write(path, "x")) in (errno.EINVAL, errno.E2BIG)


def test_a_value_that_fits_in_no_message_is_refused(store):
    store.write(f"{HOME}/a", "x" * 2048)
    assert refused(lambda: store.write(f"{HOME}/a", "x" * 5000)) == errno.E2BIG
    assert len(store.read(f"{HOME}/a") or "") == 2048


def test_permissions_are_set_on_a_node_that_exists(store):
    permissions = [(0, Permission.NONE), (0, Permission.READ)]
    assert refused(lambda: store.set_permissions(f"{HOME}/a", permissions)) == errno.ENOENT
    store.write(f"{HOME}/a", "x")
    store.set_permissions(f"{HOME}/a", permissions)
    assert store.read(f"{HOME}/a") == "x"


# ---- transactions --------------------------------------------------------------------------------


def test_a_transaction_is_seen_by_others_when_it_is_committed(store):
    store.write(f"{HOME}/a", "before")
    with store.transaction() as transaction:
        transaction.write(f"{HOME}/a", "after")
        transaction.write(f"{HOME}/b/c", "new")
        assert transaction.read(f"{HOME}/a") == "after"
        assert transaction.list(f"{HOME}/b") == ["c"]
        assert store.read(f"{HOME}/a") == "before"
        assert store.read(f"{HOME}/b") is None
    assert (store.read(f"{HOME}/a"), store.read(f"{HOME}/b/c")) == ("after", "new")


def test_a_transaction_that_raises_changes_nothing(store):
    store.write(f"{HOME}/a", "before")
    with pytest.raises(ZeroDivisionError), store.transaction() as transaction:
        transaction.remove(f"{HOME}/a")
        raise ZeroDivisionError
    assert store.read(f"{HOME}/a") == "before"


def conflicting(store, look: Callable[[object], object]) -> None:
    store.write(f"{HOME}/a", "before")
    with store.transaction() as transaction:
        look(transaction)
        transaction.write(f"{HOME}/mine", "x")
        store.write(f"{HOME}/a", "meanwhile")


def test_a_transaction_is_refused_when_what_it_read_was_changed_meanwhile(store):
    assert refused(lambda: conflicting(store, lambda t: t.read(f"{HOME}/a"))) == errno.EAGAIN
    assert store.read(f"{HOME}/a") == "meanwhile"
    assert store.read(f"{HOME}/mine") is None


def test_a_transaction_that_is_refused_succeeds_when_nobody_disturbs_it(store):
    for attempt in range(2):
        try:
            with store.transaction() as transaction:
                transaction.write(f"{HOME}/a", f"{transaction.read(f'{HOME}/a') or ''}x")
                if not attempt:
                    store.write(f"{HOME}/a", "other")
        except XenError as error:
            assert (attempt, error.errno) == (0, errno.EAGAIN)
    assert store.read(f"{HOME}/a") == "otherx"


def test_changes_elsewhere_do_not_disturb_a_transaction(store):
    store.write(f"{HOME}/a", "before")
    store.write(f"{HOME}/other/b", "before")
    with store.transaction() as transaction:
        transaction.write(f"{HOME}/a", transaction.read(f"{HOME}/a") or "")
        store.write(f"{HOME}/other/b", "meanwhile")
    assert store.read(f"{HOME}/other/b") == "meanwhile"


# ---- watches -------------------------------------------------------------------------------------


def test_a_watch_fires_at_once_and_then_for_each_change_at_and_below_its_path(store):
    store.watch(f"{HOME}/a", "token")
    assert event_of(store) == (f"{HOME}/a", "token")
    for path in (f"{HOME}/a", f"{HOME}/a/b/c"):
        store.write(path, "x")
        assert event_of(store) == (path, "token")
    store.write(f"{HOME}/ab", "x")
    store.write(f"{HOME}/a", "y")
    assert event_of(store) == (f"{HOME}/a", "token")


def test_a_watch_sees_its_node_go_with_the_parent(store):
    store.write(f"{HOME}/a/b", "x")
    store.watch(f"{HOME}/a/b", "token")
    event_of(store)
    store.remove(f"{HOME}/a")
    assert event_of(store) == (f"{HOME}/a/b", "token")


def test_a_watch_fires_for_a_transaction_once_it_is_committed(store):
    store.watch(f"{HOME}/a", "token")
    event_of(store)
    with store.transaction() as transaction:
        transaction.write(f"{HOME}/a", "x")
        store.read(f"{HOME}/a")
        assert store.take_watch_event() is None
    assert event_of(store) == (f"{HOME}/a", "token")


def test_a_watch_that_was_stopped_fires_no_more(store):
    store.watch(f"{HOME}/a", "one")
    event_of(store)
    store.unwatch(f"{HOME}/a", "one")
    store.unwatch(f"{HOME}/a", "never set")
    store.write(f"{HOME}/a", "x")
    store.watch(f"{HOME}/b", "two")
    assert event_of(store) == (f"{HOME}/b", "two")
    assert store.take_watch_event() is None


def test_the_same_watch_twice_is_refused(store):
    store.watch(f"{HOME}/a", "token")
    assert refused(lambda: store.watch(f"{HOME}/a", "token")) == errno.EEXIST


def test_the_descriptor_is_readable_only_while_an_event_may_be_there(store):
    poll = select.poll()
    poll.register(store.fileno(), select.POLLIN)
    store.watch(f"{HOME}/a", "token")
    assert poll.poll(DEADLINE_S * 1000)
    event_of(store)
    assert store.take_watch_event() is None
    assert not poll.poll(0)


def test_a_watch_for_domains_that_end_fires_at_once(store):
    store.watch("@releaseDomain", "token")
    assert event_of(store) == ("@releaseDomain", "token")


# ---- closing -------------------------------------------------------------------------------------


def test_closing_twice_is_fine_and_use_afterwards_is_an_error(make):
    store = make()
    store.close()
    store.close()
    assert store.closed
    for use in (
        lambda: store.read(HOME),
        lambda: store.write(HOME, ""),
        store.fileno,
        store.take_watch_event,
    ):
        with pytest.raises(ClosedHandle):
            use()
