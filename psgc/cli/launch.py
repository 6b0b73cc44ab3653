"""`psgc launch`: train, with the right mpirun command for this machine. Also what `psgc sweep` and `submit` share."""

from psgc.cli import Options, Parser, add_dedicated_server, add_hosts, add_resume, add_settings, whole
from psgc.launching.launch import launch, print_command
from psgc.launching.mpirun import Placement
from psgc.launching.script import Program, is_script, mpirun_options


def add_arguments(parser: Parser) -> None:
    add_program(parser)
    add_resume(parser)
    add_ranks(parser)
    parser.add_argument("--print", action="store_true", dest="print_only", help="print the mpirun command and exit")
    text = "in a cluster job that receives SIGUSR1 this long before its time limit: stop and requeue the job then, "
    parser.add_argument("--requeue", type=float, metavar="SECONDS", help=text + "and after the loss of a host")


def run(options: Options) -> int:
    program, placement = program_of(options), placement_of(options)
    return print_command(program, placement) if options.print_only else launch(program, placement, options.requeue)


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
