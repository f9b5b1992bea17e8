"""ssh into a lab machine: over loopback, with the lab's keys, on one shared connection."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from xenlab import layer
from xenlab.runstate import RunState, run_folder


def base(place: str, state: RunState) -> list[str]:
    """Return ssh and its options; the user's own ssh settings and agent stay out of it."""
    options = {
        "Port": str(state.ssh_port),
        "User": "root",
        "IdentityFile": str(layer.ssh_folder() / "id_ed25519"),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": str(layer.ssh_folder() / "known_hosts"),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": "pysave-lab",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "BatchMode": "yes",
        "ConnectTimeout": "20",
        "LogLevel": "ERROR",
        "ControlMaster": "auto",
        "ControlPath": str(run_folder(place) / "ssh.sock"),
        "ControlPersist": "yes",
        "ServerAliveInterval": "60",
    }
    return [
        "ssh",
        "-F",
        "none",
        *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
    ]


def command(place: str, state: RunState, words: Sequence[str]) -> list[str]:
    """Return the argv that runs `words` in dom0: one word is a shell command, several are an argv."""
    remote = words[0] if len(words) == 1 else shlex.join(words)
    return [*base(place, state), "127.0.0.1", "--", remote]


def interactive(place: str, state: RunState) -> list[str]:
    """Return the argv of a login shell in dom0."""
    return [*base(place, state), "-t", "127.0.0.1"]


def end_shared_connection(place: str, state: RunState) -> None:
    """End the background ssh that holds the shared connection, if there is one."""
    if (run_folder(place) / "ssh.sock").exists():
        argv = [*base(place, state), "-O", "exit", "127.0.0.1"]
        subprocess.run(argv, capture_output=True, check=False, timeout=20)
