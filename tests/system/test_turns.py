"""Several scans on one testbed stream one after the other."""

from pathlib import Path

from tests.system.command_line import CommandLine, finish

THRESHOLDS = ("--background", 60, "--xray", 2000)


def test_a_scan_waits_for_its_turn_longer_than_its_patience(cli: CommandLine, output: Path) -> None:
    """The silence before a scan's turn is nobody's fault."""
    config = cli.folder / "impatient.toml"
    config.write_text("[stream]\npatience_seconds = 1.0\n")
    cli.run("testbed", "up", "--config", config, "--groups", 1, "--ranks-per-group", 1).succeeded()
    try:
        long = output.with_name("long.h5")
        command = cli.start("testbed", "scan", "--source", "sim:50x50?electrons=20", "--output", long, *THRESHOLDS)
        cli.wait_for_stream(command)
        short = ("--source", "sim:2x2?electrons=50", "--output", output, *THRESHOLDS, "--json")
        assert cli.run("testbed", "scan", *short).last_json["frames"] == 4
        finish(command).succeeded()
    finally:
        cli.run("testbed", "down").succeeded()
