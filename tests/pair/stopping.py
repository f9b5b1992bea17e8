"""Run `pymigrate`, and stop it (SIGSTOP) at one step of the hand-over, so that a fault can be made just there.

    python3 stopping.py 'before GRANTED' web1 hostb      as `pymigrate web1 hostb`
    python3 stopping.py 'after saying READY' receive     as `pymigrate receive`
    python3 stopping.py --ssh 'after READY' hostb 'pymigrate receive'
                                                         for `pymigrate --ssh`: the other side is stopped

A step is before or after an entry of the journal, or before or after saying a message. It stops once: the file
STOPPED, with its pid, is then there, and as long as it is, nothing stops again. Runs in dom0.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

STOPPED = Path("/run/pymigrate-stopped")


def stop() -> None:
    """Stop this process, all of its threads, until it is continued or killed."""
    pid = os.getpid()
    ours = STOPPED.with_suffix(f".{pid}")
    ours.write_text(str(pid))
    try:
        os.link(ours, STOPPED)  # it appears whole, or was there
    except FileExistsError:
        return
    finally:
        ours.unlink()
    os.kill(pid, signal.SIGSTOP)


def stop_at(step: str) -> None:
    """Let this process stop there."""
    from saverestore.migrate.channel import Channel
    from saverestore.migrate.journal import Journal, Journals

    when, _, what = step.partition(" ")

    def around(inner: Callable[..., Any], name_of: Callable[..., str]) -> Callable[..., Any]:
        def outer(*given: Any, **named: Any) -> Any:
            is_it = name_of(*given) == what
            if is_it and when == "before":
                stop()
            result = inner(*given, **named)
            if is_it and when == "after":
                stop()
            return result

        return outer

    changed: list[tuple[type, str, Callable[..., str]]] = [
        (Journal, "enter", lambda _self, state: str(state)),
        (Journals, "create", lambda _self, _head, state: str(state)),
        (Channel, "say", lambda _self, message: f"saying {message.type.name}"),
    ]
    for owner, name, name_of in changed:
        setattr(owner, name, around(getattr(owner, name), name_of))


def main(argv: list[str]) -> NoReturn:
    """Run what the words ask for, and end as it does."""
    if argv[0] == "--ssh":
        _, step, host, command = argv
        here = Path(__file__).resolve()
        words = [
            "python3",
            "-IS",
            str(here.with_name("quick.py")),
            str(here),
            step,
            *shlex.split(command)[1:],
        ]
        os.execvp("ssh", ["ssh", host, shlex.join(words)])
    from saverestore.cli.pymigrate import command
    from saverestore.process import ending

    step, *words = argv
    stop_at(step)
    ending.end(command.main(words))


if __name__ == "__main__":
    main(sys.argv[1:])
