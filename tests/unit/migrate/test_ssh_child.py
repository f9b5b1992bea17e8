"""ssh as a child: started before it is needed, used once, and never left behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saverestore import interrupts
from saverestore.errors import Interrupted
from saverestore.migrate import addresses, ssh_child
from saverestore.migrate.addresses import Address
from saverestore.migrate.channel import Channel
from saverestore.migrate.messages import Hello
from saverestore.migrate.ssh_child import RECEIVE, SshChild, begun, is_host
from saverestore.transport.sockets import Unreachable

ROOT = Path(__file__).parents[3]


@pytest.fixture
def children(monkeypatch):
    """Every process that is started."""
    found: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def started(*given, **more):
        found.append(real(*given, **more))
        return found[-1]

    monkeypatch.setattr(ssh_child.subprocess, "Popen", started)
    yield found
    for child in found:
        child.kill()
        child.wait()


def script(text: str) -> str:
    """A command line to be called as ssh is: HOST is $1."""
    return shlex.join(["sh", "-c", text, "ssh"])


ECHO = script("exec cat")
LINGERING = script("cat; sleep 60")


def host(name: str = "host") -> Address:
    return Address(name, "ssh", name)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def say_and_hear(connection) -> None:
    connection.outgoing.write(b"hello")
    assert connection.incoming.read(5) == b"hello"


def test_what_was_begun_is_the_connection_and_ends_with_it(children):
    with begun("host", ECHO) as one:
        assert len(children) == 1
        with addresses.connected(host(), ssh=shlex.split(ECHO), begun=one) as connection:
            say_and_hear(connection)
        assert children[0].returncode is not None
    assert len(children) == 1


def test_a_second_connection_starts_its_own(children):
    with begun("host", ECHO) as one:
        for number in (1, 2):
            with addresses.connected(host(), ssh=shlex.split(ECHO), begun=one) as connection:
                say_and_hear(connection)
            assert len(children) == number


@pytest.mark.parametrize(
    ("name", "ssh", "command"),
    [
        ("other", ECHO, RECEIVE),
        ("host", script("exec cat; :"), RECEIVE),
        ("host", ECHO, "xl migrate-receive"),
    ],
)
def test_what_was_begun_for_another_host_or_command_is_not_used(children, name, ssh, command):
    with (
        begun("host", ECHO) as one,
        addresses.connected(host(name), ssh=shlex.split(ssh), command=command, begun=one) as connection,
    ):
        say_and_hear(connection)
        assert len(children) == 2


def test_what_nobody_has_used_is_ended_at_once_and_not_waited_for(children):
    began = time.monotonic()
    with pytest.raises(LookupError), begun("host", LINGERING):
        raise LookupError
    assert children[0].returncode is not None
    assert time.monotonic() - began < ssh_child.CHILD_S


@pytest.mark.parametrize(
    "address", ["tls://host", "tcp://host:1", "unix:/run/x", "-oProxyCommand=x", "", "a b"]
)
def test_nothing_is_begun_for_what_ssh_does_not_reach(children, address):
    assert not is_host(address)
    with begun(address, ECHO):
        assert children == []


@pytest.mark.parametrize("ssh", ["", "'"])
def test_a_command_for_ssh_that_makes_no_sense_is_for_others_to_refuse(children, ssh):
    with begun("host", ssh) as one:
        assert one.taken("host", [ssh], RECEIVE) is None
    assert children == []


def test_a_command_for_ssh_that_is_not_there_is_found_when_it_is_needed(children):
    with (
        begun("host", "/nothing/ssh") as one,
        pytest.raises(Unreachable, match=r"/nothing/ssh ended with exit code 127"),
        addresses.connected(host(), ssh=["/nothing/ssh"], begun=one) as connection,
        Channel(connection) as channel,
    ):
        channel.hear(Hello)
    assert len(children) == 1


def test_ssh_that_fails_before_it_is_needed_makes_the_host_unreachable(children):
    ssh = script("exit 255")
    with begun("host", ssh) as one:
        children[0].wait(20)
        with (
            pytest.raises(Unreachable, match=r"host cannot be reached by ssh: .* exit code 255"),
            addresses.connected(host(), ssh=shlex.split(ssh), begun=one) as connection,
            Channel(connection) as channel,
        ):
            channel.hear(Hello)


@pytest.mark.parametrize("fails", [False, True])
def test_the_last_words_of_the_other_host_are_waited_for(tmp_path, fails):
    said = tmp_path / "said"
    ssh = shlex.split(script(f"cat; sleep 0.5; echo last words > {said}"))
    with contextlib.suppress(LookupError), addresses.connected(host(), ssh=ssh):
        if fails:
            raise LookupError
    assert said.read_text() == "last words\n"


def test_a_signal_before_the_connection_is_made_leaves_no_ssh_behind(children, monkeypatch):
    def interrupted(*_given, **_more):
        os.kill(os.getpid(), signal.SIGINT)
        raise LookupError

    monkeypatch.setattr(addresses, "SocketConnection", interrupted)
    before = descriptors()
    with (
        interrupts.handled(),
        pytest.raises((Interrupted, LookupError)),
        begun("host", ECHO) as one,
        addresses.connected(host(), ssh=shlex.split(ECHO), begun=one),
    ):
        raise AssertionError("it is not connected")
    assert [child.returncode is not None for child in children] == [True]
    assert descriptors() == before


def test_a_signal_as_it_is_started_leaves_nothing_behind(children, monkeypatch):
    real = ssh_child.subprocess.Popen

    def interrupted(*given, **more):
        child = real(*given, **more)
        os.kill(os.getpid(), signal.SIGINT)
        return child

    monkeypatch.setattr(ssh_child.subprocess, "Popen", interrupted)
    before = descriptors()
    with interrupts.handled(), pytest.raises(Interrupted):
        SshChild("host", shlex.split(ECHO))
    assert children[0].returncode is not None
    assert descriptors() == before


def test_what_starts_ssh_loads_little():
    code = "import sys; import saverestore.migrate.ssh_child; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {name for name in loaded if name.startswith("saverestore")}
    assert ours == {
        "saverestore",
        "saverestore.errors",
        "saverestore.interrupts",
        "saverestore.migrate",
        "saverestore.migrate.ssh_child",
    }
    assert "numpy" not in loaded
