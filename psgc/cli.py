"""The command `psgc`: its exit code (0 done, 1 the run failed, 2 wrong arguments or settings), and its errors.

`psgc.commands` says what each command takes, and what runs it.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from psgc.commands import ADD
from psgc.commands.parser import Commands
from psgc.errors import PsgcError, one_line
from psgc.machine import limit_threads
from psgc.paths import expanded
from psgc.terminal import open_missing_streams, say, say_traceback

EXAMPLES = """examples:
  psgc launch run.yaml -n 9                        run a server and 8 workers on this machine
  mpirun -n 9 psgc train run.yaml                  the same by hand, without fault tolerance
  psgc launch run.yaml -n 9 --set coding.parts=2   change a setting
  psgc launch train.py -n 9 -- --epochs 3          run a script with psgc.torch, with arguments of its own
  psgc sweep run.yaml -n 9 --set optimizer.lr=0.1,0.3    a run for each value, one after the other
  psgc doctor                                      check what a run on this machine would survive
  psgc report runs/quickstart                      write an HTML page about a run
  psgc compare runs/*                              print a table of several runs
  psgc submit run.yaml --nodes 4 --ranks-per-node 8 --time 2:00:00 --go    submit a run to SLURM
  psgc simulate scripts/simulate.yaml              compare schedules in simulation
  psgc replay runs/example                         find better settings for a recorded run
"""
WITH_MORE = ("launch", "sweep", "submit")  # commands that pass on what follows --
# Arguments that name files. (run.yaml is passed on to ranks and batch scripts, and expanded where it is read.)
PATHS = ("assignment", "directory", "hostfile", "json", "output", "plot")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `psgc` with these arguments (default: the command line's) and exit."""
    open_missing_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    own = given[: given.index("--")] if given and given[0] in WITH_MORE and "--" in given else given
    options = argparse.Namespace(given=given, debug=False, after=given[len(own) + 1 :])
    try:
        _parse(own, options)
        for name in PATHS:
            if (path := getattr(options, name, None)) is not None:
                setattr(options, name, expanded(path))
        if options.limits_threads:
            limit_threads()
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


def _parse(arguments: Sequence[str], options: argparse.Namespace) -> None:
    """Adds to `options` what the arguments say. Ends the process when they are wrong."""
    commands = Commands(EXAMPLES)
    for add in ADD:
        add(commands)
    _, unknown = commands.parser.parse_known_args(arguments, options)
    if unknown:
        script = getattr(options, "config", "")
        is_for_script = "mpirun" in options and script.endswith(".py")
        hint = f"; those of {script} come after --, as in: -- {shlex.join(unknown)}" if is_for_script else ""
        commands.parser.error(f"unrecognized arguments: {shlex.join(unknown)}{hint}")
