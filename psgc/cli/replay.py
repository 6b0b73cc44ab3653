"""`psgc replay`: predict a recorded run under other settings and recommend some."""

from psgc.cli import Options, Parser
from psgc.simulation.replay_command import replay

GRID = ("replication", "chunks_per_worker", "parts", "schedule")  # what it varies


def add_arguments(parser: Parser) -> None:
    parser.add_argument("directory", metavar="RUN_DIR", help="run directory that psgc train wrote")
    for name in GRID[:-1]:
        text = "values to try (default: some around the run's own)"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N,...", help=text)
    parser.add_argument("--schedule", metavar="NAME,...", help="schedules to try (default: all but random)")
    parser.add_argument("--json", metavar="FILE", help="write the whole table to FILE as JSON")


def run(options: Options) -> int:
    return replay(options.directory, {name: getattr(options, name) for name in GRID}, options.json)
