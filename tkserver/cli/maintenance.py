"""``tkserver migrate`` and ``tkserver check``."""

from __future__ import annotations

import click

from tkserver.cli.exit_codes import Failed
from tkserver.cli.output import json_option, print_records
from tkserver.config import load
from tkserver.operations.checks import Finding, run_checks
from tkserver.operations.database import migrate_database


@click.command()
def migrate() -> None:
    """Migrate the schema of the database. The server does this when it starts."""
    click.echo(f"the schema is up to date: {migrate_database(load({}))}")


@click.command()
@json_option
def check(as_json: bool) -> None:
    """Check an installation for problems.

    Checks settings, database, schema, clocks, disk space and open files. If there is a problem, the exit code is 1.

    This changes nothing, except that it writes the row with which servers, too, test that the database accepts writes.
    """
    findings = run_checks(load({}))
    if as_json:
        records = [
            {"check": finding.check, "ok": finding.ok, "found": finding.found, "what_to_do": finding.advice}
            for finding in findings
        ]
        print_records(records, as_json=True, empty="")
    else:
        for finding in findings:
            click.echo(_line(finding))
    problems = sum(not finding.ok for finding in findings)
    if problems:
        raise Failed(f"{problems} of {len(findings)} checks found a problem")


def _line(finding: Finding) -> str:
    status = click.style("ok   ", fg="green") if finding.ok else click.style("wrong", fg="red")
    return f"{status}  {finding.check}: {finding.found}" + (f". {finding.advice}" if finding.advice else "")
