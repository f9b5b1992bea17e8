"""A command of the user's, run while the domain is suspended: to snapshot its disks as its memory has them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

from saverestore import interrupts
from saverestore.errors import DomainError, ErrorName
from saverestore.toolstack.domains import Domain

ENDING_S = 5.0
"""How long it may take to end after a signal, before it is killed: the domain stands still."""


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
    try:
        # A session of its own: Ctrl-C is ours to heed, and it is told once.
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
        )
    except OSError as error:
        raise DomainError(
            f"the command to be run while {domain} is suspended could not be started: {error}",
            name=ErrorName.COMMAND_FAILED,
        ) from error
    try:
        interrupts.waited_for(lambda seconds: _has_ended(process, seconds))
    except BaseException:
        _end(process)
        raise
    if process.returncode:
        how = f"exit {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise DomainError(
            f"the command to be run while {domain} was suspended failed ({how}): {command}",
            name=ErrorName.COMMAND_FAILED,
        )


def _has_ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started."""
    for number, seconds in ((signal.SIGTERM, ENDING_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
