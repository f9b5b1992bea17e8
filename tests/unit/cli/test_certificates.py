"""`pymigrate make-ca` and `make-cert`, as a user runs them: the files, and that they do for TLS."""

from __future__ import annotations

import subprocess
import sys

import pytest
from test_pymigrate import ROOT, run

from saverestore.errors import ExitCode
from saverestore.transport.tls import Credentials
from saverestore.transport.tls_peers import parse_allowed


@pytest.fixture
def ca(tmp_path):
    pytest.importorskip("cryptography")
    assert run("make-ca", f"{tmp_path}/ca").returncode == 0
    return tmp_path / "ca"


def test_a_ca_and_hosts_are_files_that_only_root_can_misuse(ca):
    done = run("make-cert", f"{ca}", "host2", "host2.example.org", "10.0.0.2")
    assert done.returncode == 0
    modes = {
        str(path.relative_to(ca)): path.stat().st_mode & 0o777
        for path in sorted(ca.rglob("*"))
        if path.is_file()
    }
    assert modes == {
        "ca-key.pem": 0o600,
        "ca.pem": 0o644,
        "host2/ca.pem": 0o644,
        "host2/cert.pem": 0o644,
        "host2/key.pem": 0o600,
    }
    host = Credentials(*(ca / "host2" / name for name in ("cert.pem", "key.pem", "ca.pem")))
    host.for_connecting()
    host.for_listening()


def test_what_is_printed_is_a_line_of_a_list(ca):
    import ssl

    printed = run("make-cert", f"{ca}", "host2").stdout
    (fingerprint,) = parse_allowed(printed, "list").fingerprints
    der = ssl.PEM_cert_to_DER_cert((ca / "host2" / "cert.pem").read_text())
    assert parse_allowed(printed, "list").has(der, [])
    assert printed == f"{fingerprint}  # host2\n"


def test_openssl_finds_the_certificates_in_order(ca):
    run("make-cert", f"{ca}", "host2", "10.0.0.2")
    for purpose, name in (("sslserver", "host2"), ("sslclient", "host2")):
        done = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-verify_hostname", name, "-CAfile",
             ca / "ca.pem", ca / "host2" / "cert.pem"],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        assert done.stdout.endswith(": OK\n"), done.stderr


def test_nothing_is_replaced(ca):
    before = (ca / "ca.pem").read_bytes()
    done = run("make-ca", f"{ca}")
    assert (done.returncode, (ca / "ca.pem").read_bytes()) == (ExitCode.USAGE, before)
    assert "exists already; no changes were made" in done.stderr
    assert run("make-cert", f"{ca}", "host2").returncode == 0
    assert run("make-cert", f"{ca}", "host2").returncode == ExitCode.USAGE


@pytest.mark.parametrize("names", [["../host2"], [".."], ["a b"], ["host2", "x/y"]])
def test_what_is_no_name_of_a_host_is_refused(ca, names):
    done = run("make-cert", f"{ca}", *names)
    assert done.returncode == ExitCode.USAGE
    assert "no name of a host" in done.stderr
    assert not any(path.is_dir() for path in ca.iterdir())


def test_a_folder_without_a_ca_is_named(tmp_path):
    pytest.importorskip("cryptography")
    done = run("make-cert", f"{tmp_path}", "host2")
    assert done.returncode == ExitCode.USAGE
    assert f"{tmp_path}/ca.pem: no such file: is there a CA in {tmp_path}?" in done.stderr


def test_without_the_package_it_says_which_one_is_missing(tmp_path):
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from saverestore.cli import pymigrate; sys.exit(pymigrate.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "make-ca", f"{tmp_path}/ca"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == ExitCode.USAGE
    assert "needs the Python package cryptography (Debian: python3-cryptography)" in done.stderr
    assert not (tmp_path / "ca").exists()
