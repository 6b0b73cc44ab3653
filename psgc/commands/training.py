"""The commands that train: `psgc train`, `psgc launch`, `psgc sweep` and `psgc submit`."""

import signal
from typing import Any, NoReturn

from psgc.commands.parser import Commands, Options, Parser, hosts, resume, settings
from psgc.machine import limit_threads

AFTER = (
    "What follows -- goes to the script, or with a YAML file to mpirun, for example: -- --map-by core -x HF_HOME. "
    "Options of mpirun's for a script: --mpirun='--map-by core -x HF_HOME'"
)
EXAMPLE = "coding.parts=2"


def add_train(commands: Commands) -> None:
    text = "run one rank of a training (started by mpirun); a PyTorch model without mpirun in one process"
    run = settings("run.yaml", "settings of the run, see docs/training.md", EXAMPLE)
    commands.add("train", train, text, [run, resume()], limits_threads=False)


def train(options: Options) -> NoReturn:
    from psgc.config import has_torch_problem
    from psgc.errors import UserError

    if options.config.endswith(".py"):
        how = f"psgc launch {options.config} -n RANKS, or: mpirun -n RANKS python {options.config}"
        raise UserError(f"{options.config} is a script, which is started with: {how}")
    if has_torch_problem(options.config, options.overrides):
        from psgc.launching import torch_problem
        from psgc.training.launched import ranks

        if ranks() > 1:  # alone it has as many threads as `python train.py`
            limit_threads()
        torch_problem.train(options.config, options.overrides, options.resume, options.debug)
    limit_threads()
    stopped_by: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: stopped_by.append(number))
    # this imports MPI, NumPy and the rest: only once signals are caught and threads limited
    from psgc.training.train import train

    train(options.config, options.overrides, options.debug, stopped_by, options.resume)


def add_launch(commands: Commands) -> None:
    text = "train, with the right mpirun command for this machine"
    parents = [_program(), resume(), _ranks(), hosts("run on these hosts")]
    add = commands.add("launch", launch, text, parents, epilog=AFTER, limits_threads=False)
    add("--print", action="store_true", dest="print_only", help="print the mpirun command and exit")
    text = "in a SLURM job that receives SIGUSR1 this long before its time limit: stop and requeue the job then, "
    add("--requeue", type=float, metavar="SECONDS", help=text + "and after the loss of a host")


def launch(options: Options) -> int:
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


def add_sweep(commands: Commands) -> None:
    text = "train once for each combination of settings, one run after the other, and compare the runs"
    run = settings("run.yaml", "settings of the runs, see docs/training.md", "optimizer.lr=0.1,0.3 for two runs")
    epilog = "Values are separated as in a YAML list: a,[b, c],'d,e' are three. What follows -- goes to mpirun."
    going_on = resume("leave out the runs that are done, and continue the others from their newest checkpoints")
    parents = [run, going_on, _ranks(), hosts("run on these hosts")]
    commands.add("sweep", sweep, text, parents, epilog=epilog, limits_threads=False)


def sweep(options: Options) -> int:
    from psgc.launching.mpirun import Placement
    from psgc.launching.sweep import sweep

    own = options.given[: -len(options.after) - 1] if "--" in options.given else options.given
    again = [*own, *([] if options.resume else ["--resume"]), *(["--", *options.after] if options.after else [])]
    return sweep(
        options.config,
        options.ranks,
        options.overrides,
        ["psgc", *again],
        debug=options.debug,
        resume=options.resume,
        placement=Placement(options.host, options.hostfile),
        fault_tolerance=options.fault_tolerance,
        for_mpirun=options.after,
    )


def add_submit(commands: Commands) -> None:
    text = "write or submit a SLURM batch script for a run or a sweep"
    add = commands.add("submit", submit, text, [_program()], epilog=AFTER)
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
    text = "write the script to FILE (default: the run directory, or the script's name, with .sbatch)"
    add("--output", metavar="FILE", help=text)
    add("--go", action="store_true", help="submit the script as well")


def submit(options: Options) -> int:
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


def _program() -> Parser:
    """A YAML file or a script."""
    parser = settings("run.yaml|train.py", "settings of the run, or a script, see docs/training.md", EXAMPLE)
    text = "options of mpirun's, for example --mpirun='--map-by core' (repeatable)"
    parser.add_argument("--mpirun", action="append", default=[], metavar="OPTIONS", help=text)
    return parser


def _ranks() -> Parser:
    parser = Parser(add_help=False)
    text = "number of ranks: one server and the workers"
    parser.add_argument("-n", type=int, required=True, dest="ranks", metavar="RANKS", help=text)
    text = "let MPI use all its transports (UCX, InfiniBand); a dead rank then ends the run"
    parser.add_argument("--no-fault-tolerance", action="store_false", dest="fault_tolerance", help=text)
    return parser


def _after(options: Options) -> dict[str, Any]:
    """Who gets what follows --, and the options of --mpirun."""
    from psgc.launching.script import is_script, mpirun_options

    for_mpirun = mpirun_options(options.mpirun)
    if is_script(options.config):
        return {"for_mpirun": for_mpirun, "arguments": options.after}
    return {"for_mpirun": for_mpirun + options.after}
