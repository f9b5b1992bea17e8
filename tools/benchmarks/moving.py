"""One migration of a domain in memory between two processes of ours, as pymigrate's two sides do it.

    forked: source       save    ─► links ═══ TCP or TLS ═══ links ─►  restore      forked: destination

All that a real one has between the two is there: messages, links, codings, the digest. Left out are journals, checks,
and what creates or starts a domain. Timed from when the destination has accepted until it has verified all.
"""

from __future__ import annotations

import multiprocessing
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from benchmarks.errors import BenchError
from saverestore.engine.progress import SaveReport
from saverestore.engine.restore import restore
from saverestore.engine.save import save
from saverestore.engine.settings import SaveSettings
from saverestore.guest.ports import Channels
from saverestore.migrate.channel import Channel
from saverestore.migrate.codecs import CodecOptions, MeasuredSink, coding_for, with_codecs
from saverestore.migrate.data import MessageSource
from saverestore.migrate.linking import IncomingLinks, door_of
from saverestore.migrate.messages import Accepted, Offer, Ready, StreamEnd
from saverestore.migrate.source_link import LinkOptions, LinkReport, SourceLink, open_link
from saverestore.stream.coding_choice import Coded
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.reader import LibxcReader
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like
from saverestore.transport import tls_peers
from saverestore.transport.connection import SocketConnection
from saverestore.transport.link_rate import LinkRate
from saverestore.transport.sockets import Address, connect, notice_dead_links
from saverestore.transport.tls import Credentials
from saverestore.transport.tls_peers import Allowed, parse_allowed

ID = uuid.UUID(int=0x22)
PATIENCE_S = 1200.0
CHUNK_PAGES = 16384
LOOPBACK = "127.0.0.1"
CHANNELS = Channels(store_port=1, console_port=2)


@dataclass(frozen=True)
class How:
    """`folder`: with certificates, as pymigrate has them; None: plain TCP. `workers`: of the source.

    `enter`: has the process of an end, 0 or 1, use its network; `host`: the destination's address there.
    """

    codecs: CodecOptions = field(default_factory=CodecOptions)
    link: LinkOptions = field(default_factory=LinkOptions)
    folder: Path | None = None
    workers: int = 2
    host: str = LOOPBACK
    enter: Callable[[int], None] = lambda _end: None

    @property
    def credentials(self) -> Credentials | None:
        """Of both sides."""
        if self.folder is None:
            return None
        return Credentials(self.folder / "cert.pem", self.folder / "key.pem", self.folder / "ca.pem")

    @property
    def allowed(self) -> Allowed:
        """Who may come: the one whose certificates these are."""
        return parse_allowed(f"{LOOPBACK}\n", "the bench")


@dataclass(frozen=True)
class Moved:
    """What one came to. `cpu_s`: of both processes; `sent_bytes`: of the stream, on whatever links."""

    seconds: float
    cpu_s: float
    sent_bytes: int
    coded: dict[str, Coded]
    link: LinkReport


def move(domain: MemoryDomain, how: How, meanwhile: Callable[[], None] = lambda: None) -> Moved:
    """Migrate it: it is as it was afterwards. BenchError when that fails, or what arrives is something else.

    `meanwhile` is called here as soon as pages are on their way.
    """
    context = multiprocessing.get_context("fork")
    processes: list[Any] = []
    pipes: list[Any] = []
    try:
        for work in (_destination, _source):
            ours, theirs = context.Pipe()
            if processes:
                port = _heard(pipes[0])
                process = context.Process(target=_work, args=(work, theirs, domain, how, port))
            else:
                process = context.Process(target=_work, args=(work, theirs, domain, how, 0))
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        _heard(pipes[1])  # it has begun
        meanwhile()
        seconds, cpu_s, sent_bytes, coded, link = _heard(pipes[1])
        digest, cpu_there_s = _heard(pipes[0])
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join(20)
            if process.exitcode is None:
                process.kill()
                process.join()
    if digest != digest_of(domain):
        raise BenchError("what has arrived is not what was sent: do not trust any figure")
    return Moved(seconds, cpu_s + cpu_there_s, sent_bytes, coded, link)


def _heard(pipe: Any) -> Any:
    if not pipe.poll(PATIENCE_S):
        raise BenchError(f"a migration has not ended after {PATIENCE_S:g} s")
    try:
        answer = pipe.recv()
    except EOFError as error:
        raise BenchError("a process of a migration has ended unexpectedly") from error
    if isinstance(answer, BaseException):
        raise BenchError(f"a migration failed: {answer}") from answer
    return answer


def _work(work: Callable[..., None], pipe: Any, domain: MemoryDomain, how: How, port: int) -> None:
    try:
        work(pipe, domain, how, port)
    except BaseException as error:
        pipe.send(BenchError(f"{type(error).__name__}: {error}"))


def _destination(pipe: Any, domain: MemoryDomain, how: How, _port: int) -> None:
    how.enter(1)
    target = ready_for(domain)
    server = socket.create_server((how.host, 0))
    notice_dead_links(server, how.link.silence_s)
    pipe.send(server.getsockname()[1])
    tls = None
    if how.credentials is None:
        made, whence = server.accept()
        connection = SocketConnection(made, str(whence[0]), timeout_s=how.link.silence_s)
    else:
        tls = (how.credentials, how.allowed)
        found = tls_peers.first_admitted(server, *tls, timeout_s=how.link.silence_s)
        assert found is not None
        connection = found
    cpu_before = time.process_time()
    with Channel(connection) as channel:
        channel.greet("there", "boot", "there")
        offer = channel.hear(Offer)
        assert isinstance(offer, Offer)
        with IncomingLinks(channel, offer, door_of(tls)) as links:
            channel.say(with_codecs(links.completed(Accepted(offer.migration))))
            links.begin()
            source = MessageSource(channel)
            restore(LibxcReader(source, require_digest=True), source, MemoryRestore(target), CHANNELS)
            if not source.at_end():
                raise BenchError("something follows the image")
            links.wait_no_more()
            channel.say(Ready(offer.migration))
            cpu_s = time.process_time() - cpu_before
    pipe.send((digest_of(target), cpu_s))


def ready_for(domain: MemoryDomain) -> MemoryDomain:
    """An empty domain with all memory that this one needs.

    Touched already, as QEMU's is (`prealloc`): the host of a virtual machine may take seconds to give it memory, or
    none, and either would count as the link's.
    """
    target = empty_like(domain)
    target.frames[:, 0] |= 0
    return target


def _source(pipe: Any, domain: MemoryDomain, how: How, port: int) -> None:
    how.enter(0)
    kind = "tcp" if how.credentials is None else "tls"
    address = Address(f"{kind}://{how.host}:{port}", kind, how.host, port, tls=how.credentials)
    report, save_report = LinkReport(), SaveReport()
    with Channel(connect(address, timeout_s=how.link.silence_s)) as channel:
        channel.greet("here", "boot", "here")
        link = SourceLink(channel, address, how.link, report, open_link)
        channel.say(link.offering(Offer(ID, "{}", 1)))
        accepted = channel.hear(Accepted)
        assert isinstance(accepted, Accepted)
        began, cpu_before = time.monotonic(), time.process_time()
        link.begin(accepted, lambda: True)
        channel.listen()
        rate = LinkRate(lambda: channel.connection.delivery_rate())
        sink = MeasuredSink(link.sink, rate)
        pipe.send("begun")
        coding = coding_for(how.codecs, accepted.codecs, "there", rate)
        save(MemorySave(domain), sink, _settings(how, coding), report=save_report)
        channel.say(StreamEnd(sink.offset))
        channel.hear(Ready)
        seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu_before
        link.close()
        pipe.send((seconds, cpu_s, sink.offset, save_report.coded, report))


def _settings(how: How, coding: Any) -> SaveSettings:
    """As a migration saves, but in one round: nobody writes to the domain."""
    return SaveSettings(
        digest=DigestAlgorithm.XXH3,
        workers=how.workers,
        coding=coding,
        checksums=False,
        xor_cache_bytes=how.codecs.xor_cache_bytes,
    )


def digest_of(domain: MemoryDomain) -> str:
    """Of all of a domain's pages that mean nothing to anybody."""
    digest = xxhash.xxh3_128()
    pfns = domain.data_pfns()
    for begin in range(0, len(pfns), CHUNK_PAGES):
        digest.update(np.ascontiguousarray(domain.read(pfns[begin : begin + CHUNK_PAGES])).data)
    return digest.hexdigest()
