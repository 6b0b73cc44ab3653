"""`psgc sweep`: one run for each combination of values, one after the other, as `psgc launch` starts them."""

import shlex
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml

from psgc.cli import Options, Parser, add_dedicated_server, add_resume, add_settings
from psgc.cli.compare import compare
from psgc.cli.launch import add_ranks, placement_of
from psgc.config import AssignmentFile, BatchSettings, Config, TorchConfig, load
from psgc.disk import escaped
from psgc.errors import RunFailed, UserError, visible
from psgc.launching.launch import launch
from psgc.launching.mpirun import Placement, check_extra
from psgc.launching.mpirun_process import Heard
from psgc.launching.points import check_runs, first_point, sweep_points, values_of
from psgc.launching.script import Program
from psgc.plan import read_assignment
from psgc.run.launched import stopped
from psgc.terminal import say
from psgc.tools.run_directory import RecordedRun, read_run
from psgc.yaml_source import printable

RESULTS = (  # the keys on which it depends what a run trains
    *("problem", "data", "optimizer", "scheduler", "initial", "evaluate", "dtype", "autocast", "buffers", "draws"),
    *("reproducible", "seed", "recovery", "batch"),
)


def add_arguments(parser: Parser) -> None:
    parser.epilog = "Values are separated as in a YAML list: a,[b, c],'d,e' are three. What follows -- goes to mpirun."
    add_settings(parser, "run.yaml", "settings of the runs, see docs/training.md", "optimizer.lr=0.1,0.3 for two runs")
    add_resume(parser, "leave out the runs that are done, and continue the others from their newest checkpoints")
    add_dedicated_server(parser)
    add_ranks(parser)


def run(options: Options) -> int:
    own = options.given[: -len(options.after) - 1] if "--" in options.given else options.given
    again = [*own, *([] if options.resume else ["--resume"]), *(["--", *options.after] if options.after else [])]
    named = {name: getattr(options, name) for name in ("overrides", "resume", "debug")}
    return sweep(Program(options.config, for_mpirun=options.after, **named), placement_of(options), ["psgc", *again])


def sweep(program: Program, placement: Placement, again: Sequence[str]) -> int:
    """Make a run for each combination of the program's settings, and print a table. again: the command to go on.

    Returns 0 when all runs are done, 1 when some failed, 128 + the number of a signal that stopped it.
    Raises UserError before the first run: a script, no value to vary, what a run would refuse, or no working mpirun.
    """
    path, overrides = program.path, program.overrides
    if program.is_script:
        raise UserError(f"sweep: for runs of a YAML file, {printable(path)} is a script")
    check_extra(program.for_mpirun)
    varied = [override for override in overrides if len(values_of(override)) > 1]
    fixed = [override for override in overrides if override not in varied]
    if not varied:
        raise UserError("--set: expected one with several values, such as --set optimizer.lr=0.1,0.3")
    output = load(path, [*fixed, *first_point(varied)]).output
    points = sweep_points(varied, escaped(output), fixed, "--set")  # its variables are expanded already
    check_runs(path, fixed, points, placement.ranks)
    configs = [load(path, [*fixed, *point]) for point in points]
    failed: list[str] = []
    was_launched = False
    for place, (point, config) in enumerate(zip(points, configs, strict=True), start=1):
        what = f"run {place} of {len(points)}: {' '.join(point[:-1])}"
        one = replace(program, overrides=[*fixed, *point])
        if program.resume and (made := _made(config)) is not None:
            if key := _changed(config, made, placement.ranks):
                say(f"{what}: {config.output} was made with another {key}; it is made again")
                one = replace(one, resume=False)
            elif _is_done(made) and _length(made.config) == _length(config):
                say(f"{what}: done already, {config.output}")
                continue
        say(f"{what}, in {config.output}")
        heard = Heard()
        try:
            code = launch(one, placement, heard=heard, hints=False)
        except KeyboardInterrupt:  # while no mpirun runs
            code, heard.stopped_by = 128 + signal.SIGINT, signal.SIGINT
        except UserError as error:
            if not was_launched:  # no mpirun on the PATH, for example: it concerns all runs
                raise
            say(f"psgc: {error}", error=True)
            code = error.exit_code
        was_launched = True
        if heard.stopped_by is not None and (code or place < len(points)):
            reason = stopped(heard.stopped_by)
            say(f"psgc sweep: {reason} in run {place} of {len(points)}; to go on: {shlex.join(again)}", error=True)
            return 128 + heard.stopped_by
        if code:
            failed.append(config.output)
            say(f"psgc sweep: {what} failed", error=True)
    if any(_made(config) is not None for config in configs):
        say()
        compare([config.output for config in configs])
        say(f"the runs are in {visible(output)}; psgc report RUN_DIR says more about one")
    if failed:
        how = f"to go on with them: {shlex.join(again)}"
        say(f"psgc sweep: {len(failed)} of {len(points)} runs failed; {how}", error=True)
        return RunFailed.exit_code
    return 0


def _made(config: Config) -> RecordedRun | None:
    """The run that is in the directory of these settings, done or not."""
    try:
        return read_run(config.output)
    except UserError:
        return None


def _is_done(run: RecordedRun) -> bool:
    return run.summary is not None and run.summary["status"] == "done" and not run.goes_on


def _length(config: Config) -> int:
    """How long a run is to be: its epochs, or its iterations."""
    return config.batch.epochs if isinstance(config.batch, BatchSettings) else config.iterations or 0


def _changed(now: Config, made: RecordedRun, ranks: int) -> str:
    """The first key that changes what a run trains and has another value now, or "". A run may become longer.

    A run that goes on may find its data in another place, and evaluate more or less often. It compares the data itself.
    """
    told, before = _results(now), _results(made.config)
    for section in told if _is_done(made) else [name for name in told if name not in ("data", "evaluate")]:
        one, other = told[section], before[section]
        if isinstance(one, dict) and isinstance(other, dict):
            if key := next((key for key in {**one, **other} if one.get(key) != other.get(key)), None):
                return f"{section}.{key}"
        elif one != other:
            return section
    if _depends_on_chunks(now) and made.chunks not in (0, _chunks(now, ranks)):  # 0: unknown
        return "number of chunks"
    return "number of iterations" if _length(now) < _length(made.config) else ""


def _results(config: Config) -> dict[str, Any]:
    settings = yaml.safe_load(config.to_yaml())
    found = {section: settings.get(section) for section in RESULTS}
    if isinstance(config, TorchConfig):  # the random numbers of each chunk
        found["coding"] = {"chunks": config.coding.chunks}
    if isinstance(config.batch, BatchSettings):
        found["batch"] = config.batch.model_dump(exclude={"epochs"})
    return found


def _depends_on_chunks(config: Config) -> bool:
    """Whether another number of chunks gives other rows in each batch, or other bits where bits are promised."""
    return not isinstance(config, TorchConfig) and (isinstance(config.batch, int) or config.reproducible)


def _chunks(config: Config, ranks: int) -> int:
    if isinstance(config.coding.assignment, AssignmentFile):
        return int(read_assignment(config.coding.assignment.path).shape[0])
    return config.coding.per_worker * config.workers(ranks)
