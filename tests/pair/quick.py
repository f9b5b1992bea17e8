#!/usr/bin/python3 -IS
"""Start one of our scripts in an instant: by a server in this dom0 that has all of them loaded.

As tests/xen/launcher.py does it, but that whoever asks is not the server's parent, so the server waits. Under
emulation `pymigrate` takes 13 s to load on each side, and a test starts it eight times.

    pymigrate ...                    linked to this file, earlier in PATH than the real one
    quick.py SCRIPT.py ...           any script of ours
    quick.py --serve                 the server; it ends with its standard input

Where there is no server, the script is started as usual. Only what loads at once is imported here: no
pathlib.
"""

import os
import sys

SOCKET = "/run/pysave-launcher"
LAUNCHER = "/root/pysave/tests/xen"
PACKAGES = ("saverestore", "pyxc")
REAL = "/usr/local/bin"
PYTHON = "/usr/bin/python3"


def main(argv: list[str]) -> int:
    """Run what the words ask for: its exit status. Ends by the same signal as that."""
    if argv[1:] == ["--serve"]:
        serve()
        return 0
    by_name = not os.path.basename(argv[0]).endswith(".py")
    script = os.path.join(REAL, os.path.basename(argv[0])) if by_name else argv[1]
    arguments = argv[1:] if by_name else argv[2:]
    status = started(script, arguments)
    if status is None:
        os.execv(PYTHON, [PYTHON, script, *arguments])
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


def started(script: str, arguments: list[str]) -> int | None:
    """Its wait status, once it has ended; None where there is no server."""
    import _socket
    import json
    import struct

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        connection.connect(SOCKET)
    except OSError:
        return None
    request = {
        "script": script,
        "arguments": arguments,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "new_session": False,
        "targets": [0, 1, 2],
    }
    rights = struct.pack("3i", 0, 1, 2)
    connection.sendmsg([json.dumps(request).encode()], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    said = connection.recv(64)
    if not said:
        raise OSError("the server is gone")
    return int(said)


def serve() -> None:
    """Start what is asked for, and report how it ended, until standard input ends. Returns in each script's process,
    which has become what it was asked to be."""
    import gc
    import json
    import runpy
    import select
    import signal
    import socket

    sys.path.insert(0, LAUNCHER)
    import launcher

    if os.path.exists(SOCKET):
        os.unlink(SOCKET)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(SOCKET)
        listening.listen()
        launcher.load(PACKAGES)
        gc.freeze()  # what is loaded is not looked through, and so not copied, in each script
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for scripts
        while listening in select.select([listening, 0], [], [])[0]:
            connection, _ = listening.accept()
            message, descriptors, _, _ = socket.recv_fds(connection, launcher.LONGEST_REQUEST, 3)
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                pid = os.fork()
                if pid != 0:
                    connection.send(str(os.waitpid(pid, 0)[1]).encode())
                    os._exit(0)
                for one in (connection, listening):
                    one.detach()  # closed with all that is not the script's
                request = json.loads(message)
                launcher.become(request, descriptors)
                runpy.run_path(request["script"], run_name="__main__")
                return
            for fd in descriptors:
                os.close(fd)
            connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
