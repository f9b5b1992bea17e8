"""A command of the user's, run while the domain is suspended: to snapshot its disks as its memory has them."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess

from saverestore import interrupts
from saverestore.errors import DomainError, ErrorName
from saverestore.toolstack.domains import Domain

LOG = logging.getLogger(__name__)

ENDING_S = 5.0
"""How long it may take to end after a signal, before it is killed: the domain is suspended meanwhile."""

KILLED_S = 2.0
"""How long it may take to end when it is killed."""


def run(command: str, domain: Domain, image: str) -> None:
    """Run it by sh(1) and wait for it. DomainError when it fails: then the save is given up and the domain resumed.

    Its standard output is our standard error, as ours may be the image. It sees PYSAVE_DOMAIN (the name),
    PYSAVE_DOMID, PYSAVE_UUID and PYSAVE_IMAGE.
    """
    environment = os.environ | {
        "PYSAVE_DOMAIN": domain.name,
        "PYSAVE_DOMID": str(domain.domid),
        "PYSAVE_UUID": str(domain.info.uuid),
        "PYSAVE_IMAGE": image,
    }
    process: subprocess.Popen[bytes] | None = None
    try:
        with interrupts.shield():  # it must not be started without being noted, or nobody would end it
            process = _started(command, domain, environment)
        interrupts.waited_for(lambda seconds: _has_ended(process, seconds))
    except BaseException:
        if process is not None:
            _end(process)
        raise
    if process.returncode:
        how = f"exit {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise DomainError(
            f"the command to be run while {domain} was suspended failed ({how}): {command}",
            name=ErrorName.COMMAND_FAILED,
        )


def _started(command: str, domain: Domain, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        # A session of its own: Ctrl-C is ours to heed, and it is told once.
        return subprocess.Popen(
            ["/bin/sh", "-c", command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: it has a NUL
        raise DomainError(
            f"the command to be run while {domain} is suspended could not be started: {error}",
            name=ErrorName.COMMAND_FAILED,
        ) from error


def _has_ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started. One that the kernel cannot kill (a disk that does not answer) is left behind."""
    for number, seconds in ((signal.SIGTERM, ENDING_S), (signal.SIGKILL, KILLED_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
    LOG.warning("process %d, run while the domain was suspended, does not end", process.pid)
