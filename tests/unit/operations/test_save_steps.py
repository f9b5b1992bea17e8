"""The order of what happens around the engine: the disk, the domain's final state, what is left behind."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeHost, FakeStore, FakeToolstack, commit_with

from pyxc.sched import CpuPool, Scheduler, Share
from saverestore.engine.progress import DomainState, Silence
from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    Interrupted,
    Remedy,
    TransportError,
    UsageError,
    XenRefused,
)
from saverestore.operations import store
from saverestore.operations.preflight import Findings
from saverestore.operations.prepare_save import dry_run, prepare
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.operations.save import save_domain
from saverestore.operations.store import entries
from saverestore.stream.libxl import EmulatorId, EmulatorState, LibxlRecordType
from saverestore.stream.survey import survey
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave
from saverestore.toolstack import last_downtime, processor_cap
from saverestore.toolstack.condition import Condition, Found
from saverestore.transport.opening import open_image


@pytest.fixture
def toolstack() -> FakeToolstack:
    return FakeToolstack()


@pytest.fixture
def guest() -> MemorySave:
    return MemorySave(MemoryDomain.pvh(64))


@pytest.fixture
def host(guest, toolstack) -> FakeHost:
    return FakeHost(guest, toolstack)


def test_a_domain_that_is_to_run_does_not_wait_for_the_disk(tmp_path, guest, host):
    suspended = []
    commit = commit_with(lambda: suspended.append(guest.domain.suspended))
    request = SaveRequest("web1", str(tmp_path / "out.img"), final_state=FinalState.RUN)
    report = save_domain(request, Silence(), host=host, opened_commit=commit)
    assert suspended == [False]
    assert (tmp_path / "out.img").exists()
    assert report.downtime.total_s > 0
    assert report.domain_state is DomainState.RUNNING


@pytest.mark.parametrize("final_state", [FinalState.DESTROY, FinalState.PAUSE])
def test_a_domain_that_is_not_to_run_waits_for_the_disk(tmp_path, guest, host, final_state):
    suspended = []
    commit = commit_with(lambda: suspended.append(guest.domain.suspended))
    request = SaveRequest("web1", str(tmp_path / "out.img"), final_state=final_state)
    report = save_domain(request, Silence(), host=host, opened_commit=commit)
    assert suspended == [True]
    assert report.domain_state is DomainState(final_state.value)


NOTE = "/local/domain/7/pysave/last-downtime"


def test_what_a_suspend_took_is_what_the_next_one_is_expected_to_take(tmp_path, guest, host):
    request = SaveRequest(
        "web1", str(tmp_path / "a.img"), final_state=FinalState.RUN, live=True, overwrite=True
    )
    first = save_domain(request, Silence(), host=host)
    assert (first.limits.suspend_s, first.limits.state_s) == (0.1, 0.05)
    suspend_ms, state_ms = host.store[NOTE].split()
    assert int(suspend_ms) == round(first.downtime.suspend_s * 1000)
    assert int(state_ms) == round((first.downtime.state_s + first.downtime.resume_s) * 1000)
    host.store[NOTE] = "700 20"
    second = save_domain(request, Silence(), host=host)
    assert second.verdict.prediction.suspend_s == 0.7
    assert second.verdict.prediction.state_s == 0.02


def test_of_a_domain_that_is_destroyed_nothing_is_remembered(tmp_path, guest, host):
    save_domain(SaveRequest("web1", str(tmp_path / "a.img")), Silence(), host=host)
    assert host.store == {}


@pytest.mark.parametrize("text", ["", "rubbish", "1", "1 2 3", "-1 5", "1.5 2", "9999999999 1"])
def test_a_note_that_makes_no_sense_is_passed_over(text):
    assert last_downtime.known(FakeStore({NOTE: text}), 7) is None


@pytest.mark.parametrize("final_state", FinalState)
def test_a_domain_that_its_kind_has_left_paused_is_as_good_as_suspended(tmp_path, guest, host, final_state):
    """On arm64: its processors have run our code since, and it is not shut down any more."""
    guest.moments.on("end_records", 0, lambda: setattr(host, "found", Found(Condition.PAUSED, "is paused")))
    guest.moments.on("resume", 0, lambda: setattr(host, "found", None))
    report = save_domain(
        SaveRequest("web1", str(tmp_path / "a.img"), final_state=final_state), Silence(), host=host
    )
    assert report.domain_state is DomainState(final_state.value)


def test_a_disk_that_fails_late_leaves_no_image_and_a_running_domain(tmp_path, guest, host):
    def fail() -> None:
        raise TransportError("the disk is broken")

    for final_state in FinalState:
        request = SaveRequest("web1", str(tmp_path / "out.img"), final_state=final_state)
        with pytest.raises(TransportError) as caught:
            save_domain(request, Silence(), host=host, opened_commit=commit_with(fail))
        assert "no image was left" in caught.value.__notes__[-1]
        assert list(tmp_path.iterdir()) == []
        assert not guest.domain.suspended


def test_a_domain_that_cannot_be_resumed_after_a_failure_is_to_be_recovered(
    tmp_path, guest, host, monkeypatch
):
    def fail() -> None:
        raise TransportError("the disk is broken")

    def refuse() -> None:
        raise DomainError("it does not answer")

    monkeypatch.setattr(guest, "resume", refuse)
    with pytest.raises(TransportError) as caught:
        save_domain(
            SaveRequest("web1", str(tmp_path / "out.img")),
            Silence(),
            host=host,
            opened_commit=commit_with(fail),
        )
    assert caught.value.remedies == (Advice(Remedy.RECOVER, 7),)
    assert caught.value.__notes__ == [
        "the domain could not be resumed (it does not answer)",
        "no image was left; web1 (domain 7) is suspended",
    ]


def test_a_domain_that_does_not_become_what_it_was_to_be_is_reported_with_the_image_complete(
    tmp_path, toolstack, host
):
    def refuse() -> None:
        raise DomainError("it is busy")

    toolstack.on_destroy = refuse
    with pytest.raises(
        XenRefused, match=r"complete, but .* could not be made destroyed: it is busy"
    ) as caught:
        save_domain(SaveRequest("web1", str(tmp_path / "out.img")), Silence(), host=host)
    assert caught.value.name is ErrorName.FINAL_STATE_FAILED
    assert caught.value.remedies == (Advice(Remedy.RECOVER, 7),)
    assert (tmp_path / "out.img").exists()


class FakeDeviceModel:
    """Its state can be had while the guest stands still, and is had once."""

    def __init__(self, guest: MemorySave) -> None:
        self.guest = guest
        self.asked = 0
        self.fails = False

    def close(self) -> None:
        pass

    def records(self):
        assert self.guest.domain.suspended
        self.asked += 1
        if self.fails:
            raise DomainError("the device model is gone")
        return [
            (LibxlRecordType.EMULATOR_CONTEXT, EmulatorState(EmulatorId.QEMU_UPSTREAM, 0, b"QEVM").pack())
        ]


@pytest.fixture
def device_model(toolstack, guest) -> FakeDeviceModel:
    toolstack.device_model = FakeDeviceModel(guest)
    return toolstack.device_model


@pytest.mark.parametrize(
    ("how", "is_covered"), [({}, True), ({"plain": True}, False), ({"digest": "none"}, False)], ids=str
)
def test_the_device_models_state_is_written_once_and_covered_by_the_digest(
    tmp_path, device_model, how, is_covered, host
):
    save_domain(SaveRequest("web1", str(tmp_path / "out.img"), **how), Silence(), host=host)
    data = (tmp_path / "out.img").read_bytes()
    assert (device_model.asked, data.count(b"QEVM")) == (1, 1)
    with open_image(str(tmp_path / "out.img")) as source:
        found = survey(source)
    assert found.is_whole
    assert ("FOLLOWING" in found.records) == is_covered
    (tmp_path / "out.img").write_bytes(data.replace(b"QEVM", b"QEMV"))
    with open_image(str(tmp_path / "out.img")) as source:
        assert survey(source).is_whole != is_covered


def test_a_device_model_whose_state_cannot_be_had_leaves_no_image_and_a_running_domain(
    tmp_path, guest, device_model, host
):
    device_model.fails = True
    for digest in ("xxh3", "none"):
        with pytest.raises(DomainError, match="the device model is gone"):
            save_domain(SaveRequest("web1", str(tmp_path / "out.img"), digest=digest), Silence(), host=host)
        assert list(tmp_path.iterdir()) == []
        assert not guest.domain.suspended


def test_a_domain_with_pci_devices_of_its_own_is_not_saved_live(tmp_path, guest, toolstack, host):
    toolstack.pci_devices = [{"domain": 0, "bus": 3, "dev": 0, "func": 1}]
    with pytest.raises(DomainError, match=r"0000:03:00\.1.*cannot be saved live"):
        save_domain(SaveRequest("web1", str(tmp_path / "out.img"), live=True), Silence(), host=host)
    assert list(tmp_path.iterdir()) == []
    save_domain(SaveRequest("web1", str(tmp_path / "out.img")), Silence(), host=host)
    assert toolstack.destroyed == 1


def test_saves_into_a_store_get_names_of_their_own_also_within_one_second(tmp_path, guest, host):
    request = SaveRequest("web1", "", store=tmp_path, final_state=FinalState.RUN)
    images = [save_domain(request, Silence(), host=host).image for _ in range(3)]
    assert len(set(images)) == 3
    assert [entry.stem for entry in entries(tmp_path)] == ["web1"] * 3
    assert sorted(str(entry.path) for entry in entries(tmp_path)) == sorted(images)


def test_a_store_that_is_not_there_is_reported_before_the_domain_is_touched(tmp_path, host, guest):
    with pytest.raises(UsageError, match="there is no such directory"):
        save_domain(SaveRequest("web1", "", store=tmp_path / "absent"), Silence(), host=host)
    assert not guest.domain.suspended


def test_a_dry_run_makes_no_store_and_removes_nothing_from_one(tmp_path, host, monkeypatch):
    abandoned = tmp_path / ".web1@2026-11-29T05-58-31Z.img.01234567.partial"
    abandoned.write_bytes(b"left by a save that was killed")
    findings = dry_run(SaveRequest("web1", "", store=tmp_path), host=host)
    assert (findings.errors, list(tmp_path.iterdir())) == ([], [abandoned])
    usual = tmp_path / "usual"
    monkeypatch.setattr(store, "DEFAULT", usual)
    findings = dry_run(SaveRequest("web1", "", store=usual), host=host)
    assert (findings.errors, usual.exists()) == ([], False)
    assert any(f"it would be saved to {usual}/web1@" in text for text in findings.facts)
    save_domain(SaveRequest("web1", "", store=usual), Silence(), host=host)
    assert len(entries(usual)) == 1
    save_domain(SaveRequest("web1", "", store=tmp_path), Silence(), host=host)
    assert not abandoned.exists()


def test_a_dry_run_does_not_open_what_would_compress(tmp_path, host, monkeypatch):
    monkeypatch.setattr("saverestore.transport.zstd_sink.ZstdSink", None)
    config = SimpleNamespace(kind="pvh", max_vcpus=1, devices=[], raw={})
    monkeypatch.setattr(host.toolstack, "config_of", lambda _: config)
    findings = dry_run(SaveRequest("web1", str(tmp_path / "a.img"), compress=3), host=host)
    assert findings.errors == []
    assert [text for text in findings.facts if "as measured on some of its memory; at most" in text] != []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["reading_rate", "estimate"])
def test_ctrl_c_while_a_dry_run_reads_memory_ends_it(tmp_path, host, monkeypatch, step):
    def interrupted(*_):
        raise Interrupted("interrupted by Ctrl-C")

    monkeypatch.setattr(f"saverestore.operations.prepare_save.{step}", interrupted)
    config = SimpleNamespace(kind="pvh", max_vcpus=1, devices=[], raw={})
    monkeypatch.setattr(host.toolstack, "config_of", lambda _: config)
    with pytest.raises(Interrupted):
        dry_run(SaveRequest("web1", str(tmp_path / "a.img")), host=host)


def test_the_toolstack_is_closed_whatever_happens(tmp_path, toolstack, host):
    save_domain(SaveRequest("web1", str(tmp_path / "a.img")), Silence(), host=host)
    assert (toolstack.destroyed, toolstack.closed) == (1, 1)
    toolstack.devices = ["vbd 51712"]
    with pytest.raises(DomainError):
        save_domain(SaveRequest("web1", str(tmp_path / "b.img")), Silence(), host=host)
    assert (toolstack.destroyed, toolstack.closed) == (1, 2)


def test_devices_are_refused_and_with_force_only_destroying_is(tmp_path, guest, toolstack, host):
    toolstack.devices = ["vbd 51712"]
    for forced, final_state in [(False, FinalState.RUN), (True, FinalState.DESTROY)]:
        request = SaveRequest("web1", str(tmp_path / "out.img"), final_state=final_state, force=forced)
        with pytest.raises(DomainError, match=r"vbd 51712.*no changes were made"):
            save_domain(request, Silence(), host=host)
        assert list(tmp_path.iterdir()) == []
    request = SaveRequest("web1", str(tmp_path / "out.img"), final_state=FinalState.RUN, force=True)
    save_domain(request, Silence(), host=host)
    assert (tmp_path / "out.img").exists()


@pytest.mark.parametrize(
    ("more", "digest", "first"),
    [
        ({}, "XXH3-128", b"Xen "),
        ({"digest": "sha256"}, "SHA-256", b"Xen "),
        ({"digest": "none"}, None, b"Xen "),
        ({"plain": True}, None, b"Xen "),
        ({"compress": 1}, "XXH3-128", b"\x28\xb5\x2f\xfd"),
        ({"compress": 19, "plain": True}, None, b"\x28\xb5\x2f\xfd"),
    ],
    ids=str,
)
def test_the_image_is_as_it_was_asked_for_and_whole(tmp_path, guest, more, digest, first, host):
    path = tmp_path / "out.img"
    report = save_domain(
        SaveRequest("web1", str(path), final_state=FinalState.RUN, **more), Silence(), host=host
    )
    assert path.read_bytes().startswith(first)
    with open_image(str(path)) as source:
        found = survey(source)
        assert (found.error, source.at_end()) == (None, True)
    assert (found.checked_digest and found.checked_digest.title) == digest
    assert (found.provenance is None) == more.get("plain", False)
    if found.provenance is not None and digest:
        assert found.provenance["integrity"]["before"]["bytes"] > 48
    # Frames that compress are fewer bytes than pages, pages that are not zero are all written.
    assert report.stored_bytes == path.stat().st_size
    assert report.pages_sent == found.pages.nr_data


def test_a_digest_that_cannot_be_made_is_refused_before_anything_is_done(tmp_path, guest, monkeypatch, host):
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(UsageError, match="python3-blake3"):
        save_domain(SaveRequest("web1", str(tmp_path / "out.img"), digest="blake3"), Silence(), host=host)
    assert guest.moments.calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compress", [None, 1])
def test_an_interrupt_at_any_call_leaves_no_image_no_thread_and_a_running_domain(
    tmp_path, guest, monkeypatch, compress, host
):
    class Stop(Exception):
        pass

    def stop(name, total):
        if total == number:
            raise Stop

    number = -1
    guest.moments.on_every(stop)
    request = SaveRequest(
        "web1", str(tmp_path / "out.img"), final_state=FinalState.RUN, compress=compress, overwrite=True
    )
    save_domain(request, Silence(), host=host)
    last = guest.moments.calls.index("end_records")
    (tmp_path / "out.img").unlink()
    for call in range(last + 1):
        number = call + len(guest.moments.calls)
        with pytest.raises(Stop):
            save_domain(request, Silence(), host=host)
        assert list(tmp_path.iterdir()) == []
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith(("zstd", "digest", "pages"))]


@pytest.mark.parametrize(
    ("final_state", "make", "unmapped"),
    [
        (FinalState.RUN, MemoryDomain.pv, True),
        (FinalState.RUN, MemoryDomain.pvh, False),
        (FinalState.PAUSE, MemoryDomain.pvh, False),
        (FinalState.DESTROY, MemoryDomain.pv, True),
        (FinalState.DESTROY, MemoryDomain.pvh, True),
    ],
)
def test_nothing_of_a_pv_domain_that_runs_or_of_one_that_is_destroyed_stays_mapped(
    tmp_path, host, final_state, make, unmapped
):
    host.guest = MemorySave(make(64))
    save_domain(SaveRequest("web1", str(tmp_path / "a.img"), final_state=final_state), Silence(), host=host)
    assert bool(host.memory.unmapped) == unmapped


class Slowed:
    """The host's domain was slowed down by a save that was killed: its cap is 10, and was none."""

    NOTE = "/local/domain/7/pysave/cap"

    def __init__(self, host: FakeHost, monkeypatch) -> None:
        self.share = Share(weight=256, cap=10)
        self.caps_in_configurations: list[int] = []
        host.domain.info.cpupool = 0
        host.store[self.NOTE] = "0"
        config_of = host.toolstack.config_of

        def with_cap(domain):
            self.caps_in_configurations.append(self.share.cap)
            return config_of(domain)

        def set_share(_xen, _domid, share: Share) -> None:
            self.share = share

        host.toolstack.config_of = with_cap
        monkeypatch.setattr(processor_cap.sched, "cpu_pool", lambda *_: CpuPool(Scheduler.CREDIT2, 4))
        monkeypatch.setitem(processor_cap.GETTERS, Scheduler.CREDIT2, lambda *_: self.share)
        monkeypatch.setitem(processor_cap.SETTERS, Scheduler.CREDIT2, set_share)


def test_an_image_does_not_carry_the_cap_that_a_killed_save_has_left(tmp_path, host, monkeypatch, caplog):
    """libxl reads the configuration's cap from the scheduler."""
    slowed = Slowed(host, monkeypatch)
    save_domain(SaveRequest("web1", str(tmp_path / "a.img")), Silence(), host=host)
    assert slowed.caps_in_configurations == [0]
    assert (slowed.share.cap, host.store) == (0, {})
    assert "its processor cap was put back (none instead of 10%)" in caplog.text


def test_a_dry_run_leaves_the_cap_that_a_killed_save_has_left(tmp_path, host, monkeypatch):
    slowed = Slowed(host, monkeypatch)
    with ExitStack() as stack:
        prepare(host, SaveRequest("web1", str(tmp_path / "a.img")), Findings(dry=True), stack).guest.close()
    assert (slowed.share.cap, host.store[Slowed.NOTE]) == (10, "0")
