"""Panels of statistics as text for terminals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tkserver.cli.output import printable

Json = dict[str, Any]

BARS = "▁▂▃▄▅▆▇█"
TOP = 8
"""Rows of a table in the summary."""


def print_summary(read: Callable[[str], Json], console: Console) -> None:
    """Print the most important numbers of all panels.

    :param read: returns the JSON of a panel.
    """
    overview = read("overview")
    console.print(_title(overview))
    if not overview["totals"]["events"] and not overview["totals"]["ci_users"]:
        console.print(Text("\nNo events in this period. To send one: tkserver send --help"))
        return
    parts: list[tuple[str, RenderableType]] = [
        ("", _overview(overview)),
        ("Commands", _commands(read("commands"), TOP)),
        ("Versions", _versions(read("versions"), TOP)),
        ("Releases", Group(*map(Text, verdicts(read("releases"))))),
        ("Systems", _environment(read("environment"), ("os",))),
        ("Retention", _retention(read("retention"), TOP)),
    ]
    for title, part in parts:
        console.print()
        if title:
            console.print(Text(title, style="bold"))
        console.print(part)
    console.print(Text(f"\nDays from {overview['filling_from']} are still filling: more events are expected."))


def print_panel(name: str, panel: Json, console: Console) -> None:
    """Print a panel."""
    console.print(_title(panel))
    console.print()
    console.print(_PANELS[name](panel))


def _title(panel: Json) -> Text:
    filters = [f"{name} {value}" for name, value in {**panel["filters"], "ci": _ci_mode(panel)}.items() if value]
    until = panel["summed_until"]
    return Text.assemble(
        (printable(panel["app"]), "bold"),
        f", {panel['from']} to {panel['to']} ({panel['timezone']})",
        printable("".join(f", {part}" for part in filters)),
        f"; events up to {until.replace('T', ' ').replace('Z', ' UTC')}" if until else "; no events yet",
    )


def _ci_mode(panel: Json) -> str | None:
    """Return whether events of CI count, if that is not the default."""
    mode: str = panel["filters"].get("ci", panel["ci"])
    return None if mode == "exclude" else mode


def _table(*columns: str) -> Table:
    """Return a table whose first column is text, and whose others are numbers."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True, overflow="ellipsis")
    return table


def _overview(panel: Json) -> RenderableType:
    totals, previous = panel["totals"], panel["previous"]
    table = _table("", "now", "before", "by day")
    for name, key in (("users", "users"), ("new users", "new_users"), ("events", "events"), ("failures", "failures")):
        line = sparkline([day[key] or 0 for day in panel["days"]])
        table.add_row(name, number(totals[key]), number(previous[key]), Text(line))
    table.add_row("failure rate", _rate(totals), _rate(previous), "")
    table.add_row("users in CI", number(totals["ci_users"]), number(previous["ci_users"]), "")
    return table


def _rate(totals: Json) -> str:
    return percent(totals["failures"] / totals["outcomes"]) if totals["outcomes"] else "-"


def _commands(panel: Json, limit: int | None = None) -> RenderableType:
    table = _table("name", "events", "users", "failed", "95 % interval", "p50", "p95")
    for item in panel["items"][:limit]:
        has_rate = item["failure_rate"] is not None
        table.add_row(
            Text(printable(item["name"])),
            number(item["events"]),
            number(item["users"]),
            percent(item["failure_rate"]) if has_rate else "-",
            f"{percent(item['failure_low'])} to {percent(item['failure_high'])}" if has_rate else "-",
            duration(item["p50_ms"]),
            duration(item["p95_ms"]),
        )
    if limit is not None:
        return table
    flags = _table("flag", "events", "users")
    for flag in panel["flags"]:
        flags.add_row(
            Text(printable(f"{flag['command']} {flag['flag']}")), number(flag["events"]), number(flag["users"])
        )
    unused = _table("not used in 30 days", "last used")
    for item in panel["unused"]:
        unused.add_row(Text(printable(item["name"])), item["last_seen"])
    return Group(*(part for part in (table, flags, unused) if part.row_count))


def _versions(panel: Json, limit: int | None = None) -> RenderableType:
    table = _table("version", "users", "share", "events", "first seen", "days to half")
    for item in panel["items"][:limit]:
        table.add_row(
            Text(printable(item["version"])),
            number(item["users"]),
            percent(item["share"]) if item["share"] is not None else "-",
            number(item["events"]),
            item["first_seen"],
            "-" if item["days_to_half"] is None else str(item["days_to_half"]),
        )
    return table


def verdicts(panel: Json) -> list[str]:
    """Return sentences about the releases of a period."""
    sentences = []
    for item in panel["items"]:
        if item["verdict"] in ("worse", "better"):
            now, before = (
                (item["failures"], item["outcomes"]),
                (item["previous_failures"], item["previous_outcomes"]),
            )
            sentences.append(
                f"{item['version']} is {item['verdict']} than {item['previous']} for `{item['name']}`:"
                f" {percent(now[0] / now[1])} of {number(now[1])} runs failed,"
                f" before {percent(before[0] / before[1])} of {number(before[1])}"
            )
    if sentences:
        return [printable(sentence) for sentence in sentences]
    if not panel["items"]:
        return ["No version was released in this period, or it was not used on the same days as the one before."]
    if all(item["verdict"] == "too_few" for item in panel["items"]):
        return ["Too few runs to compare the last release with the one before."]
    return ["No command fails significantly more or less often than before."]


def _releases(panel: Json) -> RenderableType:
    table = _table("version, before, name", "verdict", "failed", "before", "p95", "before")
    for item in panel["items"]:
        table.add_row(
            Text(printable(f"{item['version']}, {item['previous']}, {item['name']}")),
            item["verdict"].replace("_", " "),
            _share(item["failures"], item["outcomes"]),
            _share(item["previous_failures"], item["previous_outcomes"]),
            duration(item["p95_ms"]),
            duration(item["previous_p95_ms"]),
        )
    return Group(*map(Text, verdicts(panel)), Text(), table)


def _share(part: int, whole: int) -> str:
    return f"{percent(part / whole)} of {number(whole)}" if whole else "-"


def _errors(panel: Json) -> RenderableType:
    table = _table("name", "exit code", "error type", "users", "events", "last seen")
    for item in panel["items"]:
        texts = (Text(printable(item[key] or "-")) for key in ("name", "exit_code", "error_type"))
        table.add_row(*texts, number(item["users"]), number(item["events"]), item["last_seen"])
    return table if table.row_count else Text("Nothing failed in this period.")


def _environment(panel: Json, names: Sequence[str] = ("os", "arch", "shell", "language", "ci")) -> RenderableType:
    tables = []
    for name in names:
        table = _table(name, "users", "share", "events")
        total = sum(item["users"] for item in panel[name])
        for item in panel[name]:
            value = "-" if item["value"] is None else str(item["value"])
            share = percent(item["users"] / total) if total else "-"
            table.add_row(Text(printable(value)), number(item["users"]), share, number(item["events"]))
        tables.append(table)
    return Group(*tables)


def _retention(panel: Json, limit: int | None = None) -> RenderableType:
    cohorts = panel["cohorts"][-limit:] if limit else panel["cohorts"]
    table = _table("first week", "users", *(f"+{week}" for week in range(1, len(cohorts))))
    for cohort in cohorts:
        shares = [
            "" if active is None else percent(active / cohort["users"], digits=0) if cohort["users"] else "-"
            for active in cohort["active"][1 : len(cohorts)]
        ]
        table.add_row(cohort["week"], number(cohort["users"]), *shares)
    return table


def _quality(panel: Json) -> RenderableType:
    table = _table("", "")
    table.show_header = False
    table.add_row("received events", number(panel["received"]))
    for name, key in (("median lateness", "late_p50_s"), ("95 % arrive within", "late_p95_s")):
        table.add_row(name, "-" if panel[key] is None else duration(panel[key] * 1000))
    table.add_row("implausible clocks", number(panel["adjusted"]))
    table.add_row("duplicates", number(panel["duplicates"]))
    table.add_row("in quarantine", number(sum(panel["quarantined"].values())))
    for code, events in panel["quarantined"].items():
        table.add_row(Text(f"  {printable(code)}"), number(events))
    table.add_row("stored events", number(panel["rows"]))
    table.add_row("their size", size(panel["bytes"]))
    return table


_PANELS: dict[str, Callable[[Json], RenderableType]] = {
    "overview": _overview,
    "commands": _commands,
    "versions": _versions,
    "releases": _releases,
    "errors": _errors,
    "environment": _environment,
    "retention": _retention,
    "quality": _quality,
}


def sparkline(values: Sequence[float]) -> str:
    """Return a line of bars, at most 30 long; a bar stands for the mean of several values if there are more."""
    size = -(-len(values) // 30)
    means = [sum(part) / len(part) for part in (values[start : start + size] for start in range(0, len(values), size))]
    highest = max(means, default=0) or 1
    return "".join(BARS[min(7, int(8 * mean / highest))] for mean in means)


def number(value: int) -> str:
    """Return a number with separators between thousands."""
    return f"{value:,}"


def percent(value: float, digits: int = 1) -> str:
    """Return a share as a percentage."""
    return f"{100 * value:.{digits}f} %"


def duration(milliseconds: float | None) -> str:
    """Return a duration with a suitable unit; ``-`` if it is not known."""
    if milliseconds is None:
        return "-"
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if milliseconds >= size:
            return f"{milliseconds / size:.1f} {unit}"
    return f"{milliseconds:.0f} ms"


def size(bytes_: int) -> str:
    """Return a number of bytes with a suitable unit."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if bytes_ >= factor:
            return f"{bytes_ / factor:.1f} {unit}"
    return f"{bytes_} B"
