"""`psgc submit`: writes or submits the SLURM batch script of a run or a script, or of a sweep over settings."""

import itertools
import re
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from psgc.config import Config, TorchConfig, checked_settings, load, read
from psgc.errors import UserError
from psgc.launching import slurm
from psgc.launching.mpirun import check_extra
from psgc.launching.script import check_script, is_script
from psgc.launching.slurm_script import Job, batch_script
from psgc.plan import even_plan, make_plan
from psgc.regular_files import open_regular
from psgc.reporting.files import write_output_text
from psgc.terminal import say
from psgc.validation import wrong
from psgc.yaml_source import Source, printable

ELSEWHERE = "if only the nodes have it, submit from one of them: srun psgc submit ..."


def submit(
    config_path: str,
    job: Job,
    overrides: Sequence[str] = (),
    sweeps: Sequence[str] = (),
    *,
    resume: bool = False,
    local_dir: str | None = None,
    output: str | None = None,
    go: bool = False,
    written_by: Sequence[str] = ("psgc", "submit"),
    for_mpirun: Sequence[str] = (),
    arguments: Sequence[str] = (),
) -> int:
    """Writes the batch script and, with `go`, submits it. Returns 0.

    sweeps: such as "optimizer.lr=0.1,0.3"; every combination is a run, with its own directory in the run directory.
    resume: continue from the newest checkpoint already at the first start.
    local_dir: a directory on each node's own disk, such as $TMPDIR, to copy the data to first.
    output: the file to write, by default the name of the run directory with .sbatch.
    written_by: the command to name in the script; for_mpirun: further arguments of mpirun.
    arguments: of the Python script that takes the place of a YAML file, if it does; only that has some.
    Raises UserError for wrong settings or scripts and for what SLURM refuses, RunFailed when SLURM does not work.
    """
    check_extra(for_mpirun)
    points: list[list[str]] = []
    data: dict[str, str] = {}
    if is_script(config_path):
        check_script(config_path, arguments, overrides)
        if wrong := "--sweep" if sweeps else "--local-dir" if local_dir is not None else "":
            raise UserError(f"{wrong}: for runs of a YAML file, {printable(config_path)} is a script")
        name = Path(config_path).stem
    else:
        config = load(config_path, overrides)
        points = sweep_points(sweeps, config.output.replace("$", "$$"))  # its variables are expanded already
        _check_all(config_path, job, overrides, points)
        data = _data_to_copy(config, sweeps) if local_dir is not None else {}
        name = config.output.rstrip("/")
    script = Path(output or f"{name}.sbatch")
    text = batch_script(config_path, job, overrides, points, resume, local_dir, data, written_by, for_mpirun, arguments)
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        write_output_text(script, text)
    except OSError as error:
        raise UserError(f"{printable(str(script))}: cannot be written: {error.strerror}") from None
    runs = f"{len(points)} runs" if points else "a run"
    what = f"{runs} on {job.nodes} x {job.ranks_per_node} ranks"
    if not go:
        say(f"{script}: {what}; submit it with: {shlex.join(['sbatch', str(script)])}")
        return 0
    number = slurm.submit(script)
    log = f"{job.name}-{number}{'_*' if points else ''}.log"
    say(f"job {number}: {what}, script {script}, log {log}")
    return 0


def sweep_points(sweeps: Sequence[str], output: str) -> list[list[str]]:
    """The overrides of each run of a sweep, including its directory below `output`. Empty when there is no sweep.

    >>> sweep_points(["seed=1,2"], "runs/a")
    [['seed=1', 'output=runs/a/0_seed=1'], ['seed=2', 'output=runs/a/1_seed=2']]
    """
    axes: dict[str, list[str]] = {}
    for sweep in sweeps:
        key, _, values = sweep.partition("=")
        key = key.strip()
        if key in axes or key == "output":
            reason = "each run of a sweep has its own" if key == "output" else "given twice"
            raise UserError(f"--sweep {printable(sweep)}: {printable(key)}: {reason}")
        axes[key] = [f"{key}={value}" for value in _split(values, sweep)]
    points = [list(point) for point in itertools.product(*axes.values())] if axes else []
    for index, point in enumerate(points):
        name = re.sub(r"[^A-Za-z0-9._=+-]+", "_", "_".join([str(index), *point]))
        point.append(f"output={yaml.safe_dump(f'{output}/{name[:100]}', width=10**6).splitlines()[0]}")
    return points


def _split(values: str, sweep: str) -> list[str]:
    """The values as text. They are separated as YAML does: 1,[2, 3],'4,5' are three."""
    try:
        node = yaml.compose(f"[{values}]", Loader=yaml.SafeLoader) if values.isprintable() else None
    except yaml.YAMLError:
        node = None
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise UserError(f"--sweep {printable(sweep)}: expected key=value,value,... such as optimizer.lr=0.1,0.3")
    return [f"[{values}]"[item.start_mark.index : item.end_mark.index] for item in node.value]


def _check_all(config_path: str, job: Job, overrides: Sequence[str], points: Sequence[Sequence[str]]) -> None:
    for point in points or [[]]:
        source = read(config_path, [*overrides, *point])
        each = checked_settings(source)
        try:
            if isinstance(each, TorchConfig):
                _check_torch(each, job, source)
            else:
                _check(each, job)
        except UserError as error:
            raise UserError(f"{' '.join(point)}: {error}" if point else str(error)) from None


def _check(config: Config, job: Job) -> None:
    """Refuse now what the ranks would refuse after the job has waited in the queue."""
    files = _data_files(config)
    if config.stragglers.path is not None:
        files["stragglers.path"] = config.stragglers.path
    for key, path in files.items():
        try:
            open_regular(path).close()
        except OSError as error:
            reason = f"{key}: {path}: {(error.strerror or str(error)).lower()}"
            raise UserError(f"{reason}; {ELSEWHERE}") from None
    workers = job.ranks - 1
    num_chunks = workers if config.coding.chunks_per_worker == "auto" else None  # one each; the job may choose more
    make_plan(config.coding, config.schedule, workers, config.seed, num_chunks)


def _check_torch(config: TorchConfig, job: Job, source: Source) -> None:
    """The same for a torch problem."""
    try:
        from psgc.torch.by_name import optimizer_and_scheduler
    except ImportError as error:
        raise UserError(f"problem.torch: {error}; {ELSEWHERE}") from None
    optimizer_and_scheduler(config, partial(wrong, source))
    even_plan(config.coding, config.schedule, job.ranks - 1, config.coding.chunks, config.seed)


def _data_files(config: Config) -> dict[str, str]:
    """The files of the data by their keys in the YAML."""
    files = config.data.model_dump(exclude={"index_base"}) if config.data else {}
    return {f"data.{key}": path for key, path in files.items() if path is not None}


def _data_to_copy(config: Config, sweeps: Sequence[str]) -> dict[str, str]:
    if config.data is None:
        raise UserError("--local-dir: the YAML has no data")
    if any(sweep.lstrip().startswith("data") for sweep in sweeps):
        raise UserError("--local-dir: the data of all runs must be the same, but --sweep changes it")
    return _data_files(config)
