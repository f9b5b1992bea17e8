"""What an administrator does every week, on real Xen: a store, all domains at once, copies, sockets, figures."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from xen_lab import Command, Guest, Pool, comes_true, domid_of, must, run, state_of

pytestmark = pytest.mark.slow

PV, PVH = ("pv", 1), ("pvh", 1)
both = pytest.mark.parametrize(
    "guest", [pytest.param(PV, id="pv"), pytest.param(PVH, id="pvh")], indirect=True
)
pvh_only = pytest.mark.parametrize("guest", [PVH], indirect=True, ids=["pvh"])


@both
def test_an_image_of_a_store_is_found_by_the_name_of_its_domain(guest: Guest, images: Path):
    for _ in range(2):
        must("pysave", "--live", "-c", guest.name, f"--store={images}")
    listed = json.loads(must("pyimage", "list", "--json", str(images)))
    assert [(one["domain"], one["whole"]) for one in listed] == [(guest.name, True)] * 2, listed
    must("pyimage", "prune", "--keep-last", "1", str(images))
    assert len(list(images.glob(f"{guest.name}@*.img"))) == 1
    before = guest.state()
    must("pysave", guest.name, f"--store={images}")
    assert state_of(guest.name) == "gone"
    must("pyrestore", "--store", f"{images}/{guest.name}")
    guest.goes_on(before)


@pytest.mark.parametrize("guest", [PV], indirect=True, ids=["pv"])
def test_all_domains_are_saved_and_restored_by_one_command_each(guest: Guest, pool: Pool, images: Path):
    for other in pool.guests.values():
        if other is not guest:
            other.destroy()
    second = Guest("second", "pvh", 1, 96)
    second.destroy()
    try:
        second.create(pages=512, rate=100)  # what fits in it
        guests = (guest, second)
        before = [one.state() for one in guests]
        saved = run("pysave", "--all", f"--store={images}")
        assert saved.returncode == 0, saved.stderr
        assert all(state_of(one.name) == "gone" for one in guests), saved.stderr
        restored = run("pyrestore", "--all", "--store", str(images))
        assert restored.returncode == 0, restored.stderr
        for one, since in zip(guests, before, strict=True):
            one.goes_on(since)
        assert json.loads(must("pyrestore", "--all", "--store", str(images), "--json")) == []
    finally:
        second.destroy()


@pvh_only
def test_a_copy_with_a_uuid_and_a_name_of_its_own_runs_beside_the_original(guest: Guest, images: Path):
    image = str(images / "a.img")
    must("pysave", "--live", "-c", guest.name, image)
    before = guest.state()
    refused = run("pyrestore", image)
    assert refused.returncode == 3, refused.stderr
    copy = Guest("copy", guest.kind, 1)
    copy.destroy()
    try:
        must("pyrestore", "--new-uuid", "--name", copy.name, image)
        assert domid_of(copy.name) != guest.domid
        comes_true("the copy prints a line", lambda: copy.log.exists() and b"LAB " in copy.log.read_bytes())
        copy.next_lines(2)
        copy.assert_clean()
        uuids = {must("xl", "domname", str(one.domid)).strip(): must("xenstore-read", f"/local/domain/{one.domid}/vm")
                 for one in (guest, copy)}  # fmt: skip
        assert len(set(uuids.values())) == 2, uuids
        guest.goes_on(before)
    finally:
        copy.destroy()


@pvh_only
def test_another_configuration_gives_the_name_and_what_xl_does_afterwards(guest: Guest, images: Path):
    before = guest.state()
    image, config = str(images / "a.img"), images / "other.cfg"
    must("pysave", guest.name, image)
    own = Path(f"/lab/{guest.name}.cfg").read_text()
    config.write_text(re.sub(r"(?m)^on_reboot.*\n", "", own) + '\non_reboot = "preserve"\n')
    must("pyrestore", "--config", str(config), image)
    guest.goes_on(before)
    kept = json.loads(must("xl", "list", "--long", guest.name))[0]["config"]
    assert kept["on_reboot"] == "preserve"
    smaller = images / "smaller.cfg"
    smaller.write_text(re.sub(r"(?m)^(memory|maxmem) = .*$", r"\1 = 64", own))
    must("pysave", guest.name, image, "--overwrite")
    refused = run("pyrestore", "--config", str(smaller), image)
    assert refused.returncode != 0, refused.stderr
    assert "max_memkb" in refused.stderr
    assert domid_of(guest.name) is None
    must("pyrestore", image)
    guest.goes_on(before)


@both
@pytest.mark.parametrize("at", ["tcp://127.0.0.1:8790", "unix:/run/pysave-test.sock"])
def test_a_domain_is_copied_through_a_socket(guest: Guest, at: str):
    before = guest.state()
    copy = Guest("copy", guest.kind, 1)
    copy.destroy()
    listening = Command("pyrestore", "--name", copy.name, "--new-uuid", at)
    what = "8790" if at.startswith("tcp") else "/run/pysave-test.sock"
    comes_true("it listens", lambda: what in run("ss", "-Hlntx").stdout)
    try:
        must("pysave", "-c", guest.name, at)
        assert listening.finish() == 0, listening.said
        assert state_of(copy.name) != "gone"
        comes_true("the copy prints a line", lambda: copy.log.exists() and b"LAB " in copy.log.read_bytes())
        copy.assert_clean(copy.next_lines(2))
        guest.goes_on(before)
    finally:
        copy.destroy()


@pytest.mark.parametrize("guest", [PV], indirect=True, ids=["pv"])
def test_a_domain_that_cannot_be_restored_at_the_other_end_of_a_socket_keeps_running(guest: Guest):
    """Here as it is still there itself, under the same name."""
    before, at = guest.state(), "unix:/run/pysave-test.sock"
    listening = Command("pyrestore", at)
    comes_true("it listens", lambda: "/run/pysave-test.sock" in run("ss", "-Hlntx").stdout)
    said = run("pysave", guest.name, at)
    assert said.returncode == 5, said.stderr
    assert f"{guest.name} (domain {guest.domid}) is running" in said.stderr
    assert listening.finish() != 0
    assert guest.name in listening.said
    guest.goes_on(before)


@pvh_only
def test_a_capped_save_is_no_faster_than_that(guest: Guest, images: Path):
    before = guest.state()
    told = json.loads(must("pysave", "--json", "--bwlimit", "4MiB/s", guest.name, str(images / "a.img")))
    assert told["bytes"]["stored"] > 20 << 20, told
    assert told["seconds"]["stream"] >= told["bytes"]["stored"] / (4 << 20) * 0.9, told
    must("pyrestore", str(images / "a.img"))
    guest.goes_on(before)


@pvh_only
def test_a_compressed_save_fits_where_its_pages_would_not_when_room_is_not_reckoned(
    guest: Guest, images: Path
):
    before = guest.state()
    small = images / "small"
    small.mkdir()
    must("mount", "-t", "tmpfs", "-o", f"size={guest.memory_mib // 2}m", "none", str(small))
    try:
        must("pysave", "--compress", "zstd", "--no-space-check", guest.name, str(small / "a.img"))
        must("pyrestore", str(small / "a.img"))
    finally:
        must("umount", str(small))
    guest.goes_on(before)


@both
def test_events_metrics_and_reports_tell_what_was_done(guest: Guest, images: Path):
    before = guest.state()
    image = str(images / "a.img")
    for command in (("pysave", "--live", guest.name, image), ("pyrestore", image)):
        events, metrics, report = (images / name for name in ("events", "m.prom", "r.json"))
        events.unlink(missing_ok=True)
        told = json.loads(
            must(command[0], "--json", "--events", str(events), "--metrics", str(metrics), "--report", str(report),
                 *command[1:])
        )  # fmt: skip
        lines = [json.loads(line) for line in events.read_text().splitlines()]
        assert lines[0]["event"], lines[0]
        assert len({line["event"] for line in lines}) > 2
        figures = metrics.read_text()
        assert re.search(rf"(?m)^{command[0]}_last_\w+(\{{.*\}})? [0-9.e+]+$", figures), figures
        saved = json.loads(report.read_text())
        assert saved["domain"] == told["domain"] == guest.name
        assert saved["result"] == told["result"]
    guest.goes_on(before)


@pvh_only
def test_a_reader_of_events_that_is_gone_does_not_delay_a_save(guest: Guest, images: Path):
    before = guest.state()
    pipe = images / "events"
    must("mkfifo", str(pipe))
    begun = time.monotonic()
    must(
        "bash", "-c", f"head -c 1 {pipe} > /dev/null & pysave --events {pipe} {guest.name} {images / 'a.img'}"
    )
    assert time.monotonic() - begun < 120
    must("pyrestore", str(images / "a.img"))
    guest.goes_on(before)
