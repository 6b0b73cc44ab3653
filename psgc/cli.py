"""The command `psgc`: what it takes, and which exit code it gives (0 done, 1 the run failed, 2 the user's mistake)."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from psgc import __version__
from psgc.errors import PsgcError, one_line, visible
from psgc.paths import expanded
from psgc.terminal import open_missing_streams, say, say_traceback

EXAMPLES = """examples:
  psgc launch run.yaml -n 9                        a server and 8 workers on this machine
  mpirun -n 9 psgc train run.yaml                  by hand: no fault tolerance, and mpirun's exit codes
  psgc launch run.yaml -n 9 --set coding.parts=2   with a setting changed
  psgc doctor                                      what a run here would survive
  psgc report runs/quickstart                      what a run did, as a page to look at
  psgc submit run.yaml --nodes 4 --ranks-per-node 8 --time 2:00:00 --go    the same through SLURM
  psgc simulate scripts/simulate.yaml              how long schedules would take
  psgc replay runs/example                         how long a recorded run would, with other settings
"""


MORE = "Arguments after -- are handed to mpirun, for example: -- --map-by core -x HF_HOME"

# Arguments that name files. The YAML's is passed on to ranks and batch scripts as it is: whoever reads it expands it.
PATHS = ("assignment", "directory", "hostfile", "json", "output", "plot")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `psgc` with these arguments (default: the command line's) and exit."""
    open_missing_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    own = given[: given.index("--")] if given[:1] in (["launch"], ["submit"]) and "--" in given else given
    options = argparse.Namespace(given=given, debug=False, for_mpirun=given[len(own) + 1 :])
    try:
        _parser().parse_args(own, options)
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


class _Parser(argparse.ArgumentParser):
    """Prints as all of psgc does."""

    def error(self, message: str) -> NoReturn:
        super().error(visible(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        for line in message.removesuffix("\n").split("\n"):
            say(line, error=file is sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="psgc",
        description="Exact synchronous distributed training that never waits for its slowest machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"psgc {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train, inside the ranks that mpirun started")
    _common(train, "run.yaml", "the run, see README.md", "coding.parts=2")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run directory")
    train.set_defaults(run=_train)

    launch = commands.add_parser("launch", help="find the right mpirun line for this machine and run it", epilog=MORE)
    _common(launch, "run.yaml", "the run, see README.md", "coding.parts=2")
    launch.add_argument(
        "-n", type=int, required=True, dest="ranks", metavar="RANKS", help="ranks: one server, the others workers"
    )
    launch.add_argument("--print", action="store_true", dest="print_only", help="only print the mpirun line")
    launch.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run directory")
    where = launch.add_mutually_exclusive_group()
    where.add_argument("--host", metavar="LIST", help="run there instead of here, for example a:5,b:4")
    where.add_argument("--hostfile", metavar="FILE", help="the same from a file, in mpirun's own format")
    launch.add_argument(
        "--no-fault-tolerance",
        action="store_false",
        dest="fault_tolerance",
        help="leave MPI all its transports (UCX, InfiniBand): a dead rank then ends the run, and --resume goes on",
    )
    launch.add_argument(
        "--requeue",
        type=float,
        metavar="SECONDS",
        help="in a SLURM job that gets SIGUSR1 so many seconds before its time limit: end by then, and put the job "
        "back into the queue; the same after the loss of a host",
    )
    launch.set_defaults(run=_launch)

    submit = commands.add_parser(
        "submit", help="write the SLURM batch script of a run or a sweep, or submit it", epilog=MORE
    )
    _common(submit, "run.yaml", "the run, see README.md", "coding.parts=2")
    submit.add_argument("--nodes", type=int, required=True, metavar="N", help="nodes of the cluster")
    submit.add_argument(
        "--ranks-per-node", type=int, required=True, metavar="R", help="on the first, one of them serves"
    )
    submit.add_argument("--time", required=True, metavar="H:M:S", help="the time limit of a start")
    submit.add_argument("--cpus-per-rank", type=int, default=1, metavar="C", help="also the threads of BLAS (1)")
    submit.add_argument("--gpus-per-rank", type=int, default=0, metavar="G")
    submit.add_argument("--partition", metavar="NAME")
    submit.add_argument("--account", metavar="NAME")
    submit.add_argument("--name", help="of the job and its log (the YAML's)")
    submit.add_argument(
        "--sweep",
        action="append",
        default=[],
        dest="sweeps",
        metavar="KEY=VALUE,...",
        help="a job array, a run for each value; repeat it for every combination",
    )
    submit.add_argument(
        "--warning",
        type=int,
        default=60,
        metavar="SECONDS",
        help="before the time limit, to write a checkpoint in (60)",
    )
    submit.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="one more for SLURM, as in --sbatch=--qos=long"
    )
    submit.add_argument(
        "--local-dir", metavar="DIR", help="copy the data there on each node first, for example '$TMPDIR'"
    )
    submit.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint at the first start, too"
    )
    submit.add_argument("--output", metavar="FILE", help="the script (the run directory's name with .sbatch)")
    submit.add_argument("--go", action="store_true", help="submit it as well")
    submit.set_defaults(run=_submit)

    doctor = commands.add_parser("doctor", help="probe this machine: what a run here survives, how to launch it")
    doctor.add_argument("output", nargs="?", default="runs", help="the directory that runs will write to (runs)")
    doctor.add_argument("-n", type=int, dest="ranks", metavar="RANKS", help="ranks of the run to come")
    where = doctor.add_mutually_exclusive_group()
    where.add_argument("--host", metavar="LIST", help="probe these hosts, for example a:5,b:4")
    where.add_argument("--hostfile", metavar="FILE", help="the same from a file, in mpirun's own format")
    doctor.add_argument("--debug", action="store_true", help="show the traceback of an error")
    doctor.set_defaults(run=_doctor)

    report = commands.add_parser("report", help="draw what a run did: figures, and a page with all of it")
    report.add_argument("directory", metavar="RUN_DIR", help="the run directory, for example runs/quickstart")
    report.add_argument("--iteration", type=int, metavar="K", help="show this one worker by worker (the slowest)")
    report.add_argument("--output", metavar="DIR", help="write it there (RUN_DIR/report)")
    report.add_argument("--tensorboard", action="store_true", help="also write event files for TensorBoard")
    report.add_argument("--debug", action="store_true", help="show the traceback of an error")
    report.set_defaults(run=_report)

    simulate = commands.add_parser("simulate", help="simulate schedules on random, given or recorded speeds")
    _common(simulate, "sim.yaml", "the simulation, see scripts/simulate.yaml", "trials=100")
    simulate.add_argument("--json", metavar="FILE", help="write the table there as JSON")
    simulate.add_argument("--plot", metavar="FILE", help="draw it there (.png, .pdf, .svg); needs matplotlib")
    simulate.set_defaults(run=_simulate)

    replay = commands.add_parser("replay", help="what a recorded run would take with other settings; recommends some")
    replay.add_argument("directory", metavar="RUN_DIR", help="the run directory, the output of psgc train")
    for option, what in (
        ("--replication", "workers that hold a chunk"),
        ("--chunks-per-worker", "chunks"),
        ("--parts", "parts of a gradient"),
    ):
        replay.add_argument(option, metavar="N,...", help=f"{what} to try (some around those of the run)")
    replay.add_argument("--schedule", metavar="NAME,...", help="schedules to try (all but random)")
    replay.add_argument("--json", metavar="FILE", help="write the whole table there as JSON")
    replay.add_argument("--debug", action="store_true", help="show the traceback of an error")
    replay.set_defaults(run=_replay)

    order = commands.add_parser("order", help="order any assignment matrix; Q_max and what no ordering can beat")
    order.add_argument(
        "assignment", metavar="assignment.npy", help="0/1 matrix, chunks x workers (.npy, or .npz: sparse)"
    )
    order.add_argument("--parts", type=int, metavar="L", help="order for this l alone (default: all that are possible)")
    order.add_argument(
        "--output", metavar="FILE", help="write each chunk's place in the queues (.npy, or .npz: sparse)"
    )
    order.add_argument("--debug", action="store_true", help="show the traceback of an error")
    order.set_defaults(run=_order)
    return parser


def _common(parser: argparse.ArgumentParser, config: str, what: str, example: str) -> None:
    parser.add_argument("config", metavar=config, help=what)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help=f"change a value of the YAML, for example --set {example} (repeatable)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _train(options: argparse.Namespace) -> NoReturn:
    stopped_by: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: stopped_by.append(number))
    _limit_threads()
    # this imports MPI, NumPy and the rest: not before signals are caught and threads limited
    from psgc.training.train import train

    train(options.config, options.overrides, options.debug, stopped_by, options.resume)


def _launch(options: argparse.Namespace) -> int:
    from psgc.launching.launch import launch
    from psgc.launching.mpirun import Placement

    return launch(
        options.config,
        options.ranks,
        options.overrides,
        print_only=options.print_only,
        debug=options.debug,
        resume=options.resume,
        placement=Placement(options.host, options.hostfile),
        fault_tolerance=options.fault_tolerance,
        requeue=options.requeue,
        for_mpirun=options.for_mpirun,
    )


def _submit(options: argparse.Namespace) -> int:
    _limit_threads()
    from psgc.launching.slurm_script import Job, job_name
    from psgc.launching.submit import submit

    job = Job(
        nodes=options.nodes,
        ranks_per_node=options.ranks_per_node,
        time=options.time,
        name=options.name or job_name(options.config),
        cpus_per_rank=options.cpus_per_rank,
        gpus_per_rank=options.gpus_per_rank,
        partition=options.partition,
        account=options.account,
        warning=options.warning,
        options=tuple(options.sbatch),
    )
    return submit(
        options.config,
        job,
        options.overrides,
        options.sweeps,
        resume=options.resume,
        local_dir=options.local_dir,
        output=options.output,
        go=options.go,
        written_by=["psgc", *options.given],
        for_mpirun=options.for_mpirun,
    )


def _doctor(options: argparse.Namespace) -> int:
    from psgc.diagnosis.doctor import doctor
    from psgc.launching.mpirun import Placement

    return doctor(options.output, options.ranks, Placement(options.host, options.hostfile))


def _report(options: argparse.Namespace) -> int:
    _limit_threads()
    from psgc.reporting.report import report

    return report(options.directory, options.iteration, options.output, options.tensorboard)


def _simulate(options: argparse.Namespace) -> int:
    _limit_threads()
    from psgc.simulation.command import simulate

    return simulate(options.config, options.overrides, options.json, options.plot)


def _replay(options: argparse.Namespace) -> int:
    _limit_threads()
    from psgc.simulation.replay_command import replay

    grid = ("replication", "chunks_per_worker", "parts", "schedule")
    return replay(options.directory, {name: getattr(options, name) for name in grid}, options.json)


def _order(options: argparse.Namespace) -> int:
    _limit_threads()
    from psgc.order import order

    return order(options.assignment, options.parts, options.output)


def _limit_threads() -> None:
    """Leave each rank its share of the cores: BLAS libraries take all by default, and read this when loaded."""
    environment = os.environ
    local = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") or environment.get("MPI_LOCALNRANKS") or "1"
    share = (os.cpu_count() or 1) // int(local) if local.isdigit() and int(local) else 1
    share = max(1, min(share, len(os.sched_getaffinity(0))))  # SLURM and mpirun may have bound this rank to fewer cores
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(name, str(share))
