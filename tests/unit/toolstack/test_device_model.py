"""The client of a device model, against one that answers over socket pairs, and whatever it may do wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore import interrupts
from saverestore.errors import DomainError, ErrorName, Interrupted
from saverestore.guest.x86.hvm import log_dirty_with
from saverestore.stream.libxl import BODY_MAX, EMULATOR_HEADER, LibxlRecordType
from saverestore.testing.qmp import Conversation, FakeQemu
from saverestore.testing.store import MemoryStore
from saverestore.toolstack import device_model
from saverestore.toolstack.device_model import DeviceModel, QmpError, SuspenderWithDeviceModel

SHORT_S = 0.2
NODES = {"/libxl/7/dm-version": "qemu_xen", "/local/domain/7/image/device-model-domid": "0"}


@pytest.fixture
def qemu():
    with FakeQemu() as found:
        yield found


def client_of(
    qemu: FakeQemu, timeout_s: float = 20, nodes: dict[str, str] | None = None
) -> device_model.DeviceModel:
    return DeviceModel(MemoryStore(nodes or NODES), 7, connect=qemu.connect, timeout_s=timeout_s)


# ---- a device model that works -------------------------------------------------------------------


def test_one_of_libxls_that_answers_can_be_saved(qemu):
    client_of(qemu).check()
    assert qemu.commands == ["qmp_capabilities", "query-status", "query-migrate"]


def test_one_with_a_device_whose_state_would_be_left_out_is_refused_while_the_guest_runs(qemu):
    """An NVMe disk: QEMU 7.2 crashes when its state is asked for."""
    qemu.blocked = [
        "non-migratable device: 0000:00:02.0/nvme",
        "The vpc format does not support live migration",
    ]
    with pytest.raises(DomainError, match=r"whose state it cannot save: non-migratable .*/nvme$") as caught:
        client_of(qemu).check()
    assert caught.value.name is ErrorName.DEVICES_UNSUPPORTED
    assert "stop" not in qemu.commands


def test_what_blocks_only_a_move_of_the_running_qemu_is_no_reason_to_refuse(qemu):
    qemu.blocked = ["The vpc format used by node 'xvda' does not support live migration"]
    client_of(qemu).check()


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ({}, "of kind unknown"),
        ({"/libxl/7/dm-version": "qemu_xen_traditional"}, "of kind qemu_xen_traditional"),
        (NODES | {"/local/domain/7/image/device-model-domid": "8"}, "in a stub domain"),
    ],
)
def test_another_kind_of_device_model_is_refused_before_it_is_asked_anything(qemu, nodes, reason):
    with pytest.raises(DomainError, match=reason):
        client_of(qemu, nodes={"/other": ""} | nodes).check()
    assert qemu.commands == []


def test_it_is_stopped_gives_its_state_and_runs_again(qemu):
    client = client_of(qemu)
    client.stop()
    assert not qemu.running
    assert qemu.nr_fds == 0
    ((kind, body),) = client.records()
    assert kind is LibxlRecordType.EMULATOR_CONTEXT
    assert body[EMULATOR_HEADER.size :] == qemu.state
    client.resume()
    assert qemu.running


def test_one_that_was_not_stopped_is_not_asked_to_run(qemu):
    client_of(qemu).resume()
    assert qemu.commands == []


def test_it_has_no_records_before_it_was_stopped(qemu):
    with pytest.raises(ValueError, match="not been stopped"):
        client_of(qemu).records()


def test_where_an_older_one_put_video_memory_goes_into_the_stream_first(qemu):
    root = "/local/domain/0/device-model/7/physmap/f0000000"
    keys = {f"{root}/start_addr": "f2000000", f"{root}/size": "800000", f"{root}/name": "vga.vram"}
    client = client_of(qemu, nodes=NODES | keys)
    client.stop()
    (kind, body), _ = client.records()
    assert kind is LibxlRecordType.EMULATOR_XENSTORE_DATA
    assert body[EMULATOR_HEADER.size :] == (
        b"physmap/f0000000/start_addr\0f2000000\0"
        b"physmap/f0000000/size\x00800000\0physmap/f0000000/name\0vga.vram\0"
    )


def test_it_marks_the_pages_that_it_writes_while_it_is_asked_to(qemu):
    client = client_of(qemu)
    client.log_dirty(on=True)
    assert qemu.dirty_log
    client.log_dirty(on=False)
    assert not qemu.dirty_log


@pytest.mark.parametrize("dirty_log", [True, False])
@pytest.mark.parametrize("running", [True, False])
def test_after_a_save_that_was_killed_it_runs_without_log_dirty(qemu, running, dirty_log):
    qemu.running, qemu.dirty_log = running, dirty_log
    assert client_of(qemu).recover() is not running
    assert (qemu.alive, qemu.running, qemu.dirty_log) == (True, True, False)


def test_events_in_between_are_no_answers(qemu):
    def many_events(conversation: Conversation) -> None:
        for name in ("RTC_CHANGE", "BALLOON_CHANGE") * 50:
            conversation.event(name)
        conversation.send_message({"return": {"running": True}})

    qemu.instead_of("query-status", many_events)
    client_of(qemu).check()


def test_an_answer_may_come_in_pieces(qemu):
    def in_pieces(conversation: Conversation) -> None:
        for byte in b'{"return": {}}\r\n':
            conversation.send(bytes([byte]))

    qemu.instead_of("query-status", in_pieces)
    client_of(qemu).check()


# ---- one that does not ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["qmp_capabilities", "stop", "add-fd", "xen-save-devices-state", "remove-fd"]
)
def test_a_command_that_fails_is_reported_with_qemus_reason_and_leaves_no_descriptor(qemu, command):
    qemu.instead_of(command, lambda conversation: conversation.fail("no room"))
    client = client_of(qemu)
    with pytest.raises(QmpError, match=f"domain 7 could not {command}: no room"):
        client.stop()
    if command == "xen-save-devices-state":
        assert qemu.nr_fds == 0
    if command != "qmp_capabilities":
        client.resume()  # it may have been stopped
    assert qemu.running


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        pytest.param(b"QEMU 7.2 monitor\r\n", "answers no JSON", id="text"),
        pytest.param(b"\xff\xfe\r\n", "answers no JSON", id="not UTF-8"),
        pytest.param(b'{"return": \r\n', "answers no JSON", id="half an answer"),
        pytest.param(b"[1, 2]\r\n", r"answers \[1, 2\]", id="a list"),
        pytest.param(b"[" * 200_000 + b"\n", "answers no JSON", id="nested without end"),
        pytest.param(
            b'{"error": "broken"}\r\n', "could not query-status: broken", id="an error that is a text"
        ),
        pytest.param(
            b"x" * (device_model.LONGEST_ANSWER + 1), "sent an oversized reply", id="a line without end"
        ),
    ],
)
def test_an_answer_that_is_none_is_refused(qemu, reply, reason):
    qemu.instead_of("query-status", lambda conversation: conversation.send(reply))
    with pytest.raises(QmpError, match=f"domain 7 {reason}"):
        client_of(qemu).check()


@pytest.mark.parametrize("reply", [{}, {"return": []}, {"return": {}}, {"return": {"fdset-id": "x"}}])
def test_a_descriptor_set_that_is_not_named_is_an_error_of_the_device_model(qemu, reply):
    qemu.instead_of("add-fd", lambda conversation: conversation.send_message(reply))
    with pytest.raises(QmpError):
        client_of(qemu, SHORT_S).stop()


@pytest.mark.parametrize("size", [0, BODY_MAX[LibxlRecordType.EMULATOR_CONTEXT]])
def test_a_state_that_no_image_can_hold_is_refused(qemu, size):
    qemu.state = bytes(size)
    with pytest.raises(QmpError, match=f"gave {size} bytes of state"):
        client_of(qemu).stop()


@pytest.mark.parametrize("command", ["greeting", "qmp_capabilities", "query-status"])
def test_one_that_hangs_up_is_gone(qemu, command):
    qemu.instead_of(command, Conversation.close)
    with pytest.raises(QmpError, match=r"is gone|Connection reset|Broken pipe"):
        client_of(qemu).check()


def test_one_that_hangs_up_in_the_middle_of_an_answer_is_gone(qemu):
    def half(conversation: Conversation) -> None:
        conversation.send(b'{"return": {"sta')
        conversation.close()

    qemu.instead_of("query-status", half)
    with pytest.raises(QmpError, match="is gone"):
        client_of(qemu).check()


def test_one_that_aborts_is_reported_and_cannot_be_reached_afterwards(qemu):
    client = client_of(qemu)
    with pytest.raises(QmpError, match=r"is gone|Connection reset"):
        client.log_dirty(on=False)
    with pytest.raises(QmpError, match=r"cannot be reached: .*refused.*qemu-dm"):
        client.check()


@pytest.mark.parametrize("command", ["greeting", "qmp_capabilities", "query-status"])
def test_silence_ends_at_the_deadline(qemu, command):
    qemu.instead_of(command, lambda conversation: None)
    with pytest.raises(QmpError, match=r"did not answer .*within 0\.2 s"):
        client_of(qemu, SHORT_S).check()


def test_events_do_not_put_the_deadline_off(qemu):
    over = threading.Event()

    def only_events(conversation: Conversation) -> None:
        while not over.wait(SHORT_S / 10):
            conversation.event("RTC_CHANGE")

    qemu.instead_of("query-status", only_events)
    begun = time.monotonic()
    with pytest.raises(QmpError, match="did not answer 'query-status' within"):
        client_of(qemu, SHORT_S).check()
    over.set()
    assert time.monotonic() - begun < 20 * SHORT_S


def test_silence_is_waited_for_once_and_what_was_not_answered_is_named(qemu):
    qemu.instead_of("xen-save-devices-state", lambda conversation: None)
    with pytest.raises(QmpError, match="did not answer 'xen-save-devices-state'"):
        client_of(qemu, SHORT_S).stop()
    assert "remove-fd" not in qemu.commands


@pytest.mark.parametrize("silent", ["greeting", "qmp_capabilities", "xen-set-global-dirty-log"])
@pytest.mark.parametrize("held", [True, False])
def test_turning_log_dirty_off_waits_a_short_time_for_all_of_it(qemu, monkeypatch, silent, held):
    """It is shielded from signals, and comes after whatever has failed."""
    client = client_of(qemu)
    client.log_dirty(on=True)
    if held:
        client.hold()
    monkeypatch.setattr(device_model, "AGAIN_S", 0.1)
    qemu.instead_of(silent, lambda conversation: None)
    begun = time.monotonic()
    if held and silent != "xen-set-global-dirty-log":
        client.log_dirty(on=False)
    else:
        with pytest.raises(QmpError, match=r"did not answer .*within 0\.\d+ s"):
            client.log_dirty(on=False)
    assert time.monotonic() - begun < 1


def test_each_step_of_turning_log_dirty_off_takes_of_the_same_time(qemu, monkeypatch):
    monkeypatch.setattr(device_model, "AGAIN_S", 1.0)

    def late(conversation: Conversation) -> None:
        time.sleep(0.7)
        conversation.send_message({"return": {}})

    qemu.instead_of("qmp_capabilities", late)
    qemu.instead_of("xen-set-global-dirty-log", late)
    begun = time.monotonic()
    with pytest.raises(QmpError, match="did not answer 'xen-set-global-dirty-log'"):
        client_of(qemu).log_dirty(on=False)
    assert time.monotonic() - begun < 1.3


def test_commands_of_a_held_conversation_have_their_own_time_again_after_log_dirty_is_off(qemu, monkeypatch):
    monkeypatch.setattr(device_model, "AGAIN_S", 0.1)

    def late(conversation: Conversation) -> None:
        time.sleep(0.3)
        conversation.send_message({"return": {}})

    client = client_of(qemu)
    client.log_dirty(on=True)
    client.hold()
    client.stop()
    client.log_dirty(on=False)
    qemu.instead_of("cont", late)
    client.resume()
    assert qemu.commands[-1] == "cont"


@pytest.mark.parametrize("silent", ["greeting", "qmp_capabilities"])
def test_a_signal_while_a_busy_one_is_to_log_is_heeded_though_that_is_shielded(qemu, silent):
    """Nothing has been asked of it yet."""

    def interrupt(_conversation: Conversation) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    qemu.instead_of(silent, interrupt)
    begun = time.monotonic()
    closed: list[bool] = []
    log = SimpleNamespace(take=None, close=lambda: closed.append(True))
    with interrupts.handled(), pytest.raises(Interrupted), interrupts.shield():
        log_dirty_with(client_of(qemu), 7, lambda: log)
    assert time.monotonic() - begun < 5
    assert closed == [True]
    assert "xen-set-global-dirty-log" not in qemu.commands


def test_a_signal_once_it_was_asked_to_log_waits_for_its_answer(qemu):
    def interrupt(conversation: Conversation) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        qemu.dirty_log = True
        conversation.send_message({"return": {}})

    qemu.instead_of("xen-set-global-dirty-log", interrupt)
    with interrupts.handled(), pytest.raises(Interrupted), interrupts.shield():
        client_of(qemu).log_dirty(on=True)
    assert qemu.dirty_log


def test_a_monitor_that_another_program_uses_is_busy_until_that_hangs_up(qemu):
    other = qemu.connect()
    assert b"QMP" in other.recv(4096)
    client = client_of(qemu, SHORT_S)
    with pytest.raises(QmpError, match="busy, stopped or another program is connected"):
        client.check()
    other.close()
    client_of(qemu).check()


def test_a_monitor_with_a_full_queue_is_busy(qemu):
    def full() -> socket.socket:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with pytest.raises(QmpError, match="busy"):
        DeviceModel(MemoryStore(NODES), 7, connect=full).check()


def test_libxls_socket_is_named_where_it_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.setattr(device_model, "RUN_DIR", tmp_path)
    with pytest.raises(QmpError, match=f"No such file.*{tmp_path}/qmp-libxl-7"):
        DeviceModel(MemoryStore(NODES), 7).check()


def test_libxls_socket_is_used_unless_another_is_given(monkeypatch, tmp_path, qemu):
    monkeypatch.setattr(device_model, "RUN_DIR", tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "qmp-libxl-7"))
        listening.listen()

        def serve() -> None:
            accepted, _ = listening.accept()
            with accepted:
                for message in ({"QMP": {}}, *3 * ({"return": {}},)):
                    accepted.sendall(json.dumps(message).encode() + b"\n")
                    accepted.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        DeviceModel(MemoryStore(NODES), 7).check()
        thread.join()


@contextmanager
def signals_raise() -> Iterator[Callable[[], None]]:
    """`Interrupted` for SIGUSR1 inside the block; what sends one to the main thread."""

    def raise_interrupted(*_: object) -> None:
        raise Interrupted("SIGUSR1")

    before = signal.signal(signal.SIGUSR1, raise_interrupted)
    try:
        yield lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_while_it_is_silent_ends_the_wait_at_once_and_it_may_run_again(qemu):
    with signals_raise() as interrupt:
        qemu.instead_of("stop", lambda conversation: interrupt())
        client = client_of(qemu)
        with pytest.raises(Interrupted):
            client.stop()
    client.resume()
    assert qemu.commands[-1] == "cont"


@pytest.mark.parametrize("command", ["stop", "xen-save-devices-state"])
def test_after_a_signal_amid_a_command_it_is_let_run_in_a_second_conversation(qemu, command):
    """The late answer would be taken for that of `cont`, and QEMU drops what is queued when its client hangs up."""
    client = client_of(qemu)
    with signals_raise() as interrupt:
        client.hold()
        over = threading.Event()

        def answer_late(conversation: Conversation) -> None:
            qemu.running = False
            interrupt()
            over.wait(20)
            conversation.send_message({"return": {}})

        qemu.instead_of(command, answer_late)
        with pytest.raises(Interrupted):
            client.stop()
        over.set()
    client.resume()
    assert qemu.commands[-2:] == ["qmp_capabilities", "cont"]
    assert qemu.running


def test_after_a_signal_amid_a_command_an_error_that_answers_cont_is_raised(qemu):
    client = client_of(qemu)
    with signals_raise() as interrupt:
        client.hold()

        def answer_late(conversation: Conversation) -> None:
            interrupt()
            conversation.send_message({"return": {}})

        qemu.instead_of("stop", answer_late)
        with pytest.raises(Interrupted):
            client.stop()
    qemu.instead_of("cont", lambda conversation: conversation.fail("the image is locked"))
    with pytest.raises(QmpError, match="could not cont: the image is locked"):
        client.resume()


def test_an_answer_that_is_none_ends_the_conversation_that_is_held(qemu):
    client = client_of(qemu)
    client.hold()
    qemu.instead_of("stop", lambda conversation: conversation.send(b"what?\r\n" + b'{"return": {}}\r\n'))
    with pytest.raises(QmpError, match="answers no JSON"):
        client.stop()
    client.resume()
    assert qemu.commands[-2:] == ["qmp_capabilities", "cont"]


def test_an_error_that_qemu_answers_leaves_the_conversation_held(qemu):
    client = client_of(qemu)
    client.hold()
    qemu.instead_of("add-fd", lambda conversation: conversation.fail("no room"))
    with pytest.raises(QmpError, match="no room"):
        client.stop()
    client.resume()
    assert qemu.commands.count("qmp_capabilities") == 1
    assert qemu.running


def test_a_signal_as_libxls_socket_was_connected_leaves_no_conversation(monkeypatch, tmp_path):
    """The exception keeps the frame, and the frame the socket: QEMU would wait for it, and we for QEMU."""
    monkeypatch.setattr(device_model, "RUN_DIR", tmp_path)
    made: list[socket.socket] = []

    class Interrupting(socket.socket):
        def connect(self, address: str) -> None:
            super().connect(address)
            made.append(self)
            raise Interrupted("SIGUSR1")

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "qmp-libxl-7"))
        listening.listen()
        monkeypatch.setattr(socket, "socket", Interrupting)
        with pytest.raises(Interrupted):
            DeviceModel(MemoryStore(NODES), 7).check()
    assert made[0].fileno() == -1


@pytest.mark.parametrize("status", [{}, [], {"running": "yes"}])
def test_a_status_that_says_nothing_starts_nothing(qemu, status):
    qemu.instead_of("query-status", lambda conversation: conversation.send_message({"return": status}))
    with pytest.raises(QmpError, match="without 'running'"):
        client_of(qemu).recover()
    assert "cont" not in qemu.commands


# ---- with a guest --------------------------------------------------------------------------------


def test_the_guest_stops_first_and_resumes_last_even_when_the_device_model_does_not_answer(qemu):
    guest = SimpleNamespace(seen=[], has_ended=False)
    guest.suspend = lambda: guest.seen.append(("suspend", qemu.running))
    guest.resume = lambda: guest.seen.append(("resume", qemu.running))
    both = SuspenderWithDeviceModel(guest, client_of(qemu))
    both.suspend()
    both.resume()
    assert guest.seen == [("suspend", True), ("resume", True)]
    both.suspend()
    qemu.instead_of("cont", lambda conversation: conversation.fail("no"))
    with pytest.raises(QmpError):
        both.resume()
    assert guest.seen[-1] == ("resume", False)


def test_a_device_model_that_ended_with_its_guest_is_no_failure_to_resume(qemu):
    guest = SimpleNamespace(has_ended=False, suspend=lambda: None)
    guest.resume = lambda: vars(guest).update(has_ended=True)
    both = SuspenderWithDeviceModel(guest, client_of(qemu))
    both.suspend()
    qemu.instead_of("cont", lambda conversation: conversation.close())
    both.resume()
    assert both.has_ended


def hold(qemu: FakeQemu) -> socket.socket:
    """What another program does that connects and says nothing: QEMU serves nobody else."""
    other = qemu.connect()
    other.recv(1 << 16)
    return other


def test_a_device_model_that_another_program_holds_is_found_so_while_the_guest_runs(qemu):
    asked: list[str] = []
    guest = SimpleNamespace(suspend=lambda: asked.append("suspend"), resume=lambda: asked.append("resume"))
    with hold(qemu):
        both = SuspenderWithDeviceModel(guest, client_of(qemu, SHORT_S))
        with pytest.raises(QmpError, match="another program is connected to it"):
            both.suspend()
    assert asked == []


def test_from_the_request_until_the_guest_runs_again_nobody_else_can_take_the_device_model(qemu):
    waiting: list[socket.socket] = []
    guest = SimpleNamespace(suspend=lambda: waiting.append(qemu.connect()), resume=lambda: None)
    both = SuspenderWithDeviceModel(guest, client_of(qemu, SHORT_S))
    both.suspend()
    assert not qemu.running
    both.resume()
    assert qemu.running
    assert waiting[0].recv(1 << 16)  # its turn comes when ours is over
    waiting[0].close()


def test_a_conversation_that_broke_is_opened_anew_but_not_waited_for_long(qemu, monkeypatch):
    monkeypatch.setattr(device_model, "AGAIN_S", SHORT_S)
    client = client_of(qemu, 30)
    client.hold()
    client.stop()
    qemu.instead_of("cont", lambda conversation: conversation.close())
    with pytest.raises(QmpError, match="gone"):
        client.resume()
    with hold(qemu):
        before = time.monotonic()
        with pytest.raises(QmpError, match="another program is connected to it"):
            client.resume()
        assert time.monotonic() - before < 10


def test_whoever_destroys_the_domain_finds_its_device_model_free(qemu):
    client = client_of(qemu)
    client.hold()
    client.stop()
    client.close()
    client.close()
    with qemu.connect() as other:
        assert other.recv(1 << 16)
