"""Images over sockets and descriptors: from a save to a restore, and what each side has when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeHost, FakeToolstack, RestoringHost, image_in
from tls_sites import Site

from saverestore.engine.progress import Silence
from saverestore.errors import (
    DomainError,
    ErrorName,
    ExitCode,
    ImageError,
    Interrupted,
    TransportError,
    UsageError,
)
from saverestore.operations.commit import SaveInDoubt, SocketCommit
from saverestore.operations.requests import FinalState, RestoreRequest, SaveRequest
from saverestore.operations.restore import restore_domain
from saverestore.operations.save import save_domain
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like
from saverestore.toolstack import config as configs
from saverestore.transport import image_sockets
from saverestore.transport.connection import SocketConnection, _Incoming
from saverestore.transport.image_sockets import (
    RESTORED,
    RESTORES,
    NotRestored,
    NoVerdict,
    Receiver,
    address_of,
)
from saverestore.transport.sockets import Unreachable
from saverestore.transport.tls import NotTrusted
from saverestore.transport.tls_peers import parse_allowed

ROOT = Path(__file__).parents[3]
KINDS = ["unix", "tcp", "tls", "tls zstd", "unix zstd"]


class ConfiguredToolstack(FakeToolstack):
    """One whose domain has a configuration that can be restored."""

    def config_of(self, _domain: object) -> Any:
        config = {
            "c_info": {"type": "pvh", "name": "web1", "uuid": "00000000-0000-4000-8000-000000000001"},
            "b_info": {"max_vcpus": 1, "max_memkb": 256, "target_memkb": 256},
        }
        return configs.parse(json.dumps(config).encode())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Pair:
    """A host that saves to an address, and one that restores what comes there, on a thread."""

    save: SaveRequest
    restore: RestoreRequest
    guest: MemorySave
    restored: MemoryRestore
    there: RestoringHost
    error: BaseException | None = None

    def run(self, *, final_state: FinalState = FinalState.DESTROY) -> FakeToolstack:
        """Both. What the saver raises is raised here; `error`: what the restorer raised."""
        thread = threading.Thread(target=self._restore, daemon=True)
        thread.start()
        toolstack = ConfiguredToolstack()
        host = FakeHost(self.guest, toolstack)
        try:
            while True:
                try:
                    save_domain(replace(self.save, final_state=final_state), Silence(), host=host)
                    return toolstack
                except Unreachable:  # until it listens
                    if not thread.is_alive():
                        raise
                    time.sleep(0.02)
        finally:
            thread.join(30)
            assert not thread.is_alive()

    def _restore(self) -> None:
        try:
            restore_domain(self.restore, Silence(), host=self.there)
        except BaseException as error:
            self.error = error


@pytest.fixture
def pair_of(tmp_path):
    def make(kind: str) -> Pair:
        kind, _, compress = kind.partition(" ")
        image = f"unix:{tmp_path}/socket" if kind == "unix" else f"tcp://127.0.0.1:{free_port()}"
        save, restore = SaveRequest("web1", image), RestoreRequest(image)
        if kind == "tls":
            site = Site(tmp_path / "site")
            save = replace(save, tls=site.host("a"))
            restore = replace(restore, tls=site.host("b", "127.0.0.1"), allowed=parse_allowed("a", "list"))
        domain = MemoryDomain.pvh(64)
        return Pair(
            replace(save, compress=1 if compress else None),
            restore,
            MemorySave(domain),
            restored := MemoryRestore(empty_like(domain)),
            RestoringHost(restored),
        )

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_domain_is_saved_to_a_socket_and_restored_from_it(pair_of, kind, tmp_path):
    pair = pair_of(kind)
    toolstack = pair.run()
    assert pair.error is None
    assert toolstack.destroyed
    assert pair.there.running == {5}
    pfns = pair.guest.domain.data_pfns()
    assert (pair.restored.domain.read(pfns) == pair.guest.domain.read(pfns)).all()
    assert not (tmp_path / "socket").exists()


def test_a_domain_that_stays_is_copied(pair_of):
    pair = pair_of("tcp")
    assert not pair.run(final_state=FinalState.RUN).destroyed
    assert pair.there.running == {5}
    assert not pair.guest.domain.suspended


@pytest.mark.parametrize("kind", ["unix", "tcp", "tls"])
def test_a_restore_that_fails_leaves_the_domain_running_where_it_was(pair_of, kind):
    pair = pair_of(kind)

    def refuse(_domid: int) -> None:
        raise DomainError("it cannot be started", name=ErrorName.HOST_UNSUPPORTED)

    pair.there.unpause = refuse
    with pytest.raises(NotRestored, match="could not restore the image"):
        pair.run()
    assert isinstance(pair.error, DomainError)
    assert not pair.guest.domain.suspended
    assert pair.there.alive == set()


@pytest.mark.parametrize("kind", ["unix", "tcp", "tls"])
def test_what_fails_once_the_domain_runs_there_does_not_resume_it_here(pair_of, kind):
    pair = pair_of(kind)

    def failing(*_: object) -> None:
        raise RuntimeError("the watcher's own mistake")

    pair.there.watcher = lambda _name: nullcontext(SimpleNamespace(watch=failing))
    toolstack = pair.run()
    assert isinstance(pair.error, RuntimeError)
    assert pair.there.running == {5}
    assert toolstack.destroyed, "the domain runs on both hosts"


@pytest.mark.parametrize("kind", ["unix", "tcp", "tls"])
@pytest.mark.parametrize("compress", [None, 1])
def test_a_save_that_is_given_up_once_all_was_sent_starts_nothing_there(pair_of, kind, compress, monkeypatch):
    pair = pair_of(kind)
    pair.save = replace(pair.save, compress=compress)

    def interrupted(_self: Receiver) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Receiver, "end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pair.run()
    assert isinstance(pair.error, ImageError | TransportError)
    assert pair.there.alive == set()
    assert not pair.guest.domain.suspended


def test_a_sender_that_is_not_on_the_list_changes_nothing(pair_of):
    pair = pair_of("tls")
    pair.restore = replace(pair.restore, allowed=parse_allowed("c", "list"))
    thread = threading.Thread(target=pair._restore, daemon=True)  # it waits for another
    thread.start()
    host = FakeHost(pair.guest, ConfiguredToolstack())
    while True:
        try:
            save_domain(pair.save, Silence(), host=host)
        except Unreachable:
            time.sleep(0.02)
        except NotTrusted as error:
            assert "not on the list there" in str(error)
            break
    assert not pair.guest.domain.suspended


class Peer:
    """A program at the other end, which `serve`s one connection on a thread."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._serve = serve
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        made, _ = self._server.accept()
        with made:
            self._serve(made)
        self._server.close()

    def join(self) -> None:
        self._thread.join(30)


def read_all(made: socket.socket) -> bytes:
    got = b""
    while part := made.recv(1 << 16):
        got += part
    return got


def saved_to(serve: Callable[[socket.socket], None], final_state: FinalState = FinalState.DESTROY):
    """A save to such a peer: what it raised, the guest, its toolstack."""
    peer, guest, toolstack = Peer(serve), MemorySave(MemoryDomain.pvh(64)), ConfiguredToolstack()
    failure = None
    try:
        save_domain(
            SaveRequest("web1", peer.address, final_state=final_state),
            Silence(),
            host=FakeHost(guest, toolstack),
        )
    except Exception as error:
        failure = error
    peer.join()
    return failure, guest, toolstack


def test_a_program_that_keeps_the_bytes_has_a_whole_image(tmp_path):
    kept = tmp_path / "kept.img"
    failure, _, toolstack = saved_to(lambda made: kept.write_bytes(read_all(made)) and None)
    assert failure is None
    assert toolstack.destroyed
    there = RestoringHost(MemoryRestore(empty_like(MemoryDomain.pvh(64))))
    restore_domain(RestoreRequest(str(kept)), Silence(), host=there)
    assert there.running == {5}


def test_a_restorer_that_dies_without_a_verdict_leaves_the_domain_suspended_and_in_doubt():
    def serve(made: socket.socket) -> None:
        made.sendall(RESTORES)
        read_all(made)

    failure, guest, toolstack = saved_to(serve)
    assert isinstance(failure, SaveInDoubt)
    assert failure.exit_code is ExitCode.IN_DOUBT
    assert "web1 is still here, suspended" in str(failure)
    assert guest.domain.suspended
    assert not toolstack.destroyed


def test_a_copy_that_is_not_confirmed_is_a_plain_failure_and_the_domain_runs():
    def serve(made: socket.socket) -> None:
        made.sendall(RESTORES)
        read_all(made)

    failure, guest, _ = saved_to(serve, FinalState.RUN)
    assert isinstance(failure, NoVerdict)
    assert not guest.domain.suspended


def interrupting(monkeypatch, *, reads: bool) -> None:
    """A signal as the first of the verdict is looked for: before it is read, or in the shield around that."""
    real, times = _Incoming.read_some, []

    def read_some(self: _Incoming, n: int) -> bytes:
        times.append(n)
        if len(times) > 1:
            return real(self, n)
        if reads:
            real(self, n)
        raise Interrupted("interrupted by Ctrl-C")

    monkeypatch.setattr(_Incoming, "read_some", read_some)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with SocketConnection(ours, "peer", timeout_s=20) as connection, theirs:
        yield Receiver(connection), theirs


@pytest.mark.parametrize("reads", [False, True])
def test_a_signal_before_a_restorers_first_word_was_noted_leaves_no_verdict(ends, monkeypatch, reads):
    receiver, theirs = ends
    theirs.sendall(RESTORES)
    interrupting(monkeypatch, reads=reads)
    with pytest.raises(NoVerdict, match="has not said what came of the image: interrupted by Ctrl-C"):
        receiver.end()
    assert receiver.may_restore


def test_a_restorer_that_says_so_late_is_waited_for_after_a_signal(ends, monkeypatch):
    receiver, theirs = ends
    interrupting(monkeypatch, reads=False)
    late = threading.Timer(0.2, theirs.sendall, (RESTORES,))
    late.start()
    with pytest.raises(NoVerdict):
        receiver.end()
    late.join()


@pytest.mark.parametrize("closes", [True, False])
def test_after_a_signal_a_peer_that_keeps_bytes_is_not_waited_for_long(ends, monkeypatch, closes):
    receiver, theirs = ends
    interrupting(monkeypatch, reads=False)
    monkeypatch.setattr(image_sockets, "LAST_WORDS_S", 0.2)
    if closes:
        theirs.close()
    with pytest.raises(Interrupted):
        receiver.end()
    assert not receiver.may_restore


def restores(verdict: bytes) -> Callable[[socket.socket], None]:
    def serve(made: socket.socket) -> None:
        made.sendall(RESTORES)
        read_all(made)
        made.sendall(verdict)

    return serve


@pytest.mark.parametrize("reads", [False, True])
def test_a_save_that_is_interrupted_once_the_peer_may_run_the_domain_leaves_it_suspended(monkeypatch, reads):
    interrupting(monkeypatch, reads=reads)
    failure, guest, toolstack = saved_to(restores(RESTORED))
    assert isinstance(failure, SaveInDoubt)
    assert guest.domain.suspended
    assert not toolstack.destroyed


def test_a_signal_after_the_verdict_comes_too_late(monkeypatch):
    """The domain runs there: it is not resumed here, and what was asked for is carried out."""

    def interrupted(_self: object) -> int:
        raise Interrupted("interrupted by Ctrl-C")

    monkeypatch.setattr(SocketCommit, "stored_bytes", property(interrupted))
    failure, guest, toolstack = saved_to(restores(RESTORED))
    assert failure is None
    assert guest.domain.suspended
    assert toolstack.destroyed


def test_a_mistake_of_ours_after_the_verdict_does_not_resume_the_domain(monkeypatch):
    real = Receiver.end

    def end(self: Receiver) -> None:
        real(self)
        raise RuntimeError("a mistake")

    monkeypatch.setattr(Receiver, "end", end)
    failure, guest, toolstack = saved_to(restores(RESTORED))
    assert failure is None
    assert toolstack.destroyed
    failure, guest, _ = saved_to(lambda made: read_all(made) and None)  # one that keeps the bytes
    assert isinstance(failure, RuntimeError)
    assert not guest.domain.suspended


def test_a_signal_while_a_copy_is_restored_there_lets_the_domain_run_here(monkeypatch):
    interrupting(monkeypatch, reads=False)
    failure, guest, _ = saved_to(restores(RESTORED), FinalState.RUN)
    assert isinstance(failure, NoVerdict)
    assert not guest.domain.suspended


@pytest.mark.parametrize("said", [b"", RESTORES])
def test_a_peer_that_goes_amid_the_image_leaves_the_domain_running(said):
    def serve(made: socket.socket) -> None:
        made.sendall(said)
        made.recv(100)

    failure, guest, _ = saved_to(serve)
    assert isinstance(failure, TransportError)
    assert failure.exit_code is ExitCode.IO
    assert not guest.domain.suspended


def test_a_peer_that_talks_is_none_that_takes_images():
    def serve(made: socket.socket) -> None:
        read_all(made)
        made.sendall(b"HTTP/1.0 400 Bad Request\r\n")

    failure, guest, _ = saved_to(serve)
    assert "no program that takes an image does that" in str(failure)
    assert not guest.domain.suspended


@pytest.mark.parametrize("form", ["plain", "zstd"])
def test_an_image_that_any_program_sends_is_restored(pair_of, tmp_path, form):
    pair = pair_of("unix")
    image = image_in(tmp_path, pair.guest.domain, form).read_bytes()
    thread = threading.Thread(target=pair._restore, daemon=True)
    thread.start()
    with socket.socket(socket.AF_UNIX) as made:
        while True:
            try:
                made.connect(pair.restore.image.removeprefix("unix:"))
                break
            except OSError:
                time.sleep(0.02)
        made.sendall(image)
        made.shutdown(socket.SHUT_WR)
        assert read_all(made) == b"\x05\x06"
    thread.join()
    assert pair.there.running == {5}


def test_a_peer_that_sends_nothing_is_named(pair_of):
    pair = pair_of("tcp")
    thread = threading.Thread(target=pair._restore, daemon=True)
    thread.start()
    address = address_of(pair.restore.image)
    while True:
        try:
            with socket.create_connection((address.host, address.port)) as made:
                made.shutdown(socket.SHUT_WR)
                read_all(made)
            break
        except OSError:
            time.sleep(0.02)
    thread.join()
    assert str(pair.error) == "127.0.0.1 has sent nothing"


# ---- descriptors


def test_an_image_goes_through_descriptors(tmp_path):
    guest, there = MemorySave(MemoryDomain.pvh(64)), None
    path = tmp_path / "out.img"
    with path.open("wb") as file:
        save_domain(
            SaveRequest("web1", f"fd:{file.fileno()}"), Silence(), host=FakeHost(guest, ConfiguredToolstack())
        )
        os.fstat(file.fileno())  # it is still open
    there = RestoringHost(MemoryRestore(empty_like(guest.domain)))
    with path.open("rb") as file:
        restore_domain(RestoreRequest(f"fd:{file.fileno()}"), Silence(), host=there)
    assert there.running == {5}


def test_a_descriptor_that_is_not_there_or_of_the_other_direction_is_refused(tmp_path):
    guest = MemorySave(MemoryDomain.pvh(64))

    def save(image: str) -> None:
        save_domain(SaveRequest("web1", image), Silence(), host=FakeHost(guest, ConfiguredToolstack()))

    with pytest.raises(UsageError, match="fd:99999: there is no such descriptor"):
        save("fd:99999")
    read, write = os.pipe()
    with pytest.raises(UsageError, match="was not opened to be written to"):
        save(f"fd:{read}")
    with pytest.raises(UsageError, match="was not opened to be read from"):
        restore_domain(RestoreRequest(f"fd:{write}"), Silence(), host=RestoringHost())
    os.close(read)
    os.close(write)
    assert not guest.domain.suspended


# ---- addresses


def test_addresses_are_told_from_files():
    assert [address_of(image) for image in ("-", "web1.img", "./unix:x", "a/tcp://b:1")] == [None] * 4
    assert (address_of("tcp://:8702").host, address_of("tcp://:8702").port) == ("127.0.0.1", 8702)
    assert address_of("tcp://[::]:1").host == "::"
    assert address_of("unix:/run/x").host == "/run/x"


@pytest.mark.parametrize(
    "text", ["tcp://", "tcp://b", "tcp://b:0", "tcp://b:x", "tcp://a b:1", "unix:", "fd:", "fd:x", "fd:-1"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError):
        address_of(text)


def test_tls_is_for_tcp_only(tmp_path):
    files = Site(tmp_path / "site").host("a")
    for text in ("unix:/run/x", "fd:3", "-", "web1.img"):
        with pytest.raises(UsageError, match="TLS is for tcp:// only"):
            address_of(text, tls=files)


# ---- the commands


def command(name: str, *words: str) -> subprocess.Popen[str]:
    code = f"import sys\nfrom saverestore.cli import {name}\nsys.exit({name}.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_removes_the_socket_at_which_a_restore_waits(tmp_path, number):
    path = tmp_path / "socket"
    child = command("pyrestore", "--toolstack", "bare", f"unix:{path}")
    end = time.monotonic() + 30
    while not path.exists():
        assert child.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    assert path.stat().st_mode & 0o777 == 0o600
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, path.exists()) == (ExitCode.INTERRUPTED, False)
    assert "interrupted" in err


def test_a_dry_run_does_not_use_up_what_somebody_sends():
    child = command("pyrestore", "--dry-run", "tcp://:1")
    out, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (ExitCode.USAGE, "")
    assert "problem: tcp://:1: a dry run would use up the image" in out
    assert out.endswith("\nno changes were made\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["pysave", "--tls", "web1", "x.img"], ExitCode.USAGE, "TLS is for tcp:// only"),
        (["pysave", "web1", "tcp://nowhere"], ExitCode.USAGE, "is not tcp://HOST:PORT"),
        (["pyrestore", "tcp://:x"], ExitCode.USAGE, "is not tcp://HOST:PORT"),
        (["pyrestore", "--tls", "--allow", "/no/such", "tcp://:1"], ExitCode.USAGE, "/no/such: no such file"),
        (["pyrestore", "--toolstack", "bare", "unix:/no/such/socket"], ExitCode.IO, "cannot listen there"),
        (["pyrestore", "--toolstack", "bare", f"unix:/{'x' * 200}"], ExitCode.IO, "path too long"),
    ],
)
def test_what_cannot_be_is_one_line_and_an_exit_code(words, code, said):
    child = command(*words)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err.count("\n")) == (code, 1)
    assert said in err
