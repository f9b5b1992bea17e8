"""Certificates for the pair's hosts, of a CA that is made on the spot: what `pymigrate` needs for tls://.

certificates.give(pair.hosts)                each host's own, and who may connect: those hosts
certificates.put(pair.a, "stranger", made)   others, in a folder of that name
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from xenlab.pair import Host

FOLDER = "/etc/xen/pymigrate"
ADDRESSES = {"hosta": "10.0.9.1", "hostb": "10.0.9.2"}


class Authority:
    """A CA of ours."""

    def __init__(self, folder: Path) -> None:
        from saverestore.transport import certificates

        self._folder = folder
        certificates.make_ca(folder)

    def certify(self, label: str, *, days: int = 30) -> tuple[dict[str, bytes], str]:
        """Certify a host of the pair: files by name, and the line of a list of who may connect.

        Negative `days`: expired. Once for each host.
        """
        from saverestore.transport import certificates

        where, line = certificates.make_cert(self._folder, [label, ADDRESSES[label]], days=days)
        return {path.name: path.read_bytes() for path in where.iterdir()}, line


@contextmanager
def authority() -> Iterator[Authority]:
    """A CA, forgotten after this block."""
    with tempfile.TemporaryDirectory() as folder:
        yield Authority(Path(folder) / "ca")


def give(hosts: Sequence[Host]) -> None:
    """Give each of these hosts a certificate of one CA, and let it take connections of them all."""
    with authority() as ca:
        made = {host: ca.certify(host.label) for host in hosts}
    allowed = "".join(f"{line}\n" for _, line in made.values()).encode()
    for host, (files, _) in made.items():
        put(host, FOLDER, files | {"allowed": allowed})


def put(host: Host, folder: str, files: Mapping[str, bytes]) -> None:
    """Write files into a folder of a host's, which nobody else may read."""
    host.run(["mkdir", "-p", "-m", "700", folder])
    for name, data in files.items():
        host.run(f"umask 077; cat > {shlex.quote(f'{folder}/{name}')}", stdin=data)
