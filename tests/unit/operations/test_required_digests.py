"""An image without a digest, where one is required: found before a domain is created."""

from __future__ import annotations

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import RestoringHost, image_in

from saverestore.engine.progress import Silence
from saverestore.errors import ErrorName, ImageError
from saverestore.operations.image_fit import contents_of
from saverestore.operations.requests import RestoreRequest
from saverestore.operations.restore import dry_run, restore_domain
from saverestore.testing.domain import MemoryDomain


def reading_host() -> RestoringHost:
    """One that looks through images beforehand, as a real one does."""
    host = RestoringHost()
    host.contents_of = contents_of
    return host


@pytest.fixture
def without_digest(tmp_path):
    """An image that says nothing of a digest."""
    from saverestore.image.convert import convert
    from saverestore.transport.newfile import NewFile
    from saverestore.transport.opening import open_image

    made = image_in(tmp_path, MemoryDomain.pvh(64), name="with.img")
    path = tmp_path / "without.img"
    with open_image(str(made)) as source, NewFile(path) as file:
        convert(
            source, file.sink, coding=None, plain=False, digest="none", may_continue=False, folder=tmp_path
        )
        file.sink.finish()
        file.publish()
    return path


def test_a_dry_run_names_a_missing_digest(without_digest):
    request = RestoreRequest(str(without_digest), require_digest=True)
    names = [error.name for error in dry_run(request, host=reading_host()).errors]
    assert names == [ErrorName.DIGEST_MISSING]


def test_no_domain_is_created_of_an_image_whose_required_digest_is_missing(without_digest):
    host = reading_host()
    with pytest.raises(
        ImageError, match=r"without\.img has no digest, and one is required; no changes were made"
    ):
        restore_domain(RestoreRequest(str(without_digest), require_digest=True), Silence(), host=host)
    assert host.created == 0


@pytest.mark.parametrize("form", ["plain", "zstd", "draft-b"])
def test_an_image_with_a_digest_has_it(tmp_path, form):
    path = image_in(tmp_path, MemoryDomain.pvh(64), form)
    assert dry_run(RestoreRequest(str(path), require_digest=True), host=reading_host()).errors == []


def test_damage_that_is_found_beforehand_says_that_no_domain_was_left(tmp_path):
    path = image_in(tmp_path, MemoryDomain.pvh(64))
    path.write_bytes(path.read_bytes()[:-40])
    host = reading_host()
    with pytest.raises(ImageError) as caught:
        restore_domain(RestoreRequest(str(path)), Silence(), host=host)
    assert host.created == 0
    assert caught.value.__notes__ == ["no domain was left"]
