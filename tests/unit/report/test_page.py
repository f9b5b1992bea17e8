"""The page of a report as a person sees it: words, units, nothing cut off, in a real browser where there is one."""

from __future__ import annotations

import datetime
import html
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest

from saverestore.engine.downtime import Downtime
from saverestore.engine.policy import Limits, RoundStats, decide
from saverestore.engine.progress import DomainState, RestoreReport, SaveReport
from saverestore.errors import ErrorName
from saverestore.migrate.source_link import LinkReport
from saverestore.report import svg
from saverestore.report.facts import Facts, Outcome, facts_of_restore, facts_of_save
from saverestore.report.page import options_of, page_of

BEGAN = datetime.datetime(2026, 11, 30, 3, 0, 12, tzinfo=datetime.UTC)
LONG = "a-name-that-is-as-long-as-names-of-files-may-be-" * 5
OPTIONS = {
    "live": True,
    "bwlimit": 209715200,
    "compress": 3,
    "max_time": 20.0,
    "codec": None,
    "downtime_s": 0.2,
}


def rounds_of(count: int) -> list[RoundStats]:
    """Rounds that shrink as those of a quiet domain do, and the last."""
    sent = [max(200, 1048576 // 12**i) for i in range(count)]
    return [
        *(
            RoundStats(i, sent[i], sent[i] // 12, sent[i] / 50000, sent_bytes=sent[i] << 12)
            for i in range(count)
        ),
        RoundStats(count, 131, None, 0.02, final=True),
    ]


def saved(rounds: list[RoundStats], *, downtime: Downtime | None = None) -> SaveReport:
    report = SaveReport(dirty_source="log", limits=Limits(downtime_s=0.2), rounds=rounds)
    report.verdict = decide(rounds[:-1], report.limits)
    report.downtime = downtime or Downtime(0.12, 0.02, 0.045, 0.03, 0.215)
    report.stream_bytes, report.pages_sent, report.sync_s = 4692099072, 1144384, 0.21
    report.total_s, report.domain_state = 20.4, DomainState.RUNNING
    return report


def save_facts(*, nr_rounds: int = 5, **more: object) -> Facts:
    outcome = Outcome("pysave", "web1", "web1.img", BEGAN, 20.6, OPTIONS)
    return facts_of_save(replace(outcome, **more), saved(rounds_of(nr_rounds)))


def migration_facts(link: LinkReport | None = None, **more: object) -> Facts:
    options = {"paused": False, "domains": ["web1"], "host": "host2", "settle_for": 60.0, "xor_cache": 48}
    outcome = replace(Outcome("pymigrate", "web1", None, BEGAN, 72.6, options), **more)
    report = saved([*rounds_of(3)])
    report.rounds[1] = replace(report.rounds[1], broken_s=22.5)
    report.domain_state = DomainState.DESTROYED if outcome.result == "done" else DomainState.RUNNING
    return facts_of_save(outcome, report) | {"link": asdict(link or LinkReport(over="ssh"))}


def restore_facts(**more: object) -> Facts:
    outcome = Outcome("pyrestore", "web1", "-", BEGAN, 5.4, {"paused": False, "watch": True})
    report = RestoreReport(
        stream_bytes=270 << 20, pages=65536, records=91, create_s=1.6, memory_s=3.1, start_s=0.004
    )
    return facts_of_restore(replace(outcome, **more), report)


def text_of(page: str) -> str:
    """What is read on a page, with a space for each tag."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


# ---- words -------------------------------------------------------------------------------------------


def test_a_migration_that_is_done_says_where_the_domain_is_now():
    text = text_of(page_of(migration_facts()))
    assert "pymigrate: web1 to host2" in text
    assert "done; the domain is running at host2" in text
    assert "destroyed" not in text
    assert "to sync the disk" not in text


def test_a_migration_that_failed_says_the_state_here():
    text = text_of(page_of(migration_facts(exit_code=3, error="no answer")))
    assert "failed; the domain is running no answer (exit code 3)" in text


def test_a_migration_says_what_it_went_over_and_that_it_broke():
    text = text_of(page_of(migration_facts(LinkReport(4, 1, 22.5, 128, "tls", "", "TLS_AES_256_GCM_SHA384"))))
    assert "TLS (TLS_AES_256_GCM_SHA384), 4 connections; broken for 22.5 s, 128 pages sent again" in text
    assert "link broken" in text
    assert "link ssh, 1 connection live" in text_of(page_of(migration_facts()))
    text = text_of(page_of(migration_facts(LinkReport(over="ssh", fallback="port 4711 cannot be reached"))))
    assert "ssh, 1 connection, because port 4711 cannot be reached" in text


def test_an_image_from_a_pipe_is_called_that():
    failed = restore_facts(domain=None, exit_code=4, error="not an image")
    assert text_of(page_of(failed)).startswith("pyrestore: a pipe")


def test_options_have_units_and_no_words_of_python():
    assert options_of(save_facts()) == [
        ("live", "yes"),
        ("bwlimit", "200 MiB/s"),
        ("compress", "zstd, level 3"),
        ("max time", "20 s"),
        ("downtime", "0.2 s"),
    ]
    assert options_of(migration_facts()) == [
        ("paused", "no"),
        ("settle for", "60 s"),
        ("xor cache", "48 MiB"),
    ]
    for facts in (save_facts(), migration_facts(), restore_facts()):
        assert not re.search(r"\b(None|True|False|inf|nan)\b|\['", text_of(page_of(facts)))


def test_the_time_is_one_that_people_read():
    assert "2026-11-30 03:00:12 UTC" in text_of(page_of(save_facts()))


def test_each_phase_has_its_figure_however_short_it_was():
    text = text_of(page_of(restore_facts()))
    assert "create the domain 1.600 s memory 3.100 s processors, rings 0.000 s start 0.004 s" in text
    assert "other 0.696 s in all 5.400 s" in text  # and the rest, up to what the command printed


def test_what_was_not_predicted_is_not_called_real():
    assert "phase predicted real" in text_of(page_of(save_facts()))
    assert "phase time suspend 0.120 s" in text_of(page_of(save_facts() | {"decision": None}))


def test_a_column_without_any_figure_is_left_out():
    facts = save_facts()
    assert "link broken" not in text_of(page_of(facts))
    for one in facts["rounds"]:
        one["dirty_pages"] = None
    assert "pages dirty" not in text_of(page_of(facts))


def test_the_legend_has_no_series_that_is_not_drawn():
    facts = save_facts() | {"downtime": None}
    assert "predicted after this round aim: 0.2 s" in text_of(page_of(facts))


# ---- drawings ----------------------------------------------------------------------------------------


def test_the_value_to_compare_with_is_named_in_the_legend_not_in_the_drawing():
    drawn = svg.lines("t", ["0", "last"], [svg.Series("x", "s1", [1, 0.2])], mark=("aim: 0.2 s", 0.2))
    assert "aim" not in re.search(r"<svg.*</svg>", drawn)[0]
    assert '<i class="mark"></i>aim: 0.2 s' in drawn


def boxes(drawn: str) -> list[tuple[float, float, float, float]]:
    """Of each figure beside a point: left, top, right, bottom, in letters of the usual size."""
    found = re.findall(r'<text class="value" x="([\d.]+)" y="([\d.]+)" text-anchor="middle">([^<]+)<', drawn)
    return [(float(x) - len(t) * 3.1, float(y) - 9, float(x) + len(t) * 3.1, float(y)) for x, y, t in found]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([13725, 5772, 44693, 40880, 19400], [4744, 1338, 2174, 7760, None]),
        ([50412, 58024], [15622, 58579]),
        ([100] * 5, [100] * 5),
        ([1, 1000, 1, 1000, 1], [1000, 1, 1000, 1, 1000]),
    ],
)
def test_figures_of_lines_overlap_neither_each_other_nor_a_point(one, other):
    names = [str(i) for i in range(len(one))]
    both = [svg.Series("a", "s1", one), svg.Series("b", "s2", other)]
    drawn = svg.lines("t", names, both, logarithmic=True)
    found = boxes(drawn)
    assert len(found) == sum(value is not None for value in [*one, *other])
    for i, (left, top, right, bottom) in enumerate(found):
        assert top >= 0 and bottom <= svg.TOP + svg.PLOT_HEIGHT
        for other_left, other_top, other_right, other_bottom in found[i + 1 :]:
            assert right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top
        for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn):
            assert not (left < float(x) < right and top < float(y) < bottom)


def test_the_names_of_the_last_rounds_do_not_overlap():
    drawn = svg.lines("t", [*map(str, range(30)), "last"], [svg.Series("x", "s1", [1] * 31)])
    at = [float(x) for x in re.findall(rf'<text x="([\d.]+)" y="{svg.TOP + svg.PLOT_HEIGHT + 22}.0"', drawn)]
    assert min(after - before for before, after in pairwise(at)) >= 40


def test_a_logarithmic_axis_begins_near_the_smallest_value():
    drawn = svg.lines("t", ["0", "1"], [svg.Series("x", "s1", [45000, 4400])], logarithmic=True)
    assert re.findall(r'dy=".35em" text-anchor="end">([^<]+)<', drawn) == ["1k", "10k", "100k"]


# ---- a browser ---------------------------------------------------------------------------------------

PAGES = {
    "save": save_facts,
    "thirty rounds": lambda: save_facts(nr_rounds=30),
    "long names": lambda: save_facts(
        domain=LONG, image=f"/srv/{LONG}", exit_code=5, error=f"{LONG}: no space"
    ),
    "migration": migration_facts,
    "restore": restore_facts,
    "failed": lambda: restore_facts(
        domain=None, exit_code=3, error="none", error_name=ErrorName.DOMAIN_NOT_FOUND
    ),
}
MEASURE = """
onload = () => { const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, cut = [];
    for (const one of page.querySelectorAll("svg text")) {
      const here = one.getBoundingClientRect(), all = one.ownerSVGElement.getBoundingClientRect();
      if (here.width && (here.left < all.left - 1 || here.right > all.right + 1 || here.top < all.top - 1 ||
          here.bottom > all.bottom + 1)) cut.push(one.textContent);
    }
    const shown = [...page.querySelectorAll("svg text")].filter(one => one.getBoundingClientRect().height);
    const least = Math.min(99, ...shown.map(one => one.getBoundingClientRect().height));
    const root = page.documentElement;
    found[frame.title] = [root.scrollWidth, root.clientWidth, cut.join(" "), Math.round(least)];
  }
  const measured = document.createElement("pre");
  measured.textContent = Object.entries(found).map(([name, one]) => [name, ...one].join("|")).join("\\n");
  document.body.replaceChildren(measured);
};
"""


@pytest.mark.parametrize("width", [400, 1200])
def test_in_a_browser_nothing_is_cut_off_and_letters_can_be_read(tmp_path: Path, width: int):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no browser: apt install chromium")
    frames = "".join(
        f'<iframe title="{name}" width="{width}" height="900" srcdoc="{html.escape(page_of(make()))}"></iframe>'
        for name, make in PAGES.items()
    )
    # In frames, as chromium's windows have a least width of 500.
    (tmp_path / "all.html").write_text(f"<!DOCTYPE html><script>{MEASURE}</script><body>{frames}</body>")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", str(tmp_path / "all.html")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    lines = html.unescape(re.search(r"<pre>(.*)</pre>", done.stdout, flags=re.DOTALL)[1]).splitlines()
    assert len(lines) == len(PAGES)
    for line in lines:
        name, scroll, client, cut, least = line.split("|")
        assert (name, int(scroll) <= int(client), cut) == (name, True, "")
        assert int(least) >= 10, name
