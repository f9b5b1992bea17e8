"""A CA and certificates of hosts, for tests and for sites that have none: files in PEM, made with `cryptography`.

DIR/ca.pem        the CA's certificate        DIR/HOST/cert.pem   a host's certificate, for both sides of TLS
DIR/ca-key.pem    its private key             DIR/HOST/key.pem    its private key
                                              DIR/HOST/ca.pem     the CA's certificate again
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saverestore.errors import ErrorName, TransportError, UsageError, name_of_errno
from saverestore.transport.tls_peers import NAME, fingerprint_of

CLOCK_ALLOWANCE = datetime.timedelta(hours=1)
"""Certificates are valid from a little before they are made: clocks of hosts differ."""

EARLIEST, LATEST = datetime.datetime(2000, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59)
"""Of one that is valid for ever (RFC 5280, 4.1.2.5)."""


def _cryptography() -> Any:
    """The parts of `cryptography` that are needed here. UsageError where it is not installed."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise UsageError(
            "making certificates needs the Python package cryptography (Debian: python3-cryptography)",
            name=ErrorName.PACKAGE_MISSING,
        ) from error
    return x509, hashes, serialization, ec


def make_ca(folder: Path, *, name: str = "CA of Xen hosts", days: int = 3650) -> Path:
    """Make a CA in a folder, which is made where it is missing: its certificate's file.

    UsageError when there is a CA already, and without `cryptography`; TransportError when it cannot be written.
    """
    x509, hashes, _, ec = _cryptography()
    _check_free(folder / "ca.pem", folder / "ca-key.pem")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(x509, name)
    usage = _usage(x509, key_cert_sign=True, crl_sign=True)
    cert = (
        _builder(x509, subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    with _reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "ca-key.pem", _pem_of_key(key), 0o600)
        _write(folder / "ca.pem", _pem_of(cert), 0o644)
    return folder / "ca.pem"


def make_cert(folder: Path, names: Sequence[str], *, days: int = 825) -> tuple[Path, str]:
    """Have the CA in this folder certify a host of these names or addresses: the folder of its files, and the
    certificate's fingerprint as a receiver's list has it. Negative `days` make one that has expired, for tests.

    Errors as `make_ca`; UsageError also when there is no CA, or the host has files already.
    """
    x509, hashes, serialization, ec = _cryptography()
    if not names or not all(NAME.fullmatch(name) for name in names):
        raise UsageError(f"no name of a host: {', '.join(names)}")
    ours = folder / names[0].replace(":", "_").replace("*", "_")
    _check_free(ours / "cert.pem", ours / "key.pem")
    with _reported(folder):
        pem, key_pem = (folder / "ca.pem").read_bytes(), (folder / "ca-key.pem").read_bytes()
    try:
        ca = x509.load_pem_x509_certificate(pem)
        ca_key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{folder}: ca.pem or ca-key.pem is damaged: {error}") from error
    key = ec.generate_private_key(ec.SECP256R1())
    both = x509.ExtendedKeyUsage(
        [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH, x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    )
    usage = _usage(x509, digital_signature=True)
    cert = (
        _builder(x509, _subject(x509, names[0][:64]), ca.subject, key.public_key(), days)
        .add_extension(
            x509.SubjectAlternativeName([_alternative(x509, name) for name in names]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(both, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    with _reported(ours):
        ours.mkdir(mode=0o700, exist_ok=True)
        _write(ours / "key.pem", _pem_of_key(key), 0o600)
        _write(ours / "cert.pem", _pem_of(cert), 0o644)
        _write(ours / "ca.pem", pem, 0o644, replace=True)
    return ours, fingerprint_of(cert.public_bytes(serialization.Encoding.DER))


def make_unsaved(name: str) -> tuple[bytes, bytes]:
    """A certificate for one purpose, and its key: DER and PEM, in memory only. It is signed by its own key.

    `name`: who it is, for messages; left out where it is no name of a host. It is valid for ever, whatever the
    clocks are: who accepts it knows it byte by byte. UsageError without `cryptography`.
    """
    x509, hashes, serialization, ec = _cryptography()
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName(name)] if NAME.fullmatch(name) else []
    subject = _subject(x509, "one migration")
    both = [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH, x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(EARLIEST)
        .not_valid_after(LATEST)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(x509, digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    cert = builder.sign(key, hashes.SHA256())
    return cert.public_bytes(serialization.Encoding.DER), _pem_of_key(key)


def _builder(x509: Any, subject: Any, issuer: Any, public_key: Any, days: int) -> Any:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0, tzinfo=None)
    begin, end = sorted((now - CLOCK_ALLOWANCE, now + datetime.timedelta(days=days)))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _subject(x509: Any, name: str) -> Any:
    return x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])


def _alternative(x509: Any, name: str) -> Any:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def _usage(x509: Any, **allowed: bool) -> Any:
    every = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in every})


def _pem_of(cert: Any) -> bytes:
    _, _, serialization, _ = _cryptography()
    pem: bytes = cert.public_bytes(serialization.Encoding.PEM)
    return pem


def _pem_of_key(key: Any) -> bytes:
    _, _, serialization, _ = _cryptography()
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem


def _check_free(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise UsageError(f"{path} exists already; no changes were made", name=ErrorName.FILE_EXISTS)


def _write(path: Path, data: bytes, mode: int, *, replace: bool = False) -> None:
    """A new file, which nobody else could ever open who may not read it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if replace else os.O_EXCL), mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """OSError as ours: UsageError for what is missing or exists, else TransportError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(
            f"{error.filename or folder}: no such file: is there a CA in {folder}?",
            name=ErrorName.FILE_NOT_FOUND,
        ) from error
    except OSError as error:
        raise TransportError(
            f"{error.filename or folder}: {error.strerror}", name=name_of_errno(error.errno)
        ) from error
