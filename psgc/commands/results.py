"""The commands that read run directories: `psgc report`, `psgc compare` and `psgc replay`."""

from psgc.commands.parser import Commands, Options

GRID = ("replication", "chunks_per_worker", "parts", "schedule")  # what psgc replay varies


def add_report(commands: Commands) -> None:
    add = commands.add("report", report, "write figures and an HTML page about a run")
    add("directory", metavar="RUN_DIR", help="run directory, for example runs/quickstart")
    add("--iteration", type=int, metavar="K", help="show iteration K in detail (default: the slowest)")
    add("--output", metavar="DIR", help="write to DIR (default: RUN_DIR/report)")
    add("--tensorboard", action="store_true", help="also write event files for TensorBoard")


def report(options: Options) -> int:
    from psgc.reporting.report import report

    return report(options.directory, options.iteration, options.output, options.tensorboard)


def add_compare(commands: Commands) -> None:
    add = commands.add(
        "compare", compare, "print a table of several runs: what differs in their settings, and how they went"
    )
    add("directories", nargs="+", metavar="RUN_DIR", help="run directories, for example runs/*")
    add("--json", metavar="FILE", help="write the table to FILE as JSON")
    add("--plot", metavar="FILE", help="draw the losses to FILE (.png, .pdf, .svg; needs matplotlib)")


def compare(options: Options) -> int:
    from psgc.paths import expanded
    from psgc.reporting.compare import compare

    return compare([expanded(path) for path in options.directories], options.json, options.plot)


def add_replay(commands: Commands) -> None:
    add = commands.add("replay", replay, "predict a recorded run under other settings and recommend some")
    add("directory", metavar="RUN_DIR", help="run directory that psgc train wrote")
    for name in GRID[:-1]:
        text = "values to try (default: some around the run's own)"
        add(f"--{name.replace('_', '-')}", metavar="N,...", help=text)
    add("--schedule", metavar="NAME,...", help="schedules to try (default: all but random)")
    add("--json", metavar="FILE", help="write the whole table to FILE as JSON")


def replay(options: Options) -> int:
    from psgc.simulation.replay_command import replay

    return replay(options.directory, {name: getattr(options, name) for name in GRID}, options.json)
