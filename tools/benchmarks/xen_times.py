#!/usr/bin/python3
"""Run in dom0 by `tools/bench xen`: one guest, saved and restored in turns by us and by xl, timed from outside.

Prints one JSON object for each measurement: {what, tool, pair, stream_s, whole_s, stream_bytes}, or a downtime.

    save      both write into the same pipe. stream_s: first byte to last byte
    restore   both read the same image from a pipe. stream_s: first byte taken to the new domain running
    live      both migrate to this host; downtime_s: from the first moment at which the old domain is suspended to
              the first at which the new one runs. Or -c: until the same domain is not suspended any more
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from pyxc import Xen

PIPE_BYTES = 1 << 20
POLL_S = 0.004
RESTORE_POLL_S = 0.02
"""Of what takes seconds: to look each 4 ms takes up to a quarter of a processor, which a restore would have had."""
PATIENCE_S = 900.0
ATTEMPTS = 6

T = TypeVar("T")

HELPER = "/usr/local/bin/pysave-helper"
SAVE = {"ours": ["pysave", "-q", "-c", "{name}", "-"], "xl": ["xl", "save", "-c", "{name}", "/dev/stdout"]}
RESTORE = {"ours": ["pyrestore", "-q", "-"], "xl": ["xl", "restore", "/dev/stdin"]}
MIGRATE = ["xl", "migrate", "-s", "", "{name}", "xl migrate-receive"]


def must(*argv: str, **more: object) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE_S, **more)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
    return str(done.stdout)


def print_json(**values: object) -> None:
    print(json.dumps(values), flush=True)


def filled(argv: Sequence[str], name: str) -> list[str]:
    return [word.format(name=name) for word in argv]


def wide_pipe() -> tuple[int, int]:
    """A pipe's two ends, for the caller to close."""
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return read_fd, write_fd


def time_save(tool: str, name: str) -> dict[str, float]:
    """Nothing is copied on the reading side: pages are spliced into /dev/null."""
    read_fd, write_fd = wide_pipe()
    with os.fdopen(read_fd, "rb", 0), Path(os.devnull).open("wb") as nothing:
        started = time.monotonic()
        process = subprocess.Popen(
            filled(SAVE[tool], name), stdout=write_fd, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        os.close(write_fd)
        first = last = 0.0
        total = 0
        while True:
            select.select([read_fd], [], [])
            first = first or time.monotonic()
            if not (count := os.splice(read_fd, nothing.fileno(), PIPE_BYTES)):
                break
            last = time.monotonic()
            total += count
        finished(process, SAVE[tool])
        return {"stream_s": last - first, "whole_s": time.monotonic() - started, "stream_bytes": total}


def finished(process: subprocess.Popen[bytes], argv: Sequence[str]) -> None:
    _, said = process.communicate(timeout=PATIENCE_S)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(argv)}: exit {process.returncode}: {said.decode().strip()}")


def poll(what: str, found: Callable[[], bool], every_s: float = POLL_S) -> float:
    """When it became true."""
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        if time.monotonic() > deadline:
            raise SystemExit(f"not in {PATIENCE_S:.0f} s: {what}")
        time.sleep(every_s)
    return time.monotonic()


def running_besides(xen: Xen, known: set[int]) -> bool:
    return any(one.domid not in known and not one.paused and not one.dying for one in xen.domains())


def time_restore(tool: str, image: Path, xen: Xen) -> dict[str, float]:
    """The image is in memory, and spliced into the pipe as fast as it is taken."""
    known = {one.domid for one in xen.domains()}
    taken: list[float] = []

    def feed(write_fd: int) -> None:
        with image.open("rb") as file, contextlib.suppress(BrokenPipeError):
            os.splice(file.fileno(), write_fd, PIPE_BYTES)  # full now: until somebody reads
            select.select([], [write_fd], [])
            taken.append(time.monotonic())
            while os.splice(file.fileno(), write_fd, PIPE_BYTES):
                pass
        os.close(write_fd)

    read_fd, write_fd = wide_pipe()
    feeder = threading.Thread(target=feed, args=(write_fd,), daemon=True)
    feeder.start()
    started = time.monotonic()
    process = subprocess.Popen(
        RESTORE[tool], stdin=read_fd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    os.close(read_fd)
    runs = poll(
        f"{tool}: the restored domain runs",
        lambda: process.poll() not in (None, 0) or running_besides(xen, known),
        RESTORE_POLL_S,
    )
    finished(process, RESTORE[tool])
    whole_s = time.monotonic() - started
    feeder.join()
    return {"stream_s": runs - taken[0], "whole_s": whole_s, "stream_bytes": image.stat().st_size}


def time_migration(tool: str, name: str, xen: Xen) -> dict[str, float]:
    known = {one.domid for one in xen.domains()}
    domid = int(must("xl", "domid", name))
    environment = {**os.environ, **({"LIBXL_SAVE_HELPER": HELPER} if tool == "ours" else {})}
    started = time.monotonic()
    process = subprocess.Popen(
        filled(MIGRATE, name),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    said = _drained(process)
    suspended = poll(f"{tool}: suspended", lambda: process.poll() is not None or _is_suspended(xen, domid))
    runs = poll(
        f"{tool}: the new one runs", lambda: process.poll() is not None or running_besides(xen, known)
    )
    process.wait(timeout=PATIENCE_S)
    if process.returncode != 0:
        raise SystemExit(f"migration by {tool}: exit {process.returncode}: {''.join(said)[-400:]}")
    return {"downtime_s": runs - suspended, "whole_s": time.monotonic() - started}


def _drained(process: subprocess.Popen[bytes]) -> list[str]:
    """What it says, read as it comes, so that it never waits for us."""
    said: list[str] = []
    assert process.stderr is not None
    stream = process.stderr
    threading.Thread(target=lambda: said.extend(line.decode() for line in stream), daemon=True).start()
    return said


def _is_suspended(xen: Xen, domid: int) -> bool:
    return any(one.domid == domid and one.suspended for one in xen.domains())


def create(name: str, options: argparse.Namespace, rate: int) -> None:
    # Without its ymm registers: libxc loses them when it resumes a domain.
    must(
        "lab-guest", "create", name, "--kind", options.kind, "--memory", str(options.memory),
        "--pages", str(options.pages), "--rate", str(rate), "--extra", "lab.ymm=0",
    )  # fmt: skip
    must("lab-guest", "wait", name, "--counter-above", "15", "--timeout", "300")


def names(xen: Xen) -> set[str]:
    """Of the domains that xl would list, and that run."""
    dead = {one.domid for one in xen.domains() if one.dying or one.shutdown}
    listed = must("xl", "list").splitlines()[1:]
    return {line.split()[0] for line in listed if int(line.split()[1]) not in dead}


def destroy(name: str) -> None:
    subprocess.run(["xl", "destroy", name], capture_output=True, check=False)


def turns(pairs: int) -> Iterator[tuple[int, str]]:
    """Who begins changes from pair to pair."""
    for pair in range(pairs):
        for tool in ("ours", "xl") if pair % 2 == 0 else ("xl", "ours"):
            yield pair, tool


def anew(name: str, work: Callable[[], T]) -> T:
    """What comes of `work`, which is tried again without the domain it had: one may die of the emulated processor."""
    for _ in range(ATTEMPTS - 1):
        try:
            return work()
        except SystemExit as failed:
            print(f"tried again, with a new domain: {failed}", file=sys.stderr)
            destroy(name)
            destroy(f"{name}--incoming")  # what a receiver that crashed leaves behind
    return work()


def saves_and_restores(options: argparse.Namespace, xen: Xen) -> None:
    name = f"bench-{options.kind}"
    image = Path("/dev/shm/bench.img")

    def save(tool: str) -> dict[str, float]:
        if name not in names(xen):
            create(name, options, rate=100)
        return time_save(tool, name)

    def keep() -> None:
        create(name, options, rate=100)
        must("pysave", "-q", "-c", "--overwrite", "--plain", name, str(image))

    def restore(tool: str) -> dict[str, float]:
        destroy(name)
        return time_restore(tool, image, xen)

    destroy(name)
    try:
        # First, while the domain is there for sure; and of no use before the restores.
        anew(name, keep)
        for what, time_it in (("save", save), ("restore", restore)):
            for pair, tool in turns(options.pairs):
                print_json(what=what, tool=tool, pair=pair, **anew(name, partial(time_it, tool)))
    finally:
        destroy(name)
        image.unlink(missing_ok=True)


def migrations(options: argparse.Namespace, xen: Xen) -> None:
    name = f"bench-{options.kind}"
    for rate in options.rates:

        def migrate(tool: str, rate: int = rate) -> dict[str, float]:
            if name not in names(xen):
                create(name, options, rate=rate)
            return time_migration(tool, name, xen)

        destroy(name)
        try:
            for pair, tool in turns(options.pairs):
                print_json(what="live", rate=rate, tool=tool, pair=pair, **anew(name, partial(migrate, tool)))
        finally:
            destroy(name)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("saves", "live"))
    parser.add_argument("--kind", choices=("pv", "pvh"), required=True)
    parser.add_argument("--memory", type=int, default=256, metavar="MIB")
    parser.add_argument("--pages", type=int, default=2048, help="pages that the guest keeps rewriting")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--rates", type=int, nargs="*", default=[200, 1000, 4000], help="pages a second; live"
    )
    options = parser.parse_args()
    with Xen() as xen:
        (saves_and_restores if options.what == "saves" else migrations)(options, xen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
