"""Reports as lines for a person, from the plain data of `facts`."""

from __future__ import annotations

from saverestore.report.facts import Facts
from saverestore.words import counted, mib, rate_text


def lines_of(facts: Facts) -> list[str]:
    """What -v prints besides the result: a few lines, none longer than a screen. Nothing of work that was not
    begun."""
    if not facts["bytes"]["stream"]:
        return []
    rate = facts["rates"]["stream_bytes_per_s"]
    at = "" if rate is None else f" at {rate_text(rate)}"
    sent = f"{mib(facts['bytes']['stream'])}{at}"
    pages = facts["pages"]
    lines = []
    if "sent" in pages:
        lines.append(
            f"{sent}; {counted(pages['sent'], 'page')} sent, {pages['resent']} of them resent, "
            f"{pages['zero']} zero"
        )
    else:
        lines.append(f"{sent}; {counted(pages['restored'], 'page')} in {counted(facts['records'], 'record')}")
    if (decision := facts.get("decision")) is not None:
        lines.append(f"rounds ended: {decision['why']}")
    if facts.get("downtime") is not None:
        lines.append(downtime_text(facts))
    elif "create" in facts["seconds"]:
        lines.append("; ".join(f"{name} {facts['seconds'][name]:.2f} s" for name in PHASES_OF_RESTORE))
    if (peak := facts["peak_memory_bytes"]) is not None:
        lines.append(f"peak memory use {mib(peak)}")
    return lines


PHASES_OF_RESTORE = ("create", "memory", "complete", "start")


def downtime_text(facts: Facts) -> str:
    """The downtime by parts, and the predicted one."""
    downtime, decision = facts["downtime"], facts["decision"]
    expected = "" if decision is None else f", predicted {decision['expected_downtime_s'] * 1000:.0f} ms"
    parts = ", ".join(
        f"{name.replace('_', ' ')} {downtime[f'{name}_s'] * 1000:.0f} ms"
        for name in ("suspend", "last_round", "state", "resume")
    )
    return f"downtime {downtime['total_s'] * 1000:.0f} ms{expected}: {parts}"
