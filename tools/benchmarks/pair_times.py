#!/usr/bin/python3
"""Run in the dom0s of two hosts by `tools/bench migrate`: one migration, timed from outside on both of them.

    arrive --port N                   at the destination. Prints "ready"; then, of the first domain that runs besides
                                      those that ran before, when that was
    leave --to ADDRESS --port N --name D --card C -- COMMAND
                                      at the source. Runs COMMAND, which migrates D, and prints when D was suspended,
                                      how long COMMAND took, and what the card C sent meanwhile

Both print JSON. Moments are in the destination's clock: the source asks for it before and after the migration,
and takes the fastest answers. `error_s`: half of the fastest round trip, and half of what the clocks drifted.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pyxc import Xen

POLL_S = 0.02
"""Of a second or more. Looking every 4 ms took a third of the emulated processor from whatever is measured."""

PATIENCE_S = 600.0
PROBES = 100
PROBE_S = 0.5
CLOCK = struct.Struct("<d")


def poll(what: str, found: Callable[[], bool]) -> float:
    """When it became true, by this host's clock."""
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        if time.monotonic() > deadline:
            raise SystemExit(f"not in {PATIENCE_S:.0f} s: {what}")
        time.sleep(POLL_S)
    return time.monotonic()


def serve_clock(port: int) -> None:
    """Answer each datagram with what time it is here, on a thread of its own."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("", port))

    def answer() -> None:
        while True:
            data, whence = server.recvfrom(CLOCK.size)
            server.sendto(data + CLOCK.pack(time.monotonic()), whence)

    threading.Thread(target=answer, daemon=True).start()


def clock_there(address: str, port: int) -> tuple[float, float]:
    """What to add to this host's clock to have the other's, and by how much that may be wrong; both in s."""
    best = (0.0, PROBE_S)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(PROBE_S)
        asking.connect((address, port))
        for _ in range(PROBES):
            before = time.monotonic()
            asking.send(CLOCK.pack(before))
            try:
                answer = asking.recv(2 * CLOCK.size)
            except TimeoutError:
                continue
            after = time.monotonic()
            if answer[: CLOCK.size] != CLOCK.pack(before):
                continue  # of a question that was given up
            there = CLOCK.unpack(answer[CLOCK.size :])[0]
            best = min(best, (there - (before + after) / 2, (after - before) / 2), key=lambda one: one[1])
    if best[1] >= PROBE_S:
        raise SystemExit(f"no clock answers at {address}:{port}")
    return best


def arrive(options: argparse.Namespace, xen: Xen) -> None:
    known = {one.domid for one in xen.domains()}
    serve_clock(options.port)
    print("ready", flush=True)

    def runs() -> bool:
        return any(one.domid not in known and not one.paused and not one.dying for one in xen.domains())

    threading.Thread(target=end_with_input, daemon=True).start()
    print(json.dumps({"runs_at": poll("a new domain runs", runs)}), flush=True)
    threading.Event().wait()  # the clock is asked for once more


def end_with_input() -> None:
    """When who has started this wants no more of it, be it that the other side has failed."""
    sys.stdin.read()
    os._exit(0)


def leave(options: argparse.Namespace, xen: Xen) -> None:
    domid = int(subprocess.check_output(["xl", "domid", options.name]))
    sent = Path(f"/sys/class/net/{options.card}/statistics/tx_bytes")
    before, error_before = clock_there(options.to, options.port)
    sent_before = int(sent.read_text())
    started = time.monotonic()
    process = subprocess.Popen(
        options.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    assert process.stderr is not None
    stream = process.stderr
    reader = threading.Thread(target=lambda: said.extend(stream), daemon=True)
    reader.start()

    def suspended() -> bool:
        return process.poll() is not None or any(
            one.domid == domid and one.suspended for one in xen.domains()
        )

    suspended_at = poll("the domain is suspended", suspended)
    code = process.wait(PATIENCE_S)
    whole_s = time.monotonic() - started
    if code != 0:
        raise SystemExit(f"{' '.join(options.command)}: exit {code}: {''.join(said)[-400:]}")
    sent_bytes = int(sent.read_text()) - sent_before
    after, error_after = clock_there(options.to, options.port)
    print(
        json.dumps(
            {
                "suspended_at": suspended_at + (before + after) / 2,
                "error_s": max(error_before, error_after) + abs(after - before) / 2,
                "whole_s": whole_s,
                "sent_bytes": sent_bytes,
            }
        ),
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("arrive", "leave"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", metavar="ADDRESS")
    parser.add_argument("--name")
    parser.add_argument("--card")
    words, command = sys.argv[1:], []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    options = parser.parse_args(words, argparse.Namespace(command=command))
    with Xen() as xen:
        (arrive if options.what == "arrive" else leave)(options, xen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
