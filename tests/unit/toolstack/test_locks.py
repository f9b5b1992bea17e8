"""Two processes never make one domain twice: who comes second is refused, and says who was first."""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import contextmanager

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.errors import DomainError, ErrorName, ExitCode
from saverestore.toolstack import lock
from saverestore.toolstack.lock import held, restored_by, restoring

WEB, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_DIR", tmp_path / "locks")


@contextmanager
def another(domain_uuid: uuid.UUID, name: str | None):
    """Another process that is restoring: its pid."""
    ready, told = os.pipe()
    wait, end = os.pipe()
    child = os.fork()
    if child == 0:
        with restoring(domain_uuid, name):
            os.write(told, b"x")
            os.close(end)
            os.read(wait, 1)
        os._exit(0)
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.close(end)
        os.waitpid(child, 0)
        for fd in (ready, told, wait):
            os.close(fd)


@pytest.mark.parametrize(
    ("domain_uuid", "name", "said"),
    [
        (WEB, "web1", f"a domain with the UUID {WEB} is being restored by process"),
        (WEB, "web1-copy", f"a domain with the UUID {WEB} is being restored by process"),
        (OTHER, "web1", "a domain called 'web1' is being restored by process"),
    ],
)
def test_a_second_restore_of_the_uuid_or_the_name_is_refused(domain_uuid, name, said):
    with another(WEB, "web1") as pid:
        with pytest.raises(DomainError, match=f"{said} {pid}") as caught, restoring(domain_uuid, name):
            pass
        assert (caught.value.exit_code, caught.value.name) == (ExitCode.DOMAIN, ErrorName.DOMAIN_BUSY)
    with restoring(domain_uuid, name):
        pass


def test_restores_of_different_domains_do_not_wait_for_each_other():
    with another(WEB, "web1"), restoring(OTHER, "web2"):
        pass


def test_the_helper_under_xl_is_kept_from_the_uuid_of_a_restore_of_ours():
    with another(WEB, "web1"), pytest.raises(DomainError, match="being restored"), restoring(WEB, None):
        pass


@pytest.mark.parametrize("name", ["a/b", "x" * 4000, "ü\n", "."])
def test_a_name_may_be_anything(name):
    with restoring(WEB, name):
        pass


def test_one_that_is_refused_the_name_does_not_keep_the_uuid():
    with another(WEB, "web1"):
        with pytest.raises(DomainError), restoring(OTHER, "web1"):
            pass
        with restoring(OTHER, "web2"):
            pass


def test_whoever_restores_a_domain_is_seen_without_being_disturbed():
    assert restored_by(WEB) is None
    with another(WEB, "web1") as pid:
        assert (restored_by(WEB), restored_by(OTHER)) == (str(pid), None)
        assert restored_by(WEB) == str(pid)
    assert restored_by(WEB) is None
    with restoring(WEB, "web1"):
        pass


def test_a_lock_that_is_waited_for_is_had_when_its_holder_ends():
    with another(WEB, None), pytest.raises(DomainError), held(f"restore-{WEB}", "busy", wait_s=0.3):
        pass
    with held(f"restore-{WEB}", "busy", wait_s=0.3):
        pass


def test_a_lock_is_had_where_its_holders_number_cannot_be_written(monkeypatch):
    """/run is full: pysave --recover of a domain that is stuck must do its work."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "write", full)
    done = []
    with held("domain-7", "busy"):
        done.append("recovered")
    assert done == ["recovered"]
