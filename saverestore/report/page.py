"""Reports as one HTML page: no script, no other file, readable in light and dark, on wide and narrow screens."""

from __future__ import annotations

from html import escape

from saverestore.report import svg
from saverestore.report.facts import Facts
from saverestore.report.svg import Series

MIB = 1 << 20
NO_DOMAIN = "none"

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1d2330; --quiet: #5b6475; --grid: #dfe3ea; --on: #fff;
  --s1: #2166b0; --s2: #b8520a; --s3: #1b7f5c; --s4: #7a4bb0; --bad: #b3261e; --good: #1b7f5c; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171d; --ink: #e6e9ef; --quiet: #9aa4b5; --grid: #2d333f;
  --on: #10131a; --s1: #6fa8e8; --s2: #eba05c; --s3: #5cc29b; --s4: #b99aec; --bad: #ff8a80; --good: #5cc29b; } }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 820px; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
p.quiet, figcaption, th { color: var(--quiet); } .bad { color: var(--bad); } .good { color: var(--good); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; font-weight: normal; }
table.rounds th, table.rounds td { text-align: right; border-bottom: 1px solid var(--grid); }
figure { margin: 1rem 0 1.5rem; } svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--quiet); }
svg text.on { fill: var(--on); } .grid { stroke: var(--grid); } .mark { stroke: var(--bad); stroke-dasharray: 6 4; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .1rem 0 .3rem; font-size: 13px; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
.s1 { fill: var(--s1); background: var(--s1); } .s2 { fill: var(--s2); background: var(--s2); }
.s3 { fill: var(--s3); background: var(--s3); } .s4 { fill: var(--s4); background: var(--s4); }
.wide { overflow-x: auto; } td { overflow-wrap: anywhere; }
.line { fill: none; stroke-width: 2; } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
"""


def page_of(facts: Facts) -> str:
    """The page of a save or restore."""
    title = f"{facts['tool']}: {facts['domain'] or facts['image']}"
    body = [f"<h1>{escape(title)}</h1>", _headline(facts)]
    if "rounds" in facts:  # a save, or a migration, which is one from here
        body += [_table(_save_rows(facts)), *_drawn_save(facts)]
    else:
        body += [_table(_restore_rows(facts)), _drawn_restore(facts)]
    options = [(_title(name), _plain(value)) for name, value in facts["options"].items()]
    body += ["<h2>Options</h2>", _table(options)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _headline(facts: Facts) -> str:
    when = f"{facts['host']}, {facts['began']}, {facts['tool']} {facts['version']}"
    good = facts["result"] == "done"
    state = facts["domain_state"]
    there_is = "there is no domain" if state == NO_DOMAIN else f"the domain is {state}"
    outcome = f"{facts['result']}; {there_is}"
    lines = [f'<p class="quiet">{escape(when)}</p>']
    lines.append(f'<p class="{"good" if good else "bad"}"><strong>{escape(outcome)}</strong></p>')
    if facts["error"] is not None:
        lines.append(f'<p class="bad">{escape(facts["error"])} (exit code {facts["exit_code"]})</p>')
    return "\n".join(lines)


def _save_rows(facts: Facts) -> list[tuple[str, str]]:
    pages, sizes = facts["pages"], facts["bytes"]
    if not sizes["stream"]:
        return [*_named(facts), ("time", f"{facts['seconds']['total']:.2f} s")]
    stored = "" if sizes["stored"] is None else f", {_mib(sizes['stored'])} stored"
    rows = [
        *_named(facts),
        ("size", f"{_mib(sizes['stream'])}{stored}"),
        ("pages", f"{pages['sent']:,} sent; {pages['resent']:,} of them resent, {pages['zero']:,} zero"),
        (
            "time",
            f"{facts['seconds']['total']:.2f} s, of it {facts['seconds']['sync']:.2f} s to sync the disk",
        ),
        ("rate", _rate(facts["rates"]["stream_bytes_per_s"])),
    ]
    how = {"log": "log-dirty", "digest": "content digests"}.get(facts["dirty_source"])
    rows.append(("live", "no" if how is None else f"yes: dirty pages by {how}"))
    if (decision := facts["decision"]) is not None:
        rows.append(("rounds ended", f"{decision['why']}: {decision['decision']}"))
    if (downtime := facts["downtime"]) is not None:
        expected = "" if decision is None else f", predicted {decision['expected_downtime_s']:.3f} s"
        rows.append(("downtime", f"{downtime['total_s']:.3f} s{expected}"))
    return [*rows, _memory_row(facts)]


def _restore_rows(facts: Facts) -> list[tuple[str, str]]:
    digest = facts["digest"] or "none compared"
    if not facts["bytes"]["stream"]:
        return [*_named(facts), ("time", f"{facts['seconds']['total']:.2f} s")]
    return [
        *_named(facts),
        ("size", _mib(facts["bytes"]["stream"])),
        ("pages", f"{facts['pages']['restored']:,} in {facts['records']:,} records"),
        ("digest", digest),
        ("time", f"{facts['seconds']['total']:.2f} s"),
        ("rate", _rate(facts["rates"]["stream_bytes_per_s"])),
        _memory_row(facts),
    ]


def _named(facts: Facts) -> list[tuple[str, str]]:
    """Which image, domain and Xen: what is known of them."""
    image = None if facts["image"] is None else facts["image_path"] or "a pipe"
    rows = [
        ("image", image),
        ("domain", facts["domain"]),
        ("UUID", facts["domain_uuid"]),
    ]
    rows.append(("Xen", facts["xen_version"]))
    return [(name, value) for name, value in rows if value is not None]


def _memory_row(facts: Facts) -> tuple[str, str]:
    peak = facts["peak_memory_bytes"]
    return ("peak memory use", "not known" if peak is None else _mib(peak))


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
    drawn.append(svg.bars("pages, by round (logarithmic)", names, [sent, dirty] if known else [sent]))
    rates = [
        series("pages sent per second", "s1", "sent_pages_per_s"),
        series("pages dirtied per second", "s2", "dirty_pages_per_s"),
    ]
    drawn.append(svg.lines("rates, by round (logarithmic)", names, rates, logarithmic=True))
    drawn.append(_drawn_prediction(facts, names))
    drawn.append(_drawn_downtime(facts))
    drawn.append(_table_of_rounds(facts, names))
    return drawn


def _drawn_prediction(facts: Facts, names: list[str]) -> str:
    """The downtime that was predicted after each round, and the real one."""
    rounds, decision, downtime = facts["rounds"], facts["decision"], facts["downtime"]
    real = None if downtime is None else downtime["total_s"]
    series = [
        Series("predicted after this round", "s1", [one["expected_downtime_s"] for one in rounds]),
        Series("real", "s2", [real if one["final"] else None for one in rounds]),
    ]
    limit = None if decision is None else decision["downtime_limit_s"]
    mark = None if limit is None else (f"aim: {limit:g} s", limit)
    return svg.lines("downtime in seconds, predicted and real", names, series, mark=mark)


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
    rows.append(("real", real))
    return "<h2>Downtime</h2>\n" + svg.phases("seconds, by phase", rows)


def _drawn_restore(facts: Facts) -> str:
    seconds = facts["seconds"]
    if not facts["bytes"]["stream"]:
        return ""
    parts = [
        ("create the domain", "s1", seconds["create"]),
        ("memory", "s2", seconds["memory"]),
        ("processors, rings", "s3", seconds["complete"]),
        ("start", "s4", seconds["start"]),
    ]
    return "<h2>Phases</h2>\n" + svg.phases("seconds, by phase", [("restore", parts)])


def _table_of_rounds(facts: Facts, names: list[str]) -> str:
    head = (
        "round",
        "pages sent",
        "pages dirty",
        "seconds",
        "sent/s",
        "dirtied/s",
        "processor",
        "predicted",
    )
    rows = []
    for name, one in zip(names, facts["rounds"], strict=True):
        cells = (
            name,
            f"{one['sent_pages']:,}",
            _count(one["dirty_pages"]),
            f"{one['seconds']:.3f}",
            _count(one["sent_pages_per_s"]),
            _count(one["dirty_pages_per_s"]),
            "" if one["cpu_percent"] is None else f"{one['cpu_percent']}%",
            "" if one["expected_downtime_s"] is None else f"{one['expected_downtime_s']:.3f} s",
        )
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="wide"><table class="rounds"><tr>{heads}</tr>{"".join(rows)}</table></div>'


def _table(rows: list[tuple[str, str]]) -> str:
    return (
        "<table>"
        + "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
        + "</table>"
    )


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"


def _rate(value: float | None) -> str:
    return "not known" if value is None else f"{value / MIB:,.0f} MiB/s"


def _title(option: str) -> str:
    """An option's name for people: "downtime (s)" of downtime_s."""
    return (f"{option[:-2]} (s)" if option.endswith("_s") else option).replace("_", " ")


def _plain(value: object) -> str:
    if value is None:
        return "–"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
