"""Another configuration, and a UUID of its own, for a domain that is restored beside the one that was saved."""

from __future__ import annotations

import os
import uuid

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import CONFIG, RestoringHost, image_in

from saverestore.engine.progress import RestoreReport, Silence
from saverestore.errors import DomainError, ErrorName, UsageError
from saverestore.operations.host import Host
from saverestore.operations.image_fit import Contents, contents_of
from saverestore.operations.requests import RestoreRequest
from saverestore.operations.restore import dry_run, restore_domain
from saverestore.stream import DomainType
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, empty_like
from saverestore.toolstack import config as configs
from saverestore.toolstack import disks
from saverestore.toolstack.given_config import GivenConfig

ORIGINAL = uuid.UUID("00000000-0000-4000-8000-000000000001")


class NotingHost(RestoringHost):
    """Notes of which configuration a domain is made."""

    def create(self, config):
        self.made_of = config
        return super().create(config)


@pytest.fixture
def domain():
    return MemoryDomain.pvh(64)


@pytest.fixture
def image(tmp_path, domain):
    return image_in(tmp_path, domain)


def restored(image, domain, **how) -> tuple[NotingHost, RestoreReport]:
    host, report = NotingHost(MemoryRestore(empty_like(domain))), RestoreReport()
    restore_domain(RestoreRequest(str(image), **how), Silence(), report, host=host)
    return host, report


def test_a_copy_has_a_uuid_of_its_own_and_the_report_says_which(image, domain):
    host, report = restored(image, domain, name="copy", new_uuid=True)
    assert host.made_of.name == "copy"
    assert host.made_of.uuid != ORIGINAL
    assert report.domain_uuid == str(host.made_of.uuid)
    again, _ = restored(image, domain, name="copy", new_uuid=True)
    assert again.made_of.uuid != host.made_of.uuid


def test_without_that_it_is_the_images(image, domain):
    assert restored(image, domain)[0].made_of.uuid == ORIGINAL


def test_another_configuration_is_what_it_is_made_of_and_a_name_goes_before_its_own(image, domain):
    given = GivenConfig("web.cfg", {"c_info": {"name": "other"}, "b_info": {"kernel": "/k"}})
    host, _ = restored(image, domain, config=given)
    assert (host.made_of.name, host.made_of.uuid) == ("other", ORIGINAL)
    assert host.made_of.raw["b_info"]["kernel"] == "/k"
    assert restored(image, domain, config=given, name="mine")[0].made_of.name == "mine"


def test_a_configuration_for_another_machine_makes_no_domain(image, domain):
    host = NotingHost(MemoryRestore(empty_like(domain)))
    given = GivenConfig("web.cfg", {"b_info": {"max_vcpus": 2}})
    with pytest.raises(UsageError, match="max_vcpus is 2, and the domain has 1"):
        restore_domain(RestoreRequest(str(image), config=given), Silence(), host=host)
    assert host.created == 0
    findings = dry_run(RestoreRequest(str(image), config=given), host=host)
    assert [one.name for one in findings.errors] == [ErrorName.CONFIGURATION_DIFFERS]


def test_disks_that_another_domain_writes_to_are_found_before_one_is_made(image, domain):
    host = NotingHost(MemoryRestore(empty_like(domain)))

    def refuse(_config, *, force):
        assert not force
        raise DomainError("in use", name=ErrorName.DISKS_IN_USE)

    host.check_neighbours = refuse
    with pytest.raises(DomainError, match="in use"):
        restore_domain(RestoreRequest(str(image), new_uuid=True), Silence(), host=host)
    assert host.created == 0


def test_disks_are_compared_as_the_saved_domain_had_them_and_only_those_that_are_used(
    tmp_path, monkeypatch, image
):
    monkeypatch.setattr(disks, "SETTLED_DIR", tmp_path / "settled")
    path = tmp_path / "web.disk"
    path.write_bytes(b"x")
    config = configs.parse((CONFIG % "pvh").encode()).replaced(domain_uuid=uuid.uuid4())
    config.raw["disks"] = [{"vdev": "xvda", "pdev_path": str(path), "readwrite": 1}]
    noted = disks.noted(config)
    os.utime(path, ns=(1, 1))
    disks.settle(ORIGINAL, noted)  # what served it wrote when it closed it
    contents = Contents(DomainType.X86_HVM, disks=noted, domain_uuid=contents_of(str(image)).domain_uuid)
    host = Host.__new__(Host)
    host.check_disks(config, contents, force=False)
    os.utime(path, ns=(2, 2))
    with pytest.raises(DomainError, match="not what they were"):
        host.check_disks(config, contents, force=False)
    config.raw["disks"][0]["pdev_path"] = str(tmp_path / "copy.disk")
    host.check_disks(config, contents, force=False)
