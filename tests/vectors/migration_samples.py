"""A whole conversation of two hosts, as `migration-v1.hex` has it byte for byte."""

from __future__ import annotations

import uuid

from saverestore.migrate.messages import (
    Abort,
    Aborted,
    Accepted,
    Acknowledged,
    Ask,
    Busy,
    Grant,
    Hello,
    Join,
    Joined,
    KeepAlive,
    Lost,
    Message,
    Offer,
    Ready,
    Refused,
    Running,
    StreamEnd,
    Unknown,
)

ID = uuid.UUID("11111111-2222-4333-8444-555555555555")
CONFIG = '{"c_info":{"name":"web1"}}'

CONVERSATION: list[tuple[str, Message | bytes]] = [
    ("source", Hello(1, 1, "aaaa", "b001", "pymigrate 1.0", "a")),
    ("destination", Hello(1, 1, "bbbb", "b002", "pymigrate 1.0", "b")),
    (
        "source",
        Offer(
            ID,
            CONFIG,
            65536,
            "a",
            disk_names=("xvda",),
            disk_bytes=(4096,),
            disk_marks=("c0ffee",),
            links=4,
            resume_for_s=60,
            silence_s=10,
        ),
    ),
    (
        "destination",
        Accepted(
            ID, secret="5ec2e7", port=40000, codecs=("none", "zstd"), answers=True, clock_ms=1_796_000_000_000
        ),
    ),
    ("source", b"the image's bytes"),
    ("source", KeepAlive()),
    ("destination", Acknowledged(17)),
    ("source", StreamEnd(17)),
    ("destination", Ready(ID, domid=4)),
    ("source", Grant(ID)),
    ("destination", Running(ID, "running", domid=4, start_ms=12)),
]
"""That of a migration as it should be."""

OTHERS: list[tuple[str, Message | bytes]] = [
    ("destination", Refused(ID, ("host_lacks_memory",), (3,), ("b lacks memory",))),
    ("source", Abort(ID, "interrupted by Ctrl-C")),
    ("destination", Aborted(ID, "the stream is damaged", "image_damaged", 4)),
    ("destination", Ask(ID)),
    ("source", Lost(ID, "a was started anew")),
    ("source", Unknown(ID)),
    ("source", Busy(ID, "STREAMING")),
    ("source", Join(ID, "5ec2e7")),
    ("destination", Joined(ID)),
]
"""Every message that the conversation has not."""
