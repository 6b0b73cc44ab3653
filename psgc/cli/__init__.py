"""The command `psgc`: its exit code (0 done, 1 the run failed, 2 wrong arguments or settings), and its errors.

Each command is a module here: `add_arguments` says what it takes, `run` does it and returns the exit code. Only the
module of the command that was given is imported, since every rank of a run starts as `psgc train`.
"""

import argparse
import atexit
import gc
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from psgc import __version__
from psgc.disk import expanded
from psgc.errors import PsgcError, one_line, visible
from psgc.machine import limit_threads
from psgc.terminal import open_missing_streams, say, say_traceback

COMMANDS = {
    "train": "run one rank of a training (started by mpirun); a PyTorch model without mpirun in one process",
    "launch": "train, with the right mpirun command for this machine",
    "sweep": "train once for each combination of settings, one run after the other, and compare the runs",
    "submit": "write or submit a batch script for a run or a sweep: SLURM, PBS, LSF",
    "doctor": "test this machine: MPI, GPU, SLURM, disk, and what a run would survive",
    "report": "write figures and an HTML page about a run",
    "compare": "print a table of several runs: what differs in their settings, and how they went",
    "simulate": "compare schedules on random, given or recorded speeds",
    "replay": "predict a recorded run under other settings and recommend some",
    "order": "order the queues of an assignment matrix; print Q_max and its lower bound",
}
EXAMPLES = """examples:
  psgc launch run.yaml -n 8                        run 8 workers on this machine
  mpirun -n 8 psgc train run.yaml                  the same by hand, without fault tolerance
  psgc launch run.yaml -n 8 --set coding.parts=2   change a setting
  psgc launch train.py -n 8 -- --epochs 3          run a script with psgc.torch, with arguments of its own
  psgc sweep run.yaml -n 8 --set optimizer.lr=0.1,0.3    a run for each value, one after the other
  psgc doctor                                      check what a run on this machine would survive
  psgc report runs/quickstart                      write an HTML page about a run
  psgc compare runs/*                              print a table of several runs
  psgc submit run.yaml --nodes 4 --ranks-per-node 8 --time 2:00:00 --go    submit a run to the cluster
  psgc simulate scripts/simulate.yaml              compare schedules in simulation
  psgc replay runs/example                         find better settings for a recorded run
"""
WITH_MORE = ("launch", "sweep", "submit")  # commands that pass on what follows --
START_RANKS = ("train", "launch", "sweep", "doctor")  # these leave the limits of threads to the ranks
# Arguments that name files. (run.yaml is passed on to ranks and batch scripts, and expanded where it is read.)
PATHS = ("assignment", "directory", "hostfile", "json", "output", "plot")

Options = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """Escapes what a terminal would obey, as all output of psgc does."""

    def error(self, message: str) -> NoReturn:
        super().error(visible(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        for line in message.removesuffix("\n").split("\n"):
            say(line, error=file is sys.stderr)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `psgc` with these arguments (default: the command line's) and exit."""
    open_missing_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    own = given[: given.index("--")] if given and given[0] in WITH_MORE and "--" in given else given
    options = Options(given=given, debug=False, after=given[len(own) + 1 :])
    if given[:1] != ["train"]:  # which runs code of users, whose open files Python closes at its end
        atexit.register(gc.freeze)  # at its end Python would look through all objects: 0.1 s with NumPy and SciPy
    try:
        if given and given[0] in COMMANDS and given[0] not in START_RANKS:
            limit_threads()  # before anything imports NumPy: BLAS gets this process's share of the cores
        _parse(own, options)
        for name in PATHS:
            if (path := getattr(options, name, None)) is not None:
                setattr(options, name, expanded(path))
        sys.exit(options.run(options))
    except KeyboardInterrupt:
        say("psgc: stopped by Ctrl-C", error=True)
        sys.exit(128 + signal.SIGINT)
    except (PsgcError, MemoryError) as error:
        if options.debug:
            say_traceback()
        if isinstance(error, PsgcError):
            reason, code = str(error), error.exit_code
        else:
            reason, code = f"not enough memory: {one_line(error)}", 1
        if reason:
            say(f"psgc: {reason}", error=True)
        sys.exit(code)


def parser_for(command: str) -> Parser:
    """The parser of the command line; of the commands, only this one has its arguments."""
    parser = Parser(
        prog="psgc",
        description="Exact synchronous distributed training that never waits for its slowest machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"psgc {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == command:
            module = import_module(f"psgc.cli.{name}")
            added.add_argument("--debug", action="store_true", help="show the traceback of an error")
            module.add_arguments(added)
            added.set_defaults(run=module.run)
    return parser


def _parse(arguments: Sequence[str], options: Options) -> None:
    """Adds to `options` what the arguments say. Ends the process when they are wrong."""
    parser = parser_for(arguments[0] if arguments else "")
    _, unknown = parser.parse_known_args(arguments, options)
    if unknown:
        script = getattr(options, "config", "")
        is_for_script = "mpirun" in options and script.endswith(".py")
        hint = f"; those of {script} come after --, as in: -- {shlex.join(unknown)}" if is_for_script else ""
        parser.error(f"unrecognized arguments: {shlex.join(unknown)}{hint}")


# what several commands have


def whole(text: str) -> int:
    """A whole number. Its bounds are checked where it is used."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r:.40}") from None


def add_settings(parser: Parser, file: str, text: str, example: str = "coding.parts=2") -> None:
    """A YAML file. example: of --set."""
    parser.add_argument("config", metavar=file, help=text)
    text = f"change a setting, for example --set {example} (repeatable)"
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help=text)


def add_dedicated_server(parser: Parser) -> None:
    text = "rank 0 is nothing but the server, so that there is a worker less (--set dedicated_server=true)"
    name, const = "--dedicated-server", "dedicated_server=true"
    parser.add_argument(name, action="append_const", const=const, dest="overrides", help=text)


def add_hosts(parser: Parser, text: str) -> None:
    """Where ranks start. text: what the command does on hosts."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--host", metavar="LIST", help=f"{text}, for example a:5,b:4")
    where.add_argument("--hostfile", metavar="FILE", help=f"{text}, listed in a file in mpirun's own format")


def add_resume(parser: Parser, text: str = "continue from the newest checkpoint in the run directory") -> None:
    parser.add_argument("--resume", action="store_true", help=text)


def add_json(parser: Parser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the table to FILE as JSON")


def add_plot(parser: Parser, what: str) -> None:
    text = f"draw the {what} to FILE (.png, .pdf, .svg; needs matplotlib)"
    parser.add_argument("--plot", metavar="FILE", help=text)


def cell(number: float | None, how: str, scale: float = 1.0) -> str:
    """The text of a number in a table; empty when it is unknown."""
    return "" if number is None else format(scale * number, how)
