"""Is everything here that mpistream needs?"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from mpistream.launch.doctor import Finding, examine

_INDENT = " " * 27


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="Check this configuration file and its etcd, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(config: Path | None, as_json: bool) -> None:
    """Check the installation by using each part of it, and say how to mend what is broken.

    The exit status is 1 where something is broken that every scan needs.
    """
    findings = []
    for finding in examine(config):
        findings.append(finding)
        if not as_json:
            _print_finding(finding)
    broken = [finding.name for finding in findings if finding.necessary and not finding.ok]
    if as_json:
        click.echo(json.dumps({"ok": not broken, "checks": [asdict(finding) for finding in findings]}))
    else:
        click.echo(f"\nbroken: {', '.join(broken)}" if broken else "\nmpistream can run here")
    if broken:
        sys.exit(1)


def _print_finding(finding: Finding) -> None:
    verdict = "ok" if finding.ok else "problem" if finding.necessary else "note"
    click.echo(f"{verdict:<9}{finding.name:<18}{finding.detail}")
    if finding.remedy:
        click.echo(f"{_INDENT}{finding.remedy}")
