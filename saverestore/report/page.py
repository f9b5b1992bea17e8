"""Reports as one HTML page: no script, no other file, readable in light and dark, on wide and narrow screens."""

from __future__ import annotations

import datetime
from html import escape

from saverestore.report import svg
from saverestore.report.facts import STDIN_OR_STDOUT, Facts
from saverestore.report.svg import Series
from saverestore.words import counted, rate_text

MIB = 1 << 20
NO_DOMAIN = "none"

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1d2330; --quiet: #5b6475; --grid: #dfe3ea; --on: #fff;
  --s1: #2166b0; --s2: #b8520a; --s3: #1b7f5c; --s4: #7a4bb0; --s5: #8a6d00; --s6: #5b6475;
  --bad: #b3261e; --good: #1b7f5c; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171d; --ink: #e6e9ef; --quiet: #9aa4b5; --grid: #2d333f;
  --on: #10131a; --s1: #6fa8e8; --s2: #eba05c; --s3: #5cc29b; --s4: #b99aec; --s5: #d6b94a; --s6: #9aa4b5;
  --bad: #ff8a80; --good: #5cc29b; } }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 820px; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
p.quiet, figcaption, th { color: var(--quiet); } .bad { color: var(--bad); } .good { color: var(--good); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; font-weight: normal; }
table.facts { width: 100%; } table.facts th { width: 11rem; }
table.figures { white-space: nowrap; } table.rounds { width: 100%; }
table.figures th, table.figures td { text-align: right; border-bottom: 1px solid var(--grid);
  padding: .2rem 0 .2rem 1rem; }
table.figures th { white-space: normal; overflow-wrap: normal; vertical-align: bottom; }
table.figures tr > :first-child { text-align: left; padding-left: 0; } .wide { overflow-x: auto; }
figure { margin: 1rem 0 1.5rem; } svg { display: block; width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--quiet); } svg text.on { fill: var(--on); }
.grid { stroke: var(--grid); } line.mark { stroke: var(--bad); stroke-dasharray: 6 4; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .1rem 0 .3rem; font-size: 13px; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
.legend i.mark { width: 1.4em; height: 0; border-top: 2px dashed var(--bad); vertical-align: .25em; }
.s1 { fill: var(--s1); background: var(--s1); } .s2 { fill: var(--s2); background: var(--s2); }
.s3 { fill: var(--s3); background: var(--s3); } .s4 { fill: var(--s4); background: var(--s4); }
.s5 { fill: var(--s5); background: var(--s5); } .s6 { fill: var(--s6); background: var(--s6); }
rect { stroke: var(--ground); stroke-width: 1px; }
.line { fill: none; stroke-width: 2; } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
@media (max-width: 600px) { body { margin: 1rem auto; } table.facts th { width: 7rem; }
  svg text { font-size: 21px; } svg text.value { display: none; } }
"""


def page_of(facts: Facts) -> str:
    """The page of a save, restore or migration."""
    title = f"{facts['tool']}: {_subject(facts)}"
    body = [f"<h1>{escape(title)}</h1>", _headline(facts)]
    if "rounds" in facts:  # a save, or a migration, which is one from here
        body += [_table(_save_rows(facts)), *_drawn_save(facts)]
    else:
        body += [_table(_restore_rows(facts)), _drawn_restore(facts)]
    body += ["<h2>Options in force</h2>", _table(options_of(facts))]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _subject(facts: Facts) -> str:
    """What was saved, restored or moved."""
    domain = facts["domain"] or _image_name(facts) or "a domain"
    return f"{domain} to {facts['options']['host']}" if _is_migration(facts) else str(domain)


def _is_migration(facts: Facts) -> bool:
    return "host" in facts["options"]


def _image_name(facts: Facts) -> str | None:
    """The image's path or address; None of a migration, which makes none."""
    image = facts["image"]
    if image == STDIN_OR_STDOUT:
        return "a pipe"
    return None if image is None else str(facts["image_path"] or image)


def _headline(facts: Facts) -> str:
    began = datetime.datetime.fromisoformat(facts["began"])
    when = f"{facts['host']}, {began:%Y-%m-%d %H:%M:%S} UTC, {facts['tool']} {facts['version']}"
    good = facts["result"] == "done"
    outcome = f"{facts['result']}; {_whereabouts(facts)}"
    lines = [f'<p class="quiet">{escape(when)}</p>']
    lines.append(f'<p class="{"good" if good else "bad"}"><strong>{escape(outcome)}</strong></p>')
    if facts["error"] is not None:
        lines.append(f'<p class="bad">{escape(facts["error"])} (exit code {facts["exit_code"]})</p>')
    return "\n".join(lines)


def _whereabouts(facts: Facts) -> str:
    """Where the domain is, and in which state."""
    state, options = facts["domain_state"], facts["options"]
    if _is_migration(facts) and facts["result"] == "done":  # here it is destroyed, which is the point
        return f"the domain is {'paused' if options.get('paused') else 'running'} at {options['host']}"
    if state != NO_DOMAIN:
        return f"the domain is {state}"
    # Of a restore: one that was there before may be what stood in the way.
    return "there is no domain" if "rounds" in facts else "no domain was restored"


def _save_rows(facts: Facts) -> list[tuple[str, str]]:
    pages, sizes = facts["pages"], facts["bytes"]
    if not sizes["stream"]:
        return [*_named(facts), ("time", f"{facts['seconds']['total']:.2f} s")]
    is_migration = _is_migration(facts)
    stored = "" if sizes["stored"] is None or is_migration else f", {_mib(sizes['stored'])} stored"
    sync_s = facts["seconds"]["sync"]
    synced = f", the last {sync_s:.2f} s to sync the disk" if sync_s and not is_migration else ""
    rows = [
        *_named(facts),
        ("size", f"{_mib(sizes['stream'])}{stored}"),
        ("pages", f"{pages['sent']:,} sent; {pages['resent']:,} of them resent, {pages['zero']:,} zero"),
        ("time", f"{facts['seconds']['total']:.2f} s{synced}"),
        ("rate", _rate(facts["rates"]["stream_bytes_per_s"])),
    ]
    if "link" in facts:
        rows.append(("link", _link(facts["link"])))
    how = {"log": "log-dirty", "digest": "content digests"}.get(facts["dirty_source"])
    rows.append(("live", "no" if how is None else f"yes: dirty pages by {how}"))
    if (decision := facts["decision"]) is not None:
        rows.append(("rounds ended", f"{decision['why']}: {DECIDED[decision['decision']]}"))
    if (downtime := facts["downtime"]) is not None:
        expected = "" if decision is None else f", predicted {decision['expected_downtime_s']:.3f} s"
        handover_s = facts.get("handover_s")
        if handover_s is not None:
            whole_s = downtime["total_s"] + handover_s
            rows.append(
                ("downtime", f"{whole_s:.3f} s, {handover_s:.3f} s of it from the grant to the answer")
            )
        rows.append(
            ("downtime here" if is_migration else "downtime", f"{downtime['total_s']:.3f} s{expected}")
        )
    return [*rows, _memory_row(facts)]


DECIDED = {
    "stop": "the domain is suspended",
    "abort": "the domain keeps running",
    "continue": "another round",
    "throttle": "the domain gets less processor time",
}
"""What follows from a decision after a round."""


def _link(link: Facts) -> str:
    """What a migration went over, and how often that broke."""
    over = {"ssh": "ssh", "tls": "TLS", "tcp": "TCP", "unix": "a Unix socket"}.get(link["over"], link["over"])
    cipher = f" ({link['cipher']})" if link["cipher"] else ""
    connections = counted(link["streams"], "connection")
    text = f"{over}{cipher}, {connections}" if over else connections
    if link["fallback"]:
        text += f", because {link['fallback']}"
    if link["reconnects"] or link["broken_s"] or link["resent_pages"]:
        text += f"; broken for {link['broken_s']:.1f} s, {counted(link['resent_pages'], 'page')} sent again"
    return text


def _restore_rows(facts: Facts) -> list[tuple[str, str]]:
    digest = f"matches ({facts['digest']})" if facts["digest"] else "none compared"
    if not facts["bytes"]["stream"]:
        return [*_named(facts), ("time", f"{facts['seconds']['total']:.2f} s")]
    return [
        *_named(facts),
        ("size", _mib(facts["bytes"]["stream"])),
        ("pages", f"{facts['pages']['restored']:,} in {counted(facts['records'], 'record')}"),
        ("digest", digest),
        ("time", f"{facts['seconds']['total']:.2f} s"),
        ("rate", _rate(facts["rates"]["stream_bytes_per_s"])),
        _memory_row(facts),
    ]


def _named(facts: Facts) -> list[tuple[str, str]]:
    """Which image, domain and Xen: what is known of them."""
    rows = [
        ("image", _image_name(facts)),
        ("domain", facts["domain"]),
        ("UUID", facts["domain_uuid"]),
        ("Xen", facts["xen_version"]),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _memory_row(facts: Facts) -> tuple[str, str]:
    peak = facts["peak_memory_bytes"]
    return ("peak memory", "not known" if peak is None else _mib(peak))


def _drawn_save(facts: Facts) -> list[str]:
    rounds = facts["rounds"]
    if not rounds:
        return []
    if len(rounds) == 1:  # not live, or given up after the first
        return [_drawn_downtime(facts)]
    names = ["last" if one["final"] else str(one["number"]) for one in rounds]
    drawn = ["<h2>Rounds</h2>"]

    def series(name: str, style: str, key: str) -> Series:
        return Series(name, style, [one[key] for one in rounds])

    sent, dirty = series("pages sent", "s1", "sent_pages"), series("pages dirty", "s2", "dirty_pages")
    known = any(value is not None for value in dirty.values)
    drawn.append(svg.bars("Pages by round, logarithmic", names, [sent, dirty] if known else [sent]))
    rates = [
        series("pages sent per second", "s1", "sent_pages_per_s"),
        series("pages dirtied per second", "s2", "dirty_pages_per_s"),
    ]
    drawn.append(svg.lines("Rates by round, logarithmic", names, rates, logarithmic=True))
    drawn.append(_drawn_prediction(facts, names))
    drawn.append(_table_of_rounds(facts, names))
    drawn.append(_drawn_downtime(facts))
    return drawn


def _drawn_prediction(facts: Facts, names: list[str]) -> str:
    """The downtime that was predicted after each round, and the real one."""
    rounds, decision, downtime = facts["rounds"], facts["decision"], facts["downtime"]
    real = None if downtime is None else downtime["total_s"]
    series = [Series("predicted after this round", "s1", [one["expected_downtime_s"] for one in rounds])]
    if real is not None:
        series.append(Series("real", "s2", [real if one["final"] else None for one in rounds]))
    limit = None if decision is None else decision["downtime_limit_s"]
    mark = None if limit is None else (f"aim: {limit:g} s", limit)
    return svg.lines("Downtime in seconds, predicted and real", names, series, mark=mark)


def _drawn_downtime(facts: Facts) -> str:
    decision, downtime = facts["decision"], facts["downtime"]
    if downtime is None:
        return ""
    rows = []
    if decision is not None:
        expected = [
            ("suspend", "s1", decision["expected_suspend_s"]),
            ("last round", "s2", decision["expected_last_round_s"]),
            ("state", "s3", decision["expected_state_s"]),
        ]
        rows.append(("predicted", expected))
    real = [
        ("suspend", "s1", downtime["suspend_s"]),
        ("last round", "s2", downtime["last_round_s"]),
        ("state", "s3", downtime["state_s"]),
        ("resume", "s4", downtime["resume_s"]),
    ]
    rows.append(("time" if decision is None else "real", real))
    return f"<h2>Downtime</h2>\n{_phases(rows)}"


def _drawn_restore(facts: Facts) -> str:
    seconds = facts["seconds"]
    if not facts["bytes"]["stream"]:
        return ""
    parts = [
        ("check", "s5", seconds["check"]),
        ("create the domain", "s1", seconds["create"]),
        ("memory", "s2", seconds["memory"]),
        ("processors, rings", "s3", seconds["complete"]),
        ("start", "s4", seconds["start"]),
        ("other", "s6", seconds["other"]),
    ]
    return f"<h2>Phases</h2>\n{_phases([('time', parts)])}"


Phases = list[tuple[str, list[tuple[str, str, float]]]]
"""Rows of (name, parts), a part being (name, style, seconds)."""


def _phases(rows: Phases) -> str:
    """Drawn, and as a table: what took no time to speak of has no figure in the drawing."""
    names = [part for part, _, _ in max((parts for _, parts in rows), key=len)]
    seconds = [{part: value for part, _, value in parts} for _, parts in rows]
    lines = [[part, *(f"{one[part]:.3f} s" if part in one else "" for one in seconds)] for part in names] + [
        ["in all", *(f"{sum(one.values()):.3f} s" for one in seconds)]
    ]
    return svg.phases("Seconds by phase", rows) + _figures(["phase", *(name for name, _ in rows)], lines)


def _table_of_rounds(facts: Facts, names: list[str]) -> str:
    columns = {
        "round": names,
        "pages sent": [f"{one['sent_pages']:,}" for one in facts["rounds"]],
        "pages dirty": [_count(one["dirty_pages"]) for one in facts["rounds"]],
        "time": [f"{one['seconds']:.3f} s" for one in facts["rounds"]],
        "link broken": [f"{one['broken_s']:.1f} s" if one["broken_s"] else "" for one in facts["rounds"]],
        "sent per second": [_count(one["sent_pages_per_s"]) for one in facts["rounds"]],
        "dirtied per second": [_count(one["dirty_pages_per_s"]) for one in facts["rounds"]],
        "processor time": [
            "" if one["cpu_percent"] is None else f"{one['cpu_percent']}%" for one in facts["rounds"]
        ],
        "downtime predicted": [
            "" if one["expected_downtime_s"] is None else f"{one['expected_downtime_s']:.3f} s"
            for one in facts["rounds"]
        ],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    return _figures(list(shown), [list(row) for row in zip(*shown.values(), strict=True)], style=" rounds")


def _figures(head: list[str], rows: list[list[str]], *, style: str = "") -> str:
    """A table of figures, which is scrolled sideways where the screen is narrower."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0"><table class="figures{style}"><tr>{heads}</tr>{lines}</table></div>'
    )


def _table(rows: list[tuple[str, str]]) -> str:
    return (
        '<table class="facts">'
        + "".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows
        )
        + "</table>"
    )


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"


def _rate(value: float | None) -> str:
    return "not known" if value is None else rate_text(value)


IN_SECONDS = ("downtime_s", "max_time", "settle_for", "resume_for", "silence", "suspend_timeout")
IN_MIB = ("xor_cache",)
SAID_BEFORE = ("host", "domains")
"""Of a migration, in the title."""


def options_of(facts: Facts) -> list[tuple[str, str]]:
    """The options that have a value, as a person reads them, with units."""
    return [
        (name.removesuffix("_s").replace("_", " "), _plain(name, value))
        for name, value in facts["options"].items()
        if value is not None and name not in SAID_BEFORE
    ]


def _plain(name: str, value: object) -> str:
    if isinstance(value, bool):
        return ("no", "yes")[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, (int, float)):
        if name == "bwlimit":
            return _rate(value)
        if name == "compress":
            return f"zstd, level {value}"
        unit = " s" if name in IN_SECONDS else " MiB" if name in IN_MIB else ""
        return f"{value:g}{unit}"
    return str(value)
