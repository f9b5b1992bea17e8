"""Disks and MACs that a restored domain would have in common with one that runs."""

from __future__ import annotations

import json
import uuid
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.errors import DomainError, ErrorName, Remedy
from saverestore.toolstack import config, neighbours, userdata

MAC = "00:16:3e:00:00:01"


def config_of(number: int, *disks: dict, mac: str = MAC) -> config.GuestConfig:
    raw = {
        "c_info": {"type": "pvh", "name": f"web{number}", "uuid": str(uuid.UUID(int=number))},
        "b_info": {"max_memkb": 1024},
        "disks": list(disks),
        "nics": [{"devid": 0, "mac": mac}],
    }
    return config.parse(json.dumps(raw).encode())


def disk(path, **more) -> dict:
    return {"vdev": "xvda", "pdev_path": str(path), "readwrite": 1, **more}


class Hosting:
    """A host that runs one domain, number 3."""

    def __init__(self, tmp_path, monkeypatch) -> None:
        self._folder = tmp_path
        self.info = SimpleNamespace(
            domid=3, uuid=uuid.UUID(int=1), dying=False, shutdown=False, suspended=False
        )
        self.handles = SimpleNamespace(
            xen=SimpleNamespace(domains=lambda: [self.info]),
            store=SimpleNamespace(read=lambda _path: "web1"),
        )
        monkeypatch.setattr(userdata, "USERDATA_DIR", tmp_path)

    def runs(self, found: config.GuestConfig) -> None:
        userdata.userdata_path(3, self.info.uuid).write_bytes(found.to_json())

    def check(self, found: config.GuestConfig, *, force: bool = False) -> None:
        neighbours.check(self.handles, found, force=force)


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Hosting(tmp_path, monkeypatch)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "web.disk"
    path.write_bytes(bytes(4096))
    return path


def test_a_disk_that_a_running_domain_writes_to_is_refused_by_its_name(host, file):
    host.runs(config_of(1, disk(file)))
    with pytest.raises(DomainError, match=r"web2 would write to disks that other domains write to") as caught:
        host.check(config_of(2, disk(file), mac="00:16:3e:00:00:02"))
    assert f"disk xvda: {file} of web1 (domain 3)" in str(caught.value)
    assert caught.value.name is ErrorName.DISKS_IN_USE
    assert [one.remedy for one in caught.value.remedies] == [Remedy.GIVE_OTHER_DISKS]


def test_it_is_found_under_another_name(host, file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    host.runs(config_of(1, disk(file)))
    with pytest.raises(DomainError):
        host.check(config_of(2, disk(link)))


def test_a_target_of_a_script_is_compared_as_it_is_written(host):
    host.runs(config_of(1, disk("drbd-web", script="block-drbd")))
    with pytest.raises(DomainError):
        host.check(config_of(2, disk("drbd-web", script="block-drbd")))
    host.check(config_of(2, disk("drbd-other", script="block-drbd")))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"readwrite": 0}, {}),
        ({}, {"readwrite": 0}),
        ({"is_cdrom": 1}, {"is_cdrom": 1}),
        ({"backend_domid": 2}, {}),
    ],
    ids=str,
)
def test_what_one_of_them_only_reads_or_another_domain_serves_is_fine(host, file, one, other):
    host.runs(config_of(1, disk(file, **one)))
    host.check(config_of(2, disk(file, **other)))


def test_a_domain_with_disks_of_its_own_is_fine(host, file, tmp_path):
    (tmp_path / "copy.disk").write_bytes(bytes(4096))
    host.runs(config_of(1, disk(file)))
    host.check(config_of(2, disk(tmp_path / "copy.disk")))


@pytest.mark.parametrize("state", [{"dying": True}, {"shutdown": True}], ids=str)
def test_one_that_has_ended_writes_nothing(host, file, state):
    host.runs(config_of(1, disk(file)))
    vars(host.info).update(state)
    host.check(config_of(2, disk(file)))


def test_one_that_is_suspended_may_run_again(host, file):
    host.runs(config_of(1, disk(file)))
    vars(host.info).update(shutdown=True, suspended=True)
    with pytest.raises(DomainError):
        host.check(config_of(2, disk(file)))


def test_whoever_insists_is_warned(host, file, caplog):
    host.runs(config_of(1, disk(file)))
    host.check(config_of(2, disk(file)), force=True)
    assert "restored all the same, because of the request" in caplog.text


def test_a_mac_that_a_running_domain_has_is_a_warning(host, caplog):
    host.runs(config_of(1))
    host.check(config_of(2, mac=MAC.upper()))
    assert f"{MAC} (web1 (domain 3))" in caplog.text
    assert [one.remedy for one in caplog.records[0].remedies] == [Remedy.GIVE_OTHER_MAC]
    caplog.clear()
    host.check(config_of(2, mac="00:16:3e:00:00:02"))
    assert caplog.text == ""


def test_a_domain_that_libxl_does_not_know_is_passed_over(host, file):
    host.check(config_of(2, disk(file)))
