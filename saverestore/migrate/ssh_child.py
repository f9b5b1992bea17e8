"""ssh as a child of this process: started, used by whoever needs the connection, and ended.

Both hosts take a while to begin, and so does ssh. So a command starts ssh before it loads what a migration needs.
This is why this module needs little itself.
"""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from saverestore.errors import UsageError
from saverestore.interrupts import shield

RECEIVE = "pymigrate receive"
"""What ssh is asked to run."""

CHILD_S = 5.0
"""How long ssh may take to end by itself, and then to obey each signal."""

# ssh keeps running when Ctrl-C is typed: what becomes of the migration is ours to decide, and to say over it.
DEAF = ("sh", "-c", 'trap "" INT QUIT; exec "$@"', "sh")


def is_host(text: str) -> bool:
    """Whether an address is the name of a host, for ssh."""
    is_other = text.startswith(("-", "unix:")) or "://" in text
    return bool(text) and not is_other and not any(char.isspace() for char in text)


def words_of(command: str) -> list[str]:
    """A command line as a person gave it, in words. UsageError when it has none."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{command!r}: {error}") from error
    if not words:
        raise UsageError("the command for ssh is empty")
    return words


class SshChild:
    """ssh that runs. `connected`: this end of its standard input and output."""

    def __init__(self, host: str, ssh: Sequence[str], command: str = RECEIVE) -> None:
        """Start it. OSError when it cannot be; nothing is left then, nor when a signal comes meanwhile."""
        self.host = host
        self.ssh = tuple(ssh)
        self._child: subprocess.Popen[bytes] | None = None
        self.connected, theirs = socket.socketpair()
        try:
            with shield(), theirs:  # a signal that comes meanwhile is raised at the end of it
                self._child = subprocess.Popen(
                    [*DEAF, *ssh, host, command], stdin=theirs.fileno(), stdout=theirs.fileno()
                )
        except BaseException:
            with shield():
                self.end()
            raise

    def ended_with(self) -> int | None:
        """Its exit code, once it has ended; None when it has not within a few seconds."""
        assert self._child is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(CHILD_S)
        return None

    def end(self, *, at_once: bool = False) -> None:
        """See that it has ended. `at_once`: make it end.

        Else it ends by itself, as its connection is closed: with the program at the other host, whose last words it
        prints.
        """
        self.connected.close()
        child = self._child
        if child is None:
            return
        for ask in (child.terminate, child.kill) if at_once else (None, child.terminate, child.kill):
            if ask is not None:
                ask()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(CHILD_S)
                return


class Begun:
    """What was started before it was needed, if anything. For one connection; further ones start their own."""

    def __init__(self) -> None:
        self._child: SshChild | None = None

    def begin(self, child: SshChild) -> None:
        """This one, from now on."""
        self._child = child

    def taken(self, host: str, ssh: Sequence[str], command: str) -> SshChild | None:
        """It, where it is for this host by this command: whoever takes it also ends it."""
        child = self._child
        if child is None or (child.host, child.ssh, RECEIVE) != (host, tuple(ssh), command):
            return None
        self._child = None
        return child

    def end(self) -> None:
        """Nobody takes it any more. The program at the other host has heard nothing, and ends."""
        child, self._child = self._child, None
        if child is not None:
            child.end(at_once=True)


@contextmanager
def begun(address: str, ssh: str) -> Iterator[Begun]:
    """Start ssh for an address as a person gave it, where it is one for ssh. `ssh`: its command line.

    What is wrong with either is for others to find: nothing is started then.
    """
    one = Begun()
    try:
        with shield(), contextlib.suppress(OSError, UsageError):
            if is_host(address):
                one.begin(SshChild(address, words_of(ssh)))
        yield one
    finally:
        with shield():
            one.end()
