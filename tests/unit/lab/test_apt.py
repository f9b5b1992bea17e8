from __future__ import annotations

from pathlib import Path

from xenlab import apt, shadow, sources
from xenlab.apt import Source

DEB822 = """\
Types: deb
# URIs: http://commented.example/debian
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security/
Suites: bookworm-security
Components: main

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main
"""


def test_mirror_is_read_from_deb822_sources() -> None:
    assert apt.parse_deb822(DEB822) == [
        Source("http://mirror.example/debian", ""),
        Source("http://mirror.example/debian", "-updates"),
        Source("http://mirror.example/debian-security", "-security"),
    ]


def test_mirror_is_read_from_one_line_sources_with_options_and_comments() -> None:
    text = """\
# deb http://no.example/debian bookworm main
deb [arch=amd64 trusted=yes] http://m.example/debian stable main contrib # x
"""
    assert apt.parse_list(text) == [Source("http://m.example/debian", "")]


def test_archives_that_are_not_debians_own_are_left_out() -> None:
    text = """\
deb http://a.example/debian cloud-sdk-bookworm main
deb http://docker.example/linux/debian bookworm stable
deb http://vendor.example/apt bookworm main
deb cdrom:[Debian]/ bookworm main
deb-src http://m.example/debian bookworm main
"""
    assert apt.parse_list(text) == []


def test_each_source_of_the_machine_is_found_once(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://mirror.example/debian bookworm main\n")
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/old.list.disabled").write_text("deb http://x.example/debian bookworm main\n")
    assert len(apt.machine_sources(tmp_path)) == 3


def test_source_is_derived_for_another_suite() -> None:
    security = Source("http://mirror.example/debian-security", "-security")
    assert security.line("trixie") == "deb http://mirror.example/debian-security trixie-security main"
    assert security.line("trixie", "deb-src").startswith("deb-src ")


def test_settings_for_fetching_are_taken_over_and_nothing_else() -> None:
    dump = """\
Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::Check-Date "false";
Acquire::Check-Date "false";
Acquire::Languages:: "none";
DPkg::Post-Invoke:: "true";
"""
    assert apt.parse_acquire(dump) == [
        'Acquire::http::Proxy "http://proxy.example:3128"',
        'Acquire::Check-Date "false"',
    ]


def test_missing_program_is_named_by_its_package() -> None:
    assert apt.missing_host_packages({"sh": "dash", "no-such-program-here": "thing"}) == ["thing"]


def test_source_version_of_a_package_is_the_explicit_one_when_there_is_one() -> None:
    status = (
        "Package: a\nSource: xen (4.17.5-1)\nVersion: 4.17.5-1+b1\n\nPackage: b\nSource: xen\nVersion: 2\n"
    )
    assert shadow.installed_version(status, "a") == "4.17.5-1"
    assert shadow.installed_version(status, "b") == "2"


def test_other_versions_of_the_same_release_are_offered_once_each() -> None:
    showsrc = "Package: xen\nVersion: 4.17.7-1\n\nVersion: 4.17.5-1\nVersion: 4.17.7-1\n\nVersion: 4.20.1-1\n"
    assert sources.versions(showsrc, "4.17") == ["4.17.7-1", "4.17.5-1"]


def test_a_series_of_source_packages_is_told_from_others_with_and_without_an_epoch() -> None:
    showsrc = "Version: 1:7.2+dfsg-7+deb12u18\n\nVersion: 1:7.20-1\n\nVersion: 1:10.0-2\n"
    assert sources.versions(showsrc, "7.2") == ["1:7.2+dfsg-7+deb12u18"]
