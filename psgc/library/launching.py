"""psgc.launch, which starts ranks with mpirun, and psgc.train, which each rank of a program calls."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psgc import config as configuration
from psgc.data import Dataset, write_dense, write_sparse
from psgc.disk import escaped, expanded, write_text
from psgc.errors import RunFailed, UserError
from psgc.launching import launch as command
from psgc.launching.mpirun import Placement
from psgc.launching.mpirun_process import Heard
from psgc.launching.script import Program, is_script
from psgc.library.arguments import arrays_of, built_in, data_section, named, overrides_of, settings_of, source_of
from psgc.library.run import Run, load
from psgc.problems import check_labels, make_problem
from psgc.record.files import WRITTEN_BY, check_ours
from psgc.run import launched
from psgc.run.inputs import Callback, Given
from psgc.yaml_source import to_text


def launch(
    path: str | os.PathLike[str] | None = None,
    *,
    workers: int,
    set: Mapping[str, Any] | None = None,
    resume: bool = False,
    problem: Any = None,
    options: Mapping[str, Any] | None = None,
    data: Any = None,
    **settings: Any,
) -> Run:
    """Train as `psgc launch` does, with the settings in the YAML file `path` or in the other arguments.

    workers: number of workers, on this machine or on the hosts of this program's cluster job
    set: settings to change, such as {"optimizer.lr": 0.1, "coding": {"parts": 2}}
    resume: continue from the newest checkpoint in the run directory, if any

    In place of `path`:
    problem: a class or a function that ranks can import, called with the keyword arguments `options`; or an instance of
        a dataclass, or an object at a module's level; or a built-in problem, such as "softmax".
    data: (X, y), or a mapping with X, y, X_test and y_test, written to a file beside the run directory; or the path of
        a file; or as in a YAML.
    settings: the other keys of a YAML, such as iterations=100 or batch={"size": 256, "epochs": 3}.
    optimizer: a name, such as "adam", or a mapping as in a YAML; by default "sgd"
    lr: the learning rate
    output: the run directory, by default `runs/NAME` with the name of the problem; the YAML is written beside it,
        unless another file has its name

    Output of the run goes to standard output and standard error of this process. Ctrl-C stops the run in order, and
    then raises KeyboardInterrupt. SIGTERM, SIGHUP and SIGUSR1 stop it as well, and then have their usual effect.
    Signals only reach the main thread, so they do not stop a run that another thread has launched.

    Raises UserError when the settings, the data or an argument are wrong, and RunFailed when the run has failed, both
    with the line that the command would print. `psgc.load` reads the record of a failed run.

    Examples: `psgc.launch("run.yaml", workers=8, set={"optimizer.lr": 0.1}).summary["final_loss"]`;
    `psgc.launch(problem="softmax", data=(X, y), workers=4, lr=0.5, iterations=100).params`.
    """
    if workers < 1:
        raise UserError(f"workers={workers}: expected a whole number >= 1")
    if (path is None) == (problem is None):
        raise UserError("psgc.launch: expected the path of a YAML file, or a problem")
    if path is None:
        path, overrides = _written(problem, options, data, set, settings), []
    else:
        if any(given is not None for given in (options, data, *settings.values())):
            raise UserError("psgc.launch: the YAML has the settings; what is to be changed goes into set={...}")
        path, overrides = os.fspath(path), overrides_of(set)
        if is_script(path):
            how = f"a script is started with: psgc launch {path} -n RANKS"
            raise UserError(f"{path}: psgc.launch takes a YAML file; {how}")
    heard = Heard()
    try:
        config = configuration.load(path, overrides)
    except UserError:  # `command.launch` raises it again
        config = None
    placement = Placement(workers + (config is not None and config.dedicated_server))
    code = command.launch(Program(path, overrides, resume=resume), placement, heard=heard)
    if heard.stopped_by is not None:
        signal.raise_signal(heard.stopped_by)  # so that the usual handlers get it as well
    if code:
        reason = heard.reason or f"the run ended with exit code {code}; its messages are on standard error"
        raise (UserError if code == UserError.exit_code else RunFailed)(reason)
    return load(escaped((config or configuration.load(path, overrides)).output))  # it may have been edited since


def _written(
    problem: Any, options: Mapping[str, Any] | None, data: Any, set: Mapping[str, Any] | None, more: Mapping[str, Any]
) -> str:
    """Write the YAML file of a run, and its data if it is in memory. Returns the path. Raises UserError."""
    where = "psgc.launch"
    if launched.ranks() > 1:
        raise UserError(f"{where}: this process is a rank of a run; put the call under: if __name__ == '__main__':")
    section = named(problem, options)
    name = section["python"].rpartition(":")[2] if "python" in section else str(section.get("kind", "problem"))
    output = os.fspath((set or {}).get("output") or more.get("output") or Path("runs", name.lower()))
    dataset, held_out = arrays_of(where, data), None
    if dataset is None:
        files = data_section(data)
    else:
        held_out = dataset.held_out
        files = {"path": f"{output}-data.npz", **({"test": f"{output}-test.npz"} if held_out else {})}
    source = source_of(where, section, files, set, {**more, "output": output})
    config = configuration.checked_settings(source)
    path = Path(f"{config.output}.yaml")
    check_ours(path, "another output")
    text = f"{WRITTEN_BY}.launch\n{to_text(source.tree)}"  # variables in paths are expanded when it is read
    try:
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
        for rows, key in ((dataset, "path"), (held_out, "test")):
            if rows is not None and files is not None:
                _write_data(Path(expanded(files[key])), rows)
        write_text(path.parent.resolve() / path.name, text)
    except OSError as error:
        raise UserError(f"{where}: output: {error.filename}: {error.strerror}") from None
    return escaped(str(path))


def _write_data(path: Path, rows: Dataset) -> None:
    if rows.y is None:
        raise UserError("psgc.launch: data: expected labels as well, (X, y); for data without, give a reader, see docs")
    X, y = rows.rows(0, rows.num_rows)
    (write_sparse if rows.sparse else write_dense)(path, X, y)


def train(
    problem: Any,
    data: Any = None,
    optimizer: str | Mapping[str, Any] = "sgd",
    lr: float | None = None,
    iterations: int | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    set: Mapping[str, Any] | None = None,
    resume: bool = False,
    **settings: Any,
) -> Run | None:
    """Train with a problem and data in memory. Every rank of mpirun calls this with the same arguments.

    Start a program that calls it with `psgc launch program.py -n 4`, or `mpirun -n 4 python program.py`.

    problem: an object with the methods of `psgc.problems.base.Problem`, or a built-in one, such as "softmax"
    data: (X, y), X, or a mapping with X, y, X_test and y_test, which are not copied; or the path of a file; or a
        mapping as in a YAML; or None if the problem has its own data
    optimizer: a name, such as "adam", or a mapping as in a YAML
    lr: the learning rate
    iterations, settings: the other keys of a YAML, such as batch={"size": 256, "epochs": 3}. output is the run
        directory, by default `runs/NAME` with the name of the program.
    callbacks: functions (row, params), called on rank 0 after each step. row is a dict with the columns of
        iterations.csv; params are the parameters after the step, (dim,), read-only. The run ends when one returns True.
    set: settings to change, such as {"coding.parts": 2}
    resume: continue from the newest checkpoint in the run directory, if any; so does `psgc launch --resume`

    Returns the run on rank 0, and None on the workers. It can be called again. If a rank was lost, the workers do not
    return from the call, but end. After that, and after a failed run, no other run can begin in the program.

    Raises, on rank 0: UserError when an argument or the data are wrong, or differ between ranks; RunFailed when the run
    has failed; KeyboardInterrupt on Ctrl-C, which ends the run in order. The workers then end without a message.

    Example: `psgc.train(Ridge(20), (X, y), optimizer="adam", lr=1e-3, iterations=200)`.
    """
    from psgc.run.session import train_in_program

    program = sys.argv[0] or "program.py"
    settings |= {"optimizer": optimizer, "lr": lr, "iterations": iterations}
    settings["output"] = settings.get("output") or Path("runs", Path(program).stem or "run")
    if launched.has_dedicated_server():
        set = {**(set or {}), "dedicated_server": True}
    given: Given | UserError
    try:
        given = _given(problem, data, set, settings, program, callbacks)
    except UserError as error:
        given = error
    directory = train_in_program(given, program, resume)
    return None if directory is None else load(directory)


def _described(where: str, problem: Any) -> str:
    """By which a resumed run notices that it has another problem."""
    if isinstance(problem, str | Mapping):
        return ", ".join(f"{name} {value}" for name, value in built_in(where, problem).model_dump().items())
    return type(problem).__qualname__


def _given(
    problem: Any,
    data: Any,
    set: Mapping[str, Any] | None,
    more: Mapping[str, Any],
    program: str,
    callbacks: Sequence[Callback],
) -> Given:
    """The problem, the data and the settings of this rank. Raises UserError."""
    where = "psgc.train"
    dataset = arrays_of(where, data)
    section = None if dataset is not None else data_section(data)
    in_yaml = {"kind": "script", "script": Path(program).name, "of": _described(where, problem)}
    config = settings_of(where, in_yaml, section, set, more)
    if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
        raise UserError(f"{where}: callbacks: expected a list of functions (row, params), got {callbacks!r:.80}")
    if isinstance(problem, str | Mapping):
        if dataset is None:
            raise UserError(f"{where}: a built-in problem needs data in memory here; with files use psgc.launch")
        of = built_in(where, problem)
        problem = make_problem(of.kind, dataset=dataset, l2=of.l2, hidden=of.hidden, seed=config.seed)
        if dataset.held_out is not None:
            check_labels(of.kind, dataset.held_out, getattr(problem, "num_classes", None))
    if isinstance(problem, type):
        raise UserError(f"{where}: problem: expected an object, such as {problem.__name__}(...), and not the class")
    for name in ("dim", "initial_params", "gradient"):
        if not hasattr(problem, name):
            raise UserError(
                f"{where}: problem: {type(problem).__name__} has no {name}, which psgc.problems.base.Problem asks for"
            )
    return Given(program, config, problem, dataset, callbacks)
