"""The runs of a sweep: their settings and directories, and checks before the start."""

import itertools
import re
import stat
from collections.abc import Sequence
from functools import partial

import yaml

from psgc.config import Config, Data, TorchConfig, checked_settings, read
from psgc.disk import is_kind, open_regular
from psgc.errors import UserError
from psgc.plan import even_plan, make_plan
from psgc.validation import wrong
from psgc.yaml_source import YamlSource, printable


def sweep_points(
    sweeps: Sequence[str], output: str, fixed: Sequence[str] = (), option: str = "--sweep"
) -> list[list[str]]:
    """The overrides of each run of a sweep, including its directory below `output`. Empty when there is no sweep.

    sweeps: such as "seed=1,2"
    fixed: the overrides of all runs, such as "seed=3"
    option: the name of the option that has `sweeps`, for errors

    Raises UserError.

    >>> sweep_points(["seed=1,2"], "runs/a")
    [['seed=1', 'output=runs/a/0_seed=1'], ['seed=2', 'output=runs/a/1_seed=2']]
    """
    axes: dict[str, list[str]] = {}
    for sweep in sweeps:
        key = _key(sweep)
        if key in axes or key == "output":
            reason = "each run of a sweep has its own" if key == "output" else "given twice"
            raise UserError(f"{option} {printable(sweep)}: {printable(key)}: {reason}")
        if inner := next((one for one in map(_key, fixed) if one.startswith(f"{key}.")), None):
            reason = f"each value replaces {inner} as well; write that into each value"
            raise UserError(f"{option} {printable(sweep)}: {printable(key)}: {printable(reason)}")
        values = values_of(sweep)
        if not values:
            raise UserError(f"{option} {printable(sweep)}: expected key=value,value,... such as optimizer.lr=0.1,0.3")
        axes[key] = [f"{key}={value}" for value in values]
    points = [list(point) for point in itertools.product(*axes.values())] if axes else []
    for index, point in enumerate(points):
        name = re.sub(r"[^A-Za-z0-9._=+-]+", "_", "_".join([str(index), *point]))
        point.append(f"output={yaml.safe_dump(f'{output}/{name[:100]}', width=10**6).splitlines()[0]}")
    return points


def first_point(sweeps: Sequence[str]) -> list[str]:
    """The overrides of the first run, without its directory. What has no value is left for `sweep_points` to refuse.

    What all runs share is read with them, since the YAML alone may lack a key, or contradict itself.

    >>> first_point(["seed=1,2", "dtype=float32,float64"])
    ['seed=1', 'dtype=float32']
    """
    return [f"{_key(sweep)}={values[0]}" for sweep in sweeps if (values := values_of(sweep))]


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def values_of(sweep: str) -> list[str]:
    """The values after key=, as text, separated as in YAML: 1,[2, 3],'4,5' are three. Empty when they are invalid."""
    values = sweep.partition("=")[2]
    try:
        node = yaml.compose(f"[{values}]", Loader=yaml.SafeLoader) if values.isprintable() else None
    except yaml.YAMLError:
        node = None
    if not isinstance(node, yaml.SequenceNode):
        return []
    return [f"[{values}]"[item.start_mark.index : item.end_mark.index] for item in node.value]


def check_runs(
    config_path: str, overrides: Sequence[str], points: Sequence[Sequence[str]], ranks: int, missing: str = ""
) -> None:
    """Check settings and files before the start, as the ranks of a run would. Raises UserError.

    points: further overrides of each run; empty: a single run
    missing: text that errors about missing files end with
    """
    for point in points or [[]]:
        check_run(read(config_path, [*overrides, *point]), ranks, missing, " ".join(point))


def check_run(source: YamlSource, ranks: int, missing: str = "", point: str = "") -> None:
    """Check the settings in `source` and their files, as the ranks of its run would. Raises UserError.

    missing: text that errors about missing files end with
    point: the overrides of this run among others; errors that name no key begin with them
    """
    config = checked_settings(source)
    try:
        if isinstance(config, TorchConfig):
            _check_torch(config, ranks, source, missing)
        else:
            _check(config, ranks, missing)
    except UserError as error:
        raise UserError(f"{point}: {error}" if point else str(error)) from None


def data_files(config: Config) -> dict[str, str]:
    """The data files, by their keys in the YAML."""
    files = config.data.model_dump(exclude={"index_base"}) if isinstance(config.data, Data) else {}
    return {f"data.{key}": path for key, path in files.items() if path is not None}


def _check(config: Config, ranks: int, missing: str) -> None:
    files = data_files(config)
    if config.stragglers.path is not None:
        files["stragglers.path"] = config.stragglers.path
    initial = config.initial
    if initial is not None and not is_kind(initial, stat.S_ISDIR, f"initial: {initial}"):
        files["initial"] = initial
    for key, path in files.items():
        try:
            open_regular(path).close()
        except OSError as error:
            raise UserError(f"{key}: {path}: {(error.strerror or str(error)).lower()}{missing}") from None
    workers = config.workers(ranks)
    num_chunks = workers if config.coding.chunks_per_worker == "auto" else None  # one each; the run may choose more
    make_plan(config.coding, config.schedule, workers, config.seed, num_chunks)


def _check_torch(config: TorchConfig, ranks: int, source: YamlSource, missing: str) -> None:
    try:
        from psgc.torch.by_name import optimizer_and_scheduler
    except ImportError as error:
        raise UserError(f"problem.torch: {error}{missing}") from None
    optimizer_and_scheduler(config, partial(wrong, source))
    even_plan(config.coding, config.schedule, config.workers(ranks), config.coding.chunks, config.seed)
