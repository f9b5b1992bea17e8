"""After a failure, error, report and remedies say what the domain is, each fact once."""

from __future__ import annotations

import errno

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeHost, FakeToolstack
from memory_guests import MAKERS

from pyxc import XenError
from saverestore.engine.progress import DomainState, SaveReport, Silence
from saverestore.errors import Advice, DomainError, ErrorName, Remedy, XenRefused, fact_of, remedies_of
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.operations.save import save_domain
from saverestore.testing.guest import MemorySave
from saverestore.toolstack.condition import Condition, Found


@pytest.fixture
def guest():
    made = MemorySave(MAKERS["pvh"]())
    yield made
    made.close()


@pytest.fixture
def host(guest):
    return FakeHost(guest, FakeToolstack())


def failed(tmp_path, host, error: BaseException, **how: object) -> tuple[BaseException, SaveReport]:
    """A save that fails with this as it reads processors, the domain being suspended."""
    host.guest.moments.fail("end_records", 0, error)
    report = SaveReport()
    with pytest.raises(BaseException) as caught:
        save_domain(SaveRequest("web1", str(tmp_path / "a.img"), **how), Silence(), report, host=host)
    assert list(tmp_path.iterdir()) == []
    return caught.value, report


STATES = [
    (Condition.RUNNING, "is running", DomainState.RUNNING, ()),
    (Condition.PAUSED, "is paused", DomainState.PAUSED, (Advice(Remedy.UNPAUSE_NOW, 7),)),
    (Condition.SUSPENDED, "is suspended", DomainState.STUCK, (Advice(Remedy.RECOVER, 7),)),
    (Condition.CRASHED, "has crashed", DomainState.CRASHED, ()),
    (Condition.STOPPED, "is rebooting", DomainState.STOPPED, ()),
    (Condition.DYING, "is being destroyed", DomainState.DYING, ()),
    (Condition.GONE, "is gone", DomainState.GONE, ()),
    (Condition.UNKNOWN, "cannot be looked up (EPERM)", DomainState.UNKNOWN, (Advice(Remedy.LIST_DOMAINS),)),
]


@pytest.mark.parametrize(("condition", "what", "state", "remedies"), STATES)
def test_the_account_of_a_failed_save_is_what_the_domain_is(tmp_path, host, condition, what, state, remedies):
    host.found = Found(condition, what, remedies)
    error, report = failed(tmp_path, host, DomainError("no registers"))
    assert fact_of(error) == f"no registers; no image was left; web1 (domain 7) {what}"
    assert remedies_of(error) == remedies
    assert report.domain_state is state


def test_what_the_error_says_of_the_domain_is_not_said_again(tmp_path, host):
    host.found = Found(Condition.CRASHED, "has crashed")
    error, report = failed(tmp_path, host, DomainError("domain 7 has crashed instead of suspending"))
    assert fact_of(error) == "domain 7 has crashed instead of suspending; no image was left"
    assert report.domain_state is DomainState.CRASHED


@pytest.mark.parametrize("condition", [Condition.GONE, Condition.DYING])
def test_a_call_that_failed_because_the_domain_was_destroyed_is_told_as_that(tmp_path, host, condition):
    host.found = Found(condition, "is gone")
    error, report = failed(tmp_path, host, XenError("xc_domain_hvm_getcontext", errno.ESRCH, domid=7))
    assert isinstance(error, DomainError)
    assert error.name is ErrorName.DOMAIN_STOPPED
    assert fact_of(error).startswith("web1 (domain 7) is gone: ")
    assert remedies_of(error) == ()
    assert report.domain_state is DomainState[condition.name]


def test_a_guest_that_may_still_suspend_is_looked_after_by_somebody_who_is_named(tmp_path, host):
    host.suspender.is_late = True
    error, report = failed(tmp_path, host, DomainError("too slow"))
    assert host.late == 1
    assert fact_of(error) == (
        "too slow; no image was left; web1 (domain 7) is running, and may still suspend, as it has taken the "
        "request: process 42 resumes it then"
    )
    assert report.domain_state is DomainState.RUNNING


def test_where_nobody_can_look_after_it_that_is_said_and_what_to_do(tmp_path, host, caplog):
    def refuse(_domain: object) -> str:
        raise XenRefused("pysave-watch could not be started")

    host.suspender.is_late, host.resume_if_late = True, refuse
    error, _ = failed(tmp_path, host, DomainError("too slow"))
    assert fact_of(error).endswith("may still suspend, as it has taken the request")
    assert remedies_of(error) == (Advice(Remedy.RECOVER_IF_LATE, 7),)
    assert "could not be started" in caplog.text


def test_a_device_model_that_could_not_be_resumed_is_told_apart_from_the_guest(tmp_path, host, guest):
    class Held:
        records = staticmethod(list)
        close = staticmethod(lambda: None)

    resume = guest.resume

    def only_the_guest() -> None:
        resume()
        raise DomainError("the device model is busy")

    host.toolstack.device_model, guest.resume = Held(), only_the_guest
    error, report = failed(tmp_path, host, DomainError("no registers"))
    assert fact_of(error) == (
        "no registers; the domain could not be resumed (the device model is busy); no image was left; "
        "web1 (domain 7) is running, but its device model may still be stopped"
    )
    assert remedies_of(error) == (Advice(Remedy.RECOVER, 7),)
    assert report.domain_state is DomainState.HALF_RESUMED


def test_a_running_domain_whose_request_could_not_be_taken_back_is_told_as_that(tmp_path, host, guest):
    """Xenstore was full: the request stands there, and the guest may still take it."""
    resume = guest.resume

    def only_the_guest() -> None:
        resume()
        raise XenError("xs_transaction_end", errno.ENOSPC)

    guest.resume = only_the_guest
    error, report = failed(tmp_path, host, DomainError("no registers"))
    assert fact_of(error).endswith("web1 (domain 7) is running, but may still be asked to suspend")
    assert remedies_of(error) == (Advice(Remedy.RECOVER, 7),)
    assert report.domain_state is DomainState.RUNNING


# ---- the image is safe ---------------------------------------------------------------------------


def test_a_domain_that_somebody_destroyed_while_the_image_became_safe_is_destroyed(tmp_path, host):
    def gone() -> None:
        host.found = Found(Condition.GONE, "is gone")
        raise XenError("libxl_domain_destroy", errno.ESRCH, domid=7)

    host.toolstack.on_destroy = gone
    report = save_domain(SaveRequest("web1", str(tmp_path / "a.img")), Silence(), host=host)
    assert report.domain_state is DomainState.GONE
    assert (tmp_path / "a.img").exists()


@pytest.mark.parametrize("final_state", [FinalState.RUN, FinalState.PAUSE])
def test_a_domain_that_did_not_live_to_run_again_is_reported_as_what_it_is(
    tmp_path, host, guest, caplog, final_state
):
    def crashes() -> None:
        host.found = Found(Condition.CRASHED, "has crashed")

    guest.moments.on("resume", 0, crashes)
    request = SaveRequest("web1", str(tmp_path / "a.img"), final_state=final_state)
    report = save_domain(request, Silence(), host=host)
    assert report.domain_state is DomainState.CRASHED
    assert "web1 (domain 7) has crashed" in caplog.text
