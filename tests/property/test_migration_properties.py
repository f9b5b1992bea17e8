"""The protocol and the journal read back what they wrote, and survive any bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import uuid

from hypothesis import given
from hypothesis import strategies as st

from saverestore.migrate import protocol, records
from saverestore.migrate.handover import Role, State
from saverestore.migrate.messages import CLASSES, MAX_NUMBER, MessageType, ProtocolError, unpack_body
from saverestore.migrate.records import Entry, Head

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
FIELDS = {
    "int": st.integers(-1, MAX_NUMBER),
    "str": TEXTS,
    "bool": st.booleans(),
    "uuid.UUID": st.uuids().map(lambda one: uuid.UUID(str(one))),
    "tuple[str, ...]": st.lists(TEXTS, max_size=4).map(tuple),
}
DISKS = st.lists(st.tuples(TEXTS, st.integers(-1, MAX_NUMBER), TEXTS), max_size=5)
DISK_FIELDS = ("disk_names", "disk_bytes", "disk_marks")
FINDINGS = st.lists(st.tuples(TEXTS, st.integers(0, 255), TEXTS), min_size=1, max_size=5)


@st.composite
def messages(draw):
    kind = draw(st.sampled_from(sorted(CLASSES)))
    if kind is MessageType.REFUSED:
        names, codes, texts = zip(*draw(FINDINGS), strict=True)
        return CLASSES[kind](uuid.UUID(int=draw(st.integers(0, 99))), names, codes, texts)
    one = CLASSES[kind]
    values = {}
    if kind is MessageType.OFFER:
        disks = draw(DISKS)
        values = {name: tuple(disk[at] for disk in disks) for at, name in enumerate(DISK_FIELDS)}
    free = [field for field in dataclasses.fields(one) if field.name not in values]
    return one(**values, **{field.name: draw(FIELDS[field.type]) for field in free})


@given(messages())
def test_a_message_reads_back_as_it_was(message):
    raw = protocol.pack(message)
    header = protocol.unpack_header(raw[: protocol.HEADER.size])
    assert header.length_bytes == len(raw) - protocol.HEADER.size
    assert protocol.unpack(header, raw[protocol.HEADER.size :]) == message


@given(st.binary(min_size=8, max_size=8), st.binary(max_size=300))
def test_any_bytes_are_a_message_or_an_error_of_the_protocol(head, body):
    with contextlib.suppress(ProtocolError):
        protocol.unpack(protocol.unpack_header(head), body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(sorted(CLASSES)),
    st.dictionaries(st.sampled_from(["migration", "config", "lowest", "facts", "texts", "names"]), JSON),
)
def test_any_json_is_a_message_or_an_error_of_the_protocol(kind, fields):
    with contextlib.suppress(ProtocolError):
        unpack_body(kind, json.dumps(fields).encode())


# ---- journals ----------------------------------------------------------------------------------------

HEADS = st.builds(
    Head,
    role=st.sampled_from(Role),
    migration=st.uuids(),
    name=TEXTS,
    uuid=st.uuids(),
    domid=st.integers(-1, 1 << 15),
    boot=TEXTS,
    peer=TEXTS,
    peer_journals=TEXTS,
    began=TEXTS,
    paused=st.booleans(),
)
ENTRIES = st.lists(
    st.builds(
        Entry,
        state=st.sampled_from(State),
        at=TEXTS,
        notes=st.dictionaries(TEXTS, TEXTS | st.integers(), max_size=3),
    ),
    min_size=1,
    max_size=4,
)


def packed(head, entries) -> bytes:
    lines = [records.pack_entry(number, entry) for number, entry in enumerate(entries, 1)]
    return records.pack_head(head) + b"".join(lines)


@given(HEADS, ENTRIES, st.integers(0, 100))
def test_a_journal_reads_back_as_it_was(head, entries, room):
    data = packed(head, entries)
    log = records.unpack(data + bytes(room), "x")
    assert (log.head, list(log.entries), log.length_bytes) == (head, entries, len(data))


@given(HEADS, ENTRIES, st.data())
def test_a_journal_that_is_cut_anywhere_has_all_lines_before_the_cut_or_is_damaged(head, entries, data):
    whole = packed(head, entries)
    cut = data.draw(st.integers(0, len(whole)))
    before = sum(len(packed(head, entries[:n])) <= cut for n in range(1, len(entries) + 1))
    try:
        log = records.unpack(whole[:cut].ljust(len(whole), b"\0"), "x")
    except records.JournalError:
        assert before == 0
    else:
        assert list(log.entries) == entries[:before]


@given(st.binary(max_size=500))
def test_any_bytes_are_a_journal_or_an_error_of_journals(data):
    with contextlib.suppress(records.JournalError):
        records.unpack(data, "x")
