"""The command `psgc`: its arguments, and its exit code (0 done, 1 the run failed, 2 wrong arguments or settings)."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from psgc import __version__
from psgc.errors import PsgcError, one_line, visible
from psgc.machine import THREADS
from psgc.paths import expanded
from psgc.terminal import open_missing_streams, say, say_traceback

EXAMPLES = """examples:
  psgc launch run.yaml -n 9                        run a server and 8 workers on this machine
  mpirun -n 9 psgc train run.yaml                  the same by hand, without fault tolerance
  psgc launch run.yaml -n 9 --set coding.parts=2   change a setting
  psgc launch train.py -n 9 -- --epochs 3          run a script with psgc.torch, with arguments of its own
  psgc doctor                                      check what a run on this machine would survive
  psgc report runs/quickstart                      write an HTML page about a run
  psgc submit run.yaml --nodes 4 --ranks-per-node 8 --time 2:00:00 --go    submit a run to SLURM
  psgc simulate scripts/simulate.yaml              compare schedules in simulation
  psgc replay runs/example                         find better settings for a recorded run
"""
AFTER = (
    "What follows -- goes to the script, or with a YAML file to mpirun, for example: -- --map-by core -x HF_HOME. "
    "Options of mpirun's for a script: --mpirun='--map-by core -x HF_HOME'"
)

# Arguments that name files. (run.yaml is passed on to ranks and batch scripts, and expanded where it is read.)
PATHS = ("assignment", "directory", "hostfile", "json", "output", "plot")
GRID = ("replication", "chunks_per_worker", "parts", "schedule")  # what psgc replay varies


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `psgc` with these arguments (default: the command line's) and exit."""
    open_missing_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    own = given[: given.index("--")] if given[:1] in (["launch"], ["submit"]) and "--" in given else given
    options = argparse.Namespace(given=given, debug=False, after=given[len(own) + 1 :])
    try:
        _parse(own, options)
        for name in PATHS:
            if (path := getattr(options, name, None)) is not None:
                setattr(options, name, expanded(path))
        if options.run not in (_launch, _doctor, _train):  # whose ranks take their own share
            _limit_threads()
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
    parser = _parser()
    _, unknown = parser.parse_known_args(arguments, options)
    if unknown:
        script = getattr(options, "config", "")
        is_for_script = options.run in (_launch, _submit) and script.endswith(".py")
        hint = f"; those of {script} come after --, as in: -- {shlex.join(unknown)}" if is_for_script else ""
        parser.error(f"unrecognized arguments: {shlex.join(unknown)}{hint}")


class _Parser(argparse.ArgumentParser):
    """Escapes what a terminal would obey, as all output of psgc does."""

    def error(self, message: str) -> NoReturn:
        super().error(visible(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        for line in message.removesuffix("\n").split("\n"):
            say(line, error=file is sys.stderr)


def _parser() -> _Parser:
    parser = _Parser(
        prog="psgc",
        description="Exact synchronous distributed training that never waits for its slowest machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"psgc {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    debug = _Parser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    resume = _Parser(add_help=False)
    resume.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in the run directory"
    )
    run = _settings_parser("run.yaml", "settings of the run, see docs/training.md", "coding.parts=2")
    program = _settings_parser(
        "run.yaml|train.py", "settings of the run, or a script, see docs/training.md", "coding.parts=2"
    )
    text = "options of mpirun's, for example --mpirun='--map-by core' (repeatable)"
    program.add_argument("--mpirun", action="append", default=[], metavar="OPTIONS", help=text)

    def command(
        name: str,
        function: Callable[[argparse.Namespace], int],
        text: str,
        parents: Sequence[_Parser] = (),
        epilog: str = "",
    ) -> _Parser:
        description = f"{text[0].upper()}{text[1:]}."
        added = commands.add_parser(name, help=text, description=description, parents=[*parents, debug], epilog=epilog)
        added.set_defaults(run=function)
        return added

    text = "run one rank of a training (started by mpirun); a PyTorch model without mpirun in one process"
    command("train", _train, text, [run, resume])

    launch = command(
        "launch", _launch, "train, with the right mpirun command for this machine", [program, resume], AFTER
    )
    add = launch.add_argument
    add(
        "-n", type=int, required=True, dest="ranks", metavar="RANKS", help="number of ranks: one server and the workers"
    )
    add("--print", action="store_true", dest="print_only", help="print the mpirun command and exit")
    _add_hosts(launch, "run on these hosts")
    text = "let MPI use all its transports (UCX, InfiniBand); a dead rank then ends the run"
    add("--no-fault-tolerance", action="store_false", dest="fault_tolerance", help=text)
    text = "in a SLURM job that receives SIGUSR1 this long before its time limit: stop and requeue the job then, "
    add("--requeue", type=float, metavar="SECONDS", help=text + "and after the loss of a host")

    submit = command("submit", _submit, "write or submit a SLURM batch script for a run or a sweep", [program], AFTER)
    add = submit.add_argument
    add("--nodes", type=int, required=True, metavar="N", help="number of nodes")
    add("--ranks-per-node", type=int, required=True, metavar="R", help="ranks on each node; the first is the server")
    add("--time", required=True, metavar="H:M:S", help="time limit of the job")
    add("--cpus-per-rank", type=int, default=1, metavar="C", help="cores and BLAS threads of a rank (default: 1)")
    add("--gpus-per-rank", type=int, default=0, metavar="G", help="GPUs of a rank (default: 0)")
    add("--partition", metavar="NAME", help="partition to run in")
    add("--account", metavar="NAME", help="account to charge")
    add("--name", help="name of the job and of its log (default: that of the YAML file or script)")
    text = "submit a job array with one run for each value; with several --sweep, one for each combination"
    add("--sweep", action="append", default=[], dest="sweeps", metavar="KEY=VALUE,...", help=text)
    text = "stop with a checkpoint this long before the time limit (default: 60)"
    add("--warning", type=int, default=60, metavar="SECONDS", help=text)
    text = "add an option of sbatch, for example --sbatch=--qos=long (repeatable)"
    add("--sbatch", action="append", default=[], dest="options", metavar="OPTION", help=text)
    add("--local-dir", metavar="DIR", help="copy the data to DIR on each node first, for example '$TMPDIR'")
    add("--resume", action="store_true", help="continue from the newest checkpoint already at the first start")
    add(
        "--output",
        metavar="FILE",
        help="write the script to FILE (default: the run directory, or the script's name, with .sbatch)",
    )
    add("--go", action="store_true", help="submit the script as well")

    doctor = command("doctor", _doctor, "test this machine: MPI, GPU, SLURM, disk, and what a run would survive")
    doctor.add_argument("output", nargs="?", default="runs", help="directory that runs will write to (default: runs)")
    doctor.add_argument("-n", type=int, dest="ranks", metavar="RANKS", help="number of ranks of the planned run")
    _add_hosts(doctor, "test these hosts")

    report = command("report", _report, "write figures and an HTML page about a run")
    add = report.add_argument
    add("directory", metavar="RUN_DIR", help="run directory, for example runs/quickstart")
    add("--iteration", type=int, metavar="K", help="show iteration K in detail (default: the slowest)")
    add("--output", metavar="DIR", help="write to DIR (default: RUN_DIR/report)")
    add("--tensorboard", action="store_true", help="also write event files for TensorBoard")

    simulation = _settings_parser("sim.yaml", "settings of the simulation, see scripts/simulate.yaml", "trials=100")
    simulate = command("simulate", _simulate, "compare schedules on random, given or recorded speeds", [simulation])
    simulate.add_argument("--json", metavar="FILE", help="write the table to FILE as JSON")
    simulate.add_argument("--plot", metavar="FILE", help="draw the table to FILE (.png, .pdf, .svg; needs matplotlib)")

    replay = command("replay", _replay, "predict a recorded run under other settings and recommend some")
    add = replay.add_argument
    add("directory", metavar="RUN_DIR", help="run directory that psgc train wrote")
    for name in GRID[:-1]:
        text = "values to try (default: some around the run's own)"
        add(f"--{name.replace('_', '-')}", metavar="N,...", help=text)
    add("--schedule", metavar="NAME,...", help="schedules to try (default: all but random)")
    add("--json", metavar="FILE", help="write the whole table to FILE as JSON")

    order = command("order", _order, "order the queues of an assignment matrix; print Q_max and its lower bound")
    add = order.add_argument
    add("assignment", metavar="assignment.npy", help="0/1 matrix, chunks x workers (.npy or sparse .npz)")
    add("--parts", type=int, metavar="L", help="number of parts to order for (default: every possible number)")
    add("--output", metavar="FILE", help="write the position of each chunk to FILE (.npy or sparse .npz)")
    return parser


def _settings_parser(file: str, text: str, example: str) -> _Parser:
    """The arguments of a command that reads a YAML file."""
    parser = _Parser(add_help=False)
    parser.add_argument("config", metavar=file, help=text)
    text = f"change a setting, for example --set {example} (repeatable)"
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help=text)
    return parser


def _add_hosts(parser: _Parser, text: str) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--host", metavar="LIST", help=f"{text}, for example a:5,b:4")
    where.add_argument("--hostfile", metavar="FILE", help=f"{text}, listed in a file in mpirun's own format")


def _train(options: argparse.Namespace) -> NoReturn:
    from psgc.config import has_torch_problem
    from psgc.errors import UserError

    if options.config.endswith(".py"):
        how = f"psgc launch {options.config} -n RANKS, or: mpirun -n RANKS python {options.config}"
        raise UserError(f"{options.config} is a script, which is started with: {how}")
    if has_torch_problem(options.config, options.overrides):
        from psgc.launching import torch_problem
        from psgc.training.launched import ranks

        if ranks() > 1:  # alone it has as many threads as `python train.py`
            _limit_threads()
        torch_problem.train(options.config, options.overrides, options.resume, options.debug)
    _limit_threads()
    stopped_by: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: stopped_by.append(number))
    # this imports MPI, NumPy and the rest: only once signals are caught and threads limited
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
        **_after(options),
    )


def _after(options: argparse.Namespace) -> dict[str, Any]:
    """Who gets what follows --, and the options of --mpirun."""
    from psgc.launching.script import is_script, mpirun_options

    for_mpirun = mpirun_options(options.mpirun)
    if is_script(options.config):
        return {"for_mpirun": for_mpirun, "arguments": options.after}
    return {"for_mpirun": for_mpirun + options.after}


def _submit(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from psgc.launching.slurm_script import Job, job_name
    from psgc.launching.submit import submit

    options.name = options.name or job_name(options.config)
    return submit(
        options.config,
        Job(**{field.name: getattr(options, field.name) for field in fields(Job)}),
        options.overrides,
        options.sweeps,
        resume=options.resume,
        local_dir=options.local_dir,
        output=options.output,
        go=options.go,
        written_by=["psgc", *options.given],
        **_after(options),
    )


def _doctor(options: argparse.Namespace) -> int:
    from psgc.diagnosis.doctor import doctor
    from psgc.launching.mpirun import Placement

    return doctor(options.output, options.ranks, Placement(options.host, options.hostfile))


def _report(options: argparse.Namespace) -> int:
    from psgc.reporting.report import report

    return report(options.directory, options.iteration, options.output, options.tensorboard)


def _simulate(options: argparse.Namespace) -> int:
    from psgc.simulation.command import simulate

    return simulate(options.config, options.overrides, options.json, options.plot)


def _replay(options: argparse.Namespace) -> int:
    from psgc.simulation.replay_command import replay

    return replay(options.directory, {name: getattr(options, name) for name in GRID}, options.json)


def _order(options: argparse.Namespace) -> int:
    from psgc.order import order

    return order(options.assignment, options.parts, options.output)


def _limit_threads() -> None:
    """Limit BLAS to this rank's share of the cores. (It uses all by default, and reads this when it is loaded.)"""
    local = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or os.environ.get("MPI_LOCALNRANKS") or "1"
    share = (os.cpu_count() or 1) // int(local) if local.isdigit() and int(local) else 1
    share = max(1, min(share, len(os.sched_getaffinity(0))))  # SLURM and mpirun may have bound this rank to fewer cores
    for name in THREADS:
        os.environ.setdefault(name, str(share))
