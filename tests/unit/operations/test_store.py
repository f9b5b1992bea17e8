"""A store of images: their names, finding one, keeping those that are needed."""

from __future__ import annotations

import datetime
import os
import threading

import pytest

from saverestore.errors import TransportError, UsageError
from saverestore.operations import store
from saverestore.operations.retention import Rule, kept
from saverestore.operations.store import entries, entry_of, find, in_use, new_path, remove, stem_of
from saverestore.transport.file_locks import try_lock
from saverestore.transport.newfile import NewFile

NOW = datetime.datetime(2026, 11, 29, 5, 58, 31, tzinfo=datetime.UTC)


def image(folder, name, when, number=1):
    """An empty file that is named as an image."""
    more = "" if number == 1 else f".{number}"
    path = folder / f"{stem_of(name)}@{when}{more}.img"
    path.touch()
    return path


def entry(when):
    return store.Entry(store.Path(f"web1@{when}"), "web1", when, 1)


def test_an_image_is_named_by_domain_and_time(tmp_path):
    assert new_path(tmp_path, "web1", NOW).name == "web1@2026-11-29T05-58-31Z.img"


def test_saves_in_one_second_have_different_names_and_an_order(tmp_path):
    made = []
    for _ in range(12):
        made.append(new_path(tmp_path, "web1", NOW))
        made[-1].touch()
    assert len(set(made)) == 12
    assert [one.path for one in entries(tmp_path)] == made
    assert find(f"{tmp_path}/web1").path == made[-1]


@pytest.mark.parametrize(
    "name",
    ["web1", "a b", "../../etc", "x@y", "x@2026-11-29", "100%", "müller", ".hidden", "-v", "a\nb", "é" * 200],
)
def test_any_name_of_a_domain_makes_a_file_in_the_store_that_is_found_by_it(tmp_path, name):
    path = new_path(tmp_path, name, NOW)
    path.touch()
    assert path.parent == tmp_path and path.resolve().parent == tmp_path.resolve()
    assert path.name.isprintable() and path.name[0] not in ".-"
    assert find(f"{tmp_path}/{name.replace('/', '%2F')}").path == path
    assert entry_of(path).stem == stem_of(name)


def test_different_names_stay_different():
    names = ["a b", "a%20b", "a_b", "A", "a", "a" * 300, "a" * 301, "a" * 160, "ab", "a@b"]
    assert len({stem_of(name) for name in names}) == len(names)
    assert all(len(os.fsencode(stem_of(name))) <= store.STEM_MAX for name in names)


@pytest.mark.parametrize(
    ("when", "hour"),
    [("", 9), ("@2026-11-29", 9), ("@2026-11-28", 8), ("@2026-11-29T05", 5), ("@2026-11-29T05:00:00Z", 5)],
)
def test_the_newest_image_is_found_or_that_of_a_time(tmp_path, when, hour):
    for day, at in ((28, 7), (28, 8), (29, 5), (29, 9)):
        image(tmp_path, "web1", f"2026-11-{day}T{at:02}-00-00Z")
    image(tmp_path, "web11", "2027-01-01T00-00-00Z")
    assert find(f"{tmp_path}/web1{when}").when.hour == hour


@pytest.mark.parametrize(("more", "number"), [("", 1), (".2", 2), (".12", 12)])
def test_the_whole_name_of_an_image_stands_for_that_one_only(tmp_path, more, number):
    """As 'pyimage list' prints it; others of the same second begin so, too."""
    for one in (1, 2, 12, 21):
        image(tmp_path, "web1", "2026-11-29T05-58-31Z", one)
    assert find(f"{tmp_path}/web1@2026-11-29T05-58-31Z{more}").number == number


def test_an_image_is_found_by_its_own_name_also_beside_a_domain_that_is_called_so(tmp_path):
    """A copy, perhaps, that was restored with --name."""
    wanted = image(tmp_path, "web1", "2026-11-29T05-58-31Z")
    other = image(tmp_path, "web1@2026-11-29T05-58-31Z", "2026-11-30T05-58-31Z")
    for path in (wanted, other):
        assert find(f"{tmp_path}/{entry_of(path).id}").path == path


def test_an_image_that_is_not_there_is_wrong_usage(tmp_path):
    image(tmp_path, "web1", "2026-11-29T05-58-31Z")
    for text in ("web2", "web1@2025", "web1@yesterday", "absent/web1"):
        with pytest.raises(UsageError):
            find(f"{tmp_path}/{text}")


def test_what_killed_saves_have_left_is_removed_by_the_next_save_whatever_its_time(tmp_path):
    """The name of an image has its time, so no later one has the same."""
    partial = "0123abcd.partial"
    left = [f".web1@2026-11-29T05-58-31Z.img.{partial}", f".gone@2026-11-28T05-58-31Z.2.img.{partial}"]
    others = [f".web1.img.{partial}", ".web1@2026-11-29T05-58-31Z.img.mine.partial", "web1.partial"]
    for name in (*left, *others):
        (tmp_path / name).touch()
    with NewFile(new_path(tmp_path, "busy", NOW)) as under_way:
        store.remove_abandoned(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {*others, under_way._temporary.name}


def test_one_that_cannot_be_looked_at_keeps_no_other_from_being_removed(tmp_path):
    """Here a link and a pipe without a reader; in any order of the folder."""
    for at in range(8):
        name = tmp_path / f".web1@2026-11-2{at}T05-58-31Z.img.0123abcd.partial"
        (name.touch, lambda name=name: name.symlink_to("x"), lambda name=name: os.mkfifo(name))[at % 3]()
    store.remove_abandoned(tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []
    assert len(list(tmp_path.iterdir())) == 5


def test_other_files_are_no_images_of_a_store(tmp_path):
    for name in (
        "web1.img",
        "web1@2026-13-40T05-58-31Z.img",
        ".web1@2026-11-29T05-58-31Z.img.ab.partial",
        "x.txt",
    ):
        (tmp_path / name).touch()
    assert entries(tmp_path) == []


def test_an_image_that_is_being_restored_is_not_removed(tmp_path):
    path = image(tmp_path, "web1", "2026-11-29T05-58-31Z")
    with in_use(str(path)), in_use(str(path)):
        assert not remove(path)
        assert path.exists()
    assert remove(path)
    assert not path.exists()


def test_an_image_of_which_it_turns_out_that_it_is_needed_is_not_removed(tmp_path):
    path = image(tmp_path, "web1", "2026-11-29T05-58-31Z")
    locked = []

    def is_needed(asked):
        with path.open("rb") as restoring:
            locked.append(try_lock(restoring.fileno(), shared=True))
        return asked == path

    assert not remove(path, is_needed)
    assert path.exists()
    assert locked == [False]  # who is restoring it has ended by then


def test_an_image_that_is_just_being_removed_is_not_restored(tmp_path):
    path = tmp_path / "web1@2026-11-29T05-58-31Z.img"
    path.touch()
    with path.open("rb+") as removing:
        assert try_lock(removing.fileno())

        def removed() -> None:
            path.unlink()
            removing.close()

        threading.Timer(0.1, removed).start()
        with pytest.raises(TransportError, match="was removed by somebody else"), in_use(str(path)):
            pass


def test_who_has_just_written_an_image_keeps_nobody_from_restoring_it(tmp_path, monkeypatch):
    monkeypatch.setattr("saverestore.operations.store.REMOVING_S", 0.05)
    path = tmp_path / "web1@2026-11-29T05-58-31Z.img"
    path.touch()
    with path.open("rb+") as writing:
        assert try_lock(writing.fileno())
        with in_use(str(path)):
            pass


def test_an_image_that_has_come_in_place_of_an_old_one_is_not_removed_for_that(tmp_path, monkeypatch):
    path = tmp_path / "web1@2026-11-29T05-58-31Z.img"
    path.write_text("old")
    new = tmp_path / "new"
    new.write_text("new")

    def replaced(descriptor: int) -> bool | None:
        new.rename(path)
        return try_lock(descriptor)

    monkeypatch.setattr(store, "try_lock", replaced)
    assert not remove(path)
    assert path.read_text() == "new"


def test_an_image_that_was_removed_meanwhile_is_not_restored(tmp_path, monkeypatch):
    path = image(tmp_path, "web1", "2026-11-29T05-58-31Z")

    def removed(descriptor: int, *, shared: bool) -> bool | None:
        path.unlink()
        return try_lock(descriptor, shared=shared)

    monkeypatch.setattr(store, "try_lock", removed)
    with pytest.raises(TransportError, match="was removed by somebody else"), in_use(str(path)):
        pass


# ---- what is kept ------------------------------------------------------------------------------------


def hours(*days_and_hours):
    return [
        entry(datetime.datetime(2026, 11, day, hour, tzinfo=datetime.UTC)) for day, hour in days_and_hours
    ]


def times(found):
    return {(one.when.day, one.when.hour): reason for one, reason in found.items()}


def test_the_newest_of_each_of_the_last_days_is_kept():
    images = hours((25, 1), (27, 1), (27, 23), (28, 4), (29, 1), (29, 2))
    found = times(kept(images, {Rule.DAILY: 3}, datetime.UTC))
    assert found == {(29, 2): "daily 1", (28, 4): "daily 2", (27, 23): "daily 3"}


def test_an_image_that_one_rule_keeps_does_not_count_for_the_next():
    images = hours((26, 1), (27, 1), (28, 1), (29, 1), (29, 2))
    found = times(kept(images, {Rule.LAST: 2, Rule.DAILY: 2}, datetime.UTC))
    assert found == {(29, 2): "last 1", (29, 1): "last 2", (28, 1): "daily 1", (27, 1): "daily 2"}


def test_weeks_begin_on_monday_and_nothing_is_kept_without_a_rule():
    images = hours((21, 1), (22, 23), (23, 0), (29, 1))
    assert times(kept(images, {Rule.WEEKLY: 9}, datetime.UTC)) == {(29, 1): "weekly 1", (22, 23): "weekly 2"}
    assert kept(images, {Rule.WEEKLY: 0}) == {}


def test_images_of_the_first_and_the_last_day_have_periods_in_any_zone():
    ends = [datetime.datetime.min, datetime.datetime(9999, 12, 31, 23, 59, 59)]
    images = [entry(end.replace(tzinfo=datetime.UTC)) for end in ends]
    for hours in (-12, 14):
        zone = datetime.timezone(datetime.timedelta(hours=hours))
        assert len(kept(images, dict.fromkeys(Rule, 1), zone)) == 2
