"""What libxl runs where a helper waits already (see `ready`): it hands everything to that one, and ends as it does.

It is run as a file of its own, by a Python that looks for no packages and so is there in a fraction of the time: it
imports nothing of ours.
"""

import os
import signal
import socket
import sys
from types import FrameType

ADDRESS_VARIABLE = "PYSAVE_READY_HELPER"
"""Where the helper waits: the name of an abstract Unix socket."""

TASK_VARIABLE = "PYSAVE_TASK"
"""As in `toolstack.helper_link`: set after the helper began to wait."""

FAILED = 1
NO_DESCRIPTOR = -1


def main() -> int:
    """Hand over standard streams, stream and words, and return the exit code that comes back."""
    words = sys.argv[1:]
    streams = [fd for fd in map(int, words[1:3]) if fd != NO_DESCRIPTOR]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as waiting:
        waiting.connect("\0" + os.environ[ADDRESS_VARIABLE])
        helper = int(waiting.recv(64))  # its pid, or nothing when it died

        def pass_on(number: int, _frame: FrameType | None) -> None:
            os.kill(helper, number)

        # libxl ends its helper by SIGTERM. Ctrl-C comes to the one that works by itself: a terminal sends it to all.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, pass_on)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        task = os.environ.get(TASK_VARIABLE, "")
        socket.send_fds(waiting, ["\0".join([task, *words]).encode()], [0, 1, 2, *streams])
        code = waiting.recv(64)
    return int(code) if code else FAILED  # it died without a word


if __name__ == "__main__":
    sys.exit(main())
