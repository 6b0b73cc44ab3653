"""`psgc launch`: train, with the right mpirun command for this machine. Also what `psgc sweep` and `submit` share."""

import shlex

from psgc.cli import Options, Parser, add_dedicated_server, add_hosts, add_resume, add_settings, whole
from psgc.config import TorchConfig, load
from psgc.launching.launch import command_for, environ_for, launch
from psgc.launching.mpirun import Placement, find_mpirun
from psgc.launching.script import Program, is_script, mpirun_options
from psgc.terminal import say


def add_arguments(parser: Parser) -> None:
    add_program(parser)
    add_resume(parser)
    add_ranks(parser)
    parser.add_argument("--print", action="store_true", dest="print_only", help="print the mpirun command and exit")
    text = "in a cluster job that receives SIGUSR1 this long before its time limit: stop and requeue the job then, "
    parser.add_argument("--requeue", type=float, metavar="SECONDS", help=text + "and after the loss of a host")


def run(options: Options) -> int:
    program, placement = program_of(options), placement_of(options)
    if not options.print_only:
        return launch(program, placement, options.requeue)
    print_command(program, placement)
    return 0


def print_command(program: Program, placement: Placement) -> None:
    """Print the command that `launch` runs, and on stderr the memory that each rank will need, if known."""
    config = None if program.is_script else load(program.path, program.overrides)
    environ = environ_for(program.told)
    command, additions = command_for(program, placement, environ, find_mpirun(environ))
    shown = (f"{name}={shlex.quote(value)}" for name, value in {**program.told, **additions}.items())
    say(" ".join([*shown, shlex.join(command)]))
    if config is not None and not isinstance(config, TorchConfig) and not program.resume:
        from psgc.run.memory import expected_memory  # with NumPy, which nothing else here needs

        num_workers = config.workers(placement.ranks)
        if memory := expected_memory(config, program.path, program.overrides, num_workers):
            say(memory, error=True)  # stdout has only the command


def add_program(parser: Parser) -> None:
    parser.epilog = (
        "What follows -- goes to the script, or with a YAML file to mpirun, for example: -- --map-by core -x HF_HOME. "
        "Options of mpirun's for a script: --mpirun='--map-by core -x HF_HOME'"
    )
    add_settings(parser, "run.yaml|train.py", "settings of the run, or a script, see docs/training.md")
    add_dedicated_server(parser)
    text = "options of mpirun's, for example --mpirun='--map-by core' (repeatable)"
    parser.add_argument("--mpirun", action="append", default=[], metavar="OPTIONS", help=text)


def add_ranks(parser: Parser) -> None:
    text = "number of ranks: each is a worker, and the first one the server as well"
    parser.add_argument("-n", type=whole, required=True, dest="ranks", metavar="RANKS", help=text)
    text = "let MPI use all its layers (UCX and the like); a dead rank then ends the run"
    parser.add_argument("--no-fault-tolerance", action="store_false", dest="fault_tolerance", help=text)
    add_hosts(parser, "run on these hosts")


def program_of(options: Options) -> Program:
    """What is run; what follows -- is for a script, or for mpirun."""
    named = {name: getattr(options, name) for name in ("overrides", "resume", "debug")}
    for_mpirun = mpirun_options(options.mpirun)
    if is_script(options.config):
        return Program(options.config, arguments=options.after, for_mpirun=for_mpirun, **named)
    return Program(options.config, for_mpirun=for_mpirun + options.after, **named)


def placement_of(options: Options) -> Placement:
    return Placement(options.ranks, options.host, options.hostfile, options.fault_tolerance)
