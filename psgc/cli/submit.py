"""`psgc submit`: writes or submits the batch script of a run or a script, or of a sweep over settings."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from psgc.cli import Options, Parser, whole
from psgc.cli.launch import add_program, program_of
from psgc.config import Config, Data, load
from psgc.disk import escaped
from psgc.errors import UserError
from psgc.launching.mpirun import check_extra
from psgc.launching.points import check_runs, data_files, first_point, sweep_points
from psgc.launching.scheduler import Job, batch_script, job_name
from psgc.launching.schedulers import SCHEDULERS, Slurm, usual
from psgc.launching.script import check_script
from psgc.record.files import check_ours, write_output_text, writing
from psgc.terminal import say
from psgc.yaml_source import printable

ELSEWHERE = "; if only the nodes have it, submit from one of them, in SLURM: srun psgc submit ..."


def add_arguments(parser: Parser) -> None:
    add_program(parser)
    add = parser.add_argument
    text = "the scheduler to write for (default: the one whose commands are on the PATH, else slurm)"
    add("--scheduler", choices=[*SCHEDULERS], help=text)
    add("--nodes", type=whole, required=True, metavar="N", help="number of nodes")
    add("--ranks-per-node", type=whole, required=True, metavar="R", help="ranks on each node, all workers")
    add("--time", required=True, metavar="H:M:S", help="time limit of the job")
    add("--cpus-per-rank", type=whole, default=1, metavar="C", help="cores and BLAS threads of a rank (default: 1)")
    add("--gpus-per-rank", type=whole, default=0, metavar="G", help="GPUs of a rank (default: 0)")
    add("--partition", "--queue", metavar="NAME", help="partition, or queue, to run in")
    add("--account", metavar="NAME", help="account to charge")
    add("--name", help="name of the job and of its log (default: that of the YAML file or script)")
    text = "submit a job array with one run for each value; with several --sweep, one for each combination"
    add("--sweep", action="append", default=[], dest="sweeps", metavar="KEY=VALUE,...", help=text)
    text = "stop with a checkpoint this long before the time limit, in LSF whole minutes (default: 60)"
    add("--warning", type=whole, default=60, metavar="SECONDS", help=text)
    text = "add an option of sbatch, qsub or bsub, for example --option=--qos=long (repeatable)"
    add("--option", action="append", default=[], dest="options", metavar="OPTION", help=text)
    add("--local-dir", metavar="DIR", help="copy the data to DIR on each node first (SLURM), for example '$TMPDIR'")
    add("--resume", action="store_true", help="continue from the newest checkpoint already at the first start")
    text = "write the script to FILE (default: the run directory, or the script's name, with .sbatch, .pbs or .lsf)"
    add("--output", metavar="FILE", help=text)
    add("--go", action="store_true", help="submit the script as well")


def run(options: Options) -> int:
    options.scheduler = SCHEDULERS[options.scheduler or usual()]
    options.name = options.name or job_name(options.config)
    job = Job(**{field.name: getattr(options, field.name) for field in fields(Job)})
    program, scheduler = program_of(options), job.scheduler
    path, overrides, local_dir = program.path, program.overrides, options.local_dir
    check_extra(program.for_mpirun)
    if local_dir is not None and not isinstance(scheduler, Slurm):
        raise UserError("--local-dir: copies with SLURM's sbcast; with other schedulers, set data.path to a local copy")
    points: list[list[str]] = []
    data: dict[str, str] = {}
    if program.is_script:
        check_script(program)
        if wrong := "--sweep" if options.sweeps else "--local-dir" if local_dir is not None else "":
            raise UserError(f"{wrong}: for runs of a YAML file, {printable(path)} is a script")
        name = Path(path).stem
    else:
        config = load(path, [*overrides, *first_point(options.sweeps)])
        output = escaped(config.output)  # its variables are expanded already
        points = sweep_points(options.sweeps, output, overrides)
        check_runs(path, overrides, points, job.ranks, ELSEWHERE)  # not after the job has waited in the queue
        data = _data_to_copy(config, options.sweeps) if local_dir is not None else {}
        name = config.output.rstrip("/")
    script = Path(options.output or f"{name}{scheduler.suffix}")
    if options.output is None:
        check_ours(script, "--output FILE")
    text = batch_script(program, job, points, local_dir, data, ["psgc", *options.given], script)
    with writing(script):
        script.parent.mkdir(parents=True, exist_ok=True)
        write_output_text(script, text)
    runs = f"{len(points)} runs" if points else "a run"
    what = f"{runs} on {job.nodes} x {job.ranks_per_node} ranks"
    if not options.go:
        say(f"{script}: {what}; submit it with: {scheduler.by_hand(script, len(points))}")
        return 0
    number = scheduler.submit(script, len(points))
    log = scheduler.log(job.name, number, len(points))
    say(f"job {number}: {what}, script {script}, log {log}")
    return 0


def _data_to_copy(config: Config, sweeps: Sequence[str]) -> dict[str, str]:
    if config.data is None:
        raise UserError("--local-dir: the YAML has no data")
    if not isinstance(config.data, Data):
        raise UserError("--local-dir: copies the files of data.path, but data.python reads the rows here")
    if any(sweep.lstrip().startswith("data") for sweep in sweeps):
        raise UserError("--local-dir: the data of all runs must be the same, but --sweep changes it")
    return data_files(config)
