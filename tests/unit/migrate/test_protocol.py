"""Messages as bytes: what they are, and what is no message."""

from __future__ import annotations

import json
import struct
import uuid
from pathlib import Path

import pytest
from migration_samples import CONVERSATION, ID, OTHERS

from saverestore.migrate import protocol
from saverestore.migrate.messages import (
    MAX_BODY_BYTES,
    Abort,
    Grant,
    Hello,
    MessageType,
    Offer,
    ProtocolError,
    Refused,
    for_people,
    unpack_body,
)

VECTOR = Path(__file__).parents[2] / "vectors" / "migration-v1.hex"


def packed(what) -> bytes:
    if isinstance(what, bytes):
        return protocol.pack_header(MessageType.DATA, len(what)) + what
    return protocol.pack(what)


def transcript() -> list[tuple[str, bytes]]:
    """Each line of the vector: who sends, and the bytes."""
    lines = [line.split("#")[0] for line in VECTOR.read_text().splitlines()]
    return [(who, bytes.fromhex(rest)) for who, _, rest in (line.partition(":") for line in lines) if rest]


def test_the_conversation_is_what_it_always_was_byte_for_byte():
    assert transcript() == [(who, packed(what)) for who, what in CONVERSATION + OTHERS]


def test_an_offer_whose_disks_are_not_described_whole_is_no_message():
    raw = protocol.pack(
        Offer(uuid.UUID(int=1), "{}", 1, disk_names=("xvda",), disk_bytes=(1, 2), disk_marks=("",))
    )
    with pytest.raises(ProtocolError, match="disks are not each a name, a length and a mark"):
        protocol.unpack(protocol.unpack_header(raw[:8]), raw[8:])


def test_the_golden_transcript_has_every_type_of_message():
    types = {protocol.unpack_header(raw[:8]).type for _, raw in transcript()}
    assert types == set(MessageType)


def test_the_golden_transcript_reads_back_as_the_messages_it_was_made_of():
    for (_, what), (_, raw) in zip(CONVERSATION + OTHERS, transcript(), strict=True):
        header = protocol.unpack_header(raw[:8])
        assert header.length_bytes == len(raw) - 8
        if not isinstance(what, bytes):
            assert protocol.unpack(header, raw[8:]) == what


def test_a_field_of_a_newer_version_is_ignored():
    body = json.dumps({"migration": str(ID), "colour": "blue", "codecs": ["zstd"]}).encode()
    assert unpack_body(MessageType.GRANT, body) == Grant(ID)


def test_hosts_that_do_not_know_of_several_connections_have_one():
    accepted = unpack_body(MessageType.ACCEPTED, json.dumps({"migration": str(ID)}).encode())
    assert (accepted.secret, accepted.port, accepted.answers) == ("", 0, False)
    offer = unpack_body(
        MessageType.OFFER, json.dumps({"migration": str(ID), "config": "", "memory_kib": 1}).encode()
    )
    assert (offer.links, offer.resume_for_s, offer.silence_s) == (0, 0, 0)


def test_a_message_of_an_unknown_type_is_refused():
    with pytest.raises(ProtocolError, match="unknown type 99"):
        protocol.unpack_header(struct.pack(">HHI", 0x504D, 99, 0))


def test_a_greeting_of_another_program_is_shown():
    with pytest.raises(ProtocolError, match="'Welcome '"):
        protocol.unpack_header(b"Welcome to host b"[:8])


@pytest.mark.parametrize(
    ("kind", "most"),
    [(MessageType.OFFER, MAX_BODY_BYTES), (MessageType.DATA, protocol.MAX_DATA_BYTES)],
)
def test_an_oversized_message_is_refused_by_its_head_before_anything_is_allocated(kind, most):
    assert protocol.unpack_header(protocol.pack_header(kind, most)).length_bytes == most
    with pytest.raises(ProtocolError, match="are the most"):
        protocol.unpack_header(protocol.pack_header(kind, most + 1))


def test_a_message_that_would_be_too_long_is_not_sent():
    with pytest.raises(ProtocolError, match="cannot be sent"):
        protocol.pack(Offer(ID, "x" * MAX_BODY_BYTES, 1))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 60000,
        b"\xff\xfe",
        b"{}",
        b'{"migration": 7}',
        b'{"migration": "7"}',
        b'{"migration": "111111112222433384445555555555551111"}',
        b'{"migration": "11111111-2222-4333-8444-555555555555", "reason": 1}',
        b'{"migration": "11111111-2222-4333-8444-555555555555", "reason": "\\ud800"}',
        b'{"migration": "11111111-2222-4333-8444-555555555555", "more": NaN}',
    ],
)
def test_a_body_that_is_not_what_its_type_says_is_refused(body):
    with pytest.raises(ProtocolError, match="ABORT"):
        unpack_body(MessageType.ABORT, body)


@pytest.mark.parametrize("number", ["true", "1.5", "-2", str(1 << 63), "1" * 5000])
def test_a_number_that_is_none_is_refused(number):
    with pytest.raises(ProtocolError, match="STREAM_END"):
        unpack_body(MessageType.STREAM_END, b'{"length_bytes": %s}' % number.encode())


@pytest.mark.parametrize("findings", [((), (), ()), (("a",), (3, 3), ("b",)), (("a", "b"), (3, 3), ("c",))])
def test_a_refusal_has_findings_each_with_a_name_an_exit_code_and_a_text(findings):
    with pytest.raises(ProtocolError, match="REFUSED"):
        unpack_body(MessageType.REFUSED, protocol.pack(Refused(ID, *findings))[8:])


def hello(lowest: int, highest: int) -> Hello:
    return Hello(lowest, highest, "aaaa", "b001", "pymigrate 9.9")


def test_versions_n_and_n_minus_1_understand_each_other():
    assert protocol.agreed_version(hello(1, 1), lowest=1, highest=2) == 1
    assert protocol.agreed_version(hello(1, 2), lowest=1, highest=1) == 1
    assert protocol.agreed_version(hello(1, 3), lowest=2, highest=4) == 3


@pytest.mark.parametrize("peer", [(3, 4), (0, 0)])
def test_versions_too_far_apart_are_refused_with_both_ranges(peer):
    with pytest.raises(
        protocol.VersionMismatch, match=f"9.9 speaks versions {peer[0]} to {peer[1]} .* 1 to 2"
    ):
        protocol.agreed_version(hello(*peer), lowest=1, highest=2)


def test_a_range_of_versions_the_wrong_way_round_is_refused():
    with pytest.raises(ProtocolError):
        protocol.agreed_version(hello(2, 1))


def test_what_a_peer_says_cannot_drive_a_terminal():
    assert for_people("no\x1b[2J\nroom\u202e") == "no [2J room "
    assert len(for_people("x" * 5000)) == 2001


def test_a_migrations_id_is_a_uuid():
    assert isinstance(unpack_body(MessageType.ABORT, protocol.pack(Abort(ID))[8:]).migration, uuid.UUID)
