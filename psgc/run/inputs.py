"""What server and workers read: data, problem, emulated times and faults; and whether all ranks read the same."""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from psgc import __version__
from psgc.backend import Array, Backend
from psgc.config import (
    BatchSettings,
    BuiltinProblem,
    Config,
    Data,
    PythonData,
    PythonProblem,
    ScriptProblem,
    TorchProblem,
)
from psgc.data import ChunkSource, Dataset, Epochs, from_arrays, open_data, times
from psgc.disk import expanded
from psgc.errors import UserError
from psgc.iteration import trial_chunks
from psgc.machine import THREADS
from psgc.plan import Plan
from psgc.problems import (
    BUILT_IN,
    EVALUATION_ROWS,
    Problem,
    call_object,
    check_labels,
    load_python,
    make_problem,
    measures_of,
)
from psgc.workers.emulation import Emulation
from psgc.workers.injection import Injector

PREPARING = "reading data and building the problem"  # what a rank does while others wait for it
SAME = "psgc, model and data"  # on all ranks
SAMPLED = 1000  # rows that identify a data set

Callback = Callable[[dict[str, Any], Array], Any]  # (row, params) -> whether the run is to end


@dataclass(frozen=True)
class Given:
    """What a rank brings to a run.

    source: the path of the YAML, whose folder may have the model, or of the program
    config: the settings, None where rank 0 reads them from the YAML
    problem: the one that a program has built
    dataset: a program's data in memory, None where the settings name the data
    callbacks: of a program; rank 0 calls them after each step with the row and the parameters
    overrides: of the YAML, for rank 0
    arguments: of a script
    """

    source: str
    config: Config | None = None
    problem: Problem | None = None
    dataset: Dataset | None = None
    callbacks: Sequence[Callback] = ()
    overrides: Sequence[str] = ()
    arguments: Sequence[str] = ()


def open_problem(
    config: Config, config_path: str, copies: int = 1, given: Given | None = None
) -> tuple[Dataset | None, Problem]:
    """The training data and the problem of this rank. Raises UserError.

    config_path: of the YAML, whose folder may have the model
    copies: processes of this host that open the data
    given: the problem and the data of a program
    """
    data, problem = config.data, config.problem
    if isinstance(problem, TorchProblem):
        raise UserError(
            f"problem: {problem.torch} is a torch problem, which only psgc train, launch and submit can run"
        )
    if given is not None and given.problem is not None:
        in_file = None if data is None else _opened(data, config_path, copies)
        rows, is_built_in = given.dataset or in_file, type(given.problem) in BUILT_IN
        return rows if is_built_in else _with_integers(rows), given.problem
    if isinstance(problem, ScriptProblem):
        raise UserError(f"problem: {problem.script} is a script; start it with: psgc launch {problem.script} -n 8")
    dataset = None if data is None else _opened(data, config_path, copies)
    if isinstance(problem, PythonProblem):
        folder = os.path.dirname(expanded(config_path))
        return _with_integers(dataset), load_python(problem.python, problem.options, folder)
    if dataset is None:
        raise UserError(f"data: problem {problem.kind} needs data: {{path: ...}}")
    built = make_problem(problem.kind, dataset=dataset, l2=problem.l2, hidden=problem.hidden, seed=config.seed)
    return dataset, built


def _opened(data: Data | PythonData, config_path: str, copies: int) -> Dataset:
    if isinstance(data, Data):
        return open_data(data.path, data.labels, None, data.index_base, copies)
    where = f"data.python: {data.python}"
    folder = os.path.dirname(expanded(config_path))
    return from_arrays(where, call_object(where, data.python, data.options, folder))


def _with_integers(dataset: Dataset | None) -> Dataset | None:
    """The data as a user's model gets it: an X of integers stays one of integers."""
    if dataset is None:
        return None
    return replace(dataset, keeps_integers=True, held_out=_with_integers(dataset.held_out))


def fingerprint(dataset: Dataset | None) -> str:
    """Identifies data by its size and some rows, since it may have moved to another path."""
    if dataset is None:
        return "none"
    rows = np.unique(np.linspace(0, dataset.num_rows - 1, SAMPLED).astype(int))
    digest = hashlib.sha256(b"" if dataset.y is None else np.asarray(dataset.y[rows], np.float64).tobytes())
    for row in rows[:: max(1, len(rows) // 16)].tolist():
        X, _ = dataset.rows(row, row + 1)
        digest.update(np.asarray(X.data if dataset.sparse else X, np.float64).tobytes())
    return f"{dataset.num_rows} rows of {dataset.num_features} features ({digest.hexdigest()[:8]})"


def description(config: Config, dataset: Dataset | None, problem: Problem, test: Dataset | None) -> dict[str, Any]:
    """The code and data of this rank, to be compared. (The settings cannot differ, since rank 0 sends them.)"""
    pieces = {"psgc": __version__, "number of parameters": int(problem.dim), "data": fingerprint(dataset)}
    if isinstance(config.problem, PythonProblem):
        pieces["model"] = source_of(config.problem.python)
    if isinstance(config.problem, ScriptProblem):
        pieces["model"] = source_of(type(problem).__module__)
    if isinstance(config.data, PythonData):
        pieces["file of the reader"] = hashlib.sha256(source_of(config.data.python).encode()).hexdigest()[:8]
        pieces["test data"] = fingerprint(dataset.held_out if dataset else None)
    if config.evaluate:
        pieces["test data"] = fingerprint(test)
    if config.reproducible:
        pieces["threads of BLAS"] = "/".join(os.environ.get(name, "") for name in THREADS)
        pieces["rounding of NumPy (processor or OPENBLAS_CORETYPE)"] = rounding()
    return pieces


def rounding() -> str:
    """Identifies the last bits of what NumPy computes here, which differ between kinds of processors."""
    values = np.random.default_rng(0).standard_normal((96, 64))
    few = values[:40, :20] @ values[:20, :16]
    found = [values @ values.T, values.T @ values[:, 0], few, np.exp(values), np.tanh(values), values.sum(axis=0)]
    single = values.astype(np.float32)
    found += [single @ single.T, np.exp(single), single.sum(axis=1)]
    return hashlib.sha256(b"".join(each.tobytes() for each in found)).hexdigest()[:8]


def source_of(target: str) -> str:
    """The file of the user's "module:object", which was imported, with a checksum; `target` itself without a file."""
    file = getattr(sys.modules[target.partition(":")[0]], "__file__", None)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file and Path(file).is_file() else ""
    return f"{Path(file).name[-60:]} with the SHA-256 {digest}" if file and digest else target


def open_held_out(config: Config, dataset: Dataset | None, copies: int = 1) -> Dataset | None:
    """The held-out data, if any, for the training data `dataset`. copies: see `open_problem`. Raises UserError."""
    data = config.data
    if isinstance(data, Data) and data.test is not None and dataset is not None:
        test = open_data(data.test, data.test_labels, dataset, data.index_base, copies)
        return replace(test, keeps_integers=dataset.keeps_integers)
    return None if dataset is None else dataset.held_out


def open_test(config: Config, problem: Problem, dataset: Dataset | None, backend: Backend) -> Dataset | None:
    """The held-out data, if any. All of it is checked now, although it is used only after the run. Raises UserError."""
    test = open_held_out(config, dataset)
    if config.evaluate:
        if test is None:
            raise UserError("evaluate: held-out rows are needed, expected data.test, or X_test beside X")
        if not measures_of(problem):
            raise UserError("evaluate: the problem has no figures, expected a method loss or accuracy (params, chunk)")
    if test is None:
        return None
    if isinstance(config.problem, BuiltinProblem):
        check_labels(config.problem.kind, test, getattr(problem, "num_classes", None))
    pieces = -(-test.num_rows // EVALUATION_ROWS)
    source = ChunkSource(test, pieces, config.dtype, backend)
    for piece in range(pieces):
        source.check(piece)
    return test


def check_ranks(config: Config, num_workers: int) -> None:
    """Raises UserError when stragglers or faults name ranks that a run of so many workers does not have."""
    slow = config.stragglers.factor or config.stragglers.seconds or {}
    if (largest := max((rank for rank in slow if rank != "all"), default=0)) > num_workers:
        raise UserError(_not_there("stragglers", largest, num_workers, "stragglers={kind: none}"))
    if (largest := max((fault.rank for fault in config.faults.inject), default=0)) > num_workers:
        raise UserError(_not_there("faults.inject", largest, num_workers, "faults.inject=[]"))
    emulated_seconds(config, num_workers)


def _not_there(where: str, rank: int, num_workers: int, without: str) -> str:
    there = f"are only {num_workers} workers" if num_workers > 1 else "is only worker 1"
    needed = f"expected {rank} workers or more, or --set '{without}'"
    return f"{where}: worker {rank} is named, but there {there}; {needed}"


def emulated_seconds(config: Config, num_workers: int) -> np.ndarray | None:
    """Emulated seconds per chunk (rounds, workers), if the run replays a trace. Raises UserError."""
    slow = config.stragglers
    return slow.scale * times.rounds(slow.path, num_workers) if slow.path and slow.kind == "trace" else None


def emulated_chunks(config: Config, num_chunks: int) -> np.ndarray | None:
    """Emulated seconds of each chunk (steps, num_chunks), if the run replays a trace of chunks. Raises UserError."""
    slow = config.stragglers
    if slow.path is None or slow.kind != "chunk_trace":
        return None
    return slow.scale * times.chunk_trace(slow.path, slow.split, num_chunks)


def known_costs(config: Config, num_chunks: int) -> Callable[[int], list[float]] | None:
    """What the server knows of the emulated seconds of the chunks of an iteration, relative to their mean.

    None: nothing. Raises UserError.
    """
    costs, known = emulated_chunks(config, num_chunks), config.stragglers.chunk_costs
    if costs is None or known == "unknown":
        return None

    def of(iteration: int) -> list[float]:
        believed = times.estimates(costs[iteration % len(costs)], known.known, [config.seed, iteration])
        return [float(cost) for cost in believed / believed.mean()]

    return of


def make_emulation(config: Config, plan: Plan, rank: int) -> Emulation:
    """What makes the chunks of this rank take longer than their work (`stragglers`). Raises UserError."""
    slow = config.stragglers
    of_rounds, of_chunks = emulated_seconds(config, plan.num_workers), emulated_chunks(config, plan.num_chunks)
    return Emulation(slow.kind, rank, config.seed, slow.factor, slow.seconds, of_rounds, of_chunks)


def make_injector(config: Config, rank: int) -> Injector:
    """Injects the faults of `faults.inject` for this rank."""
    return Injector(fault for fault in config.faults.inject if fault.rank == rank)


def tried_chunks(config: Config, plan: Plan) -> dict[int, int]:
    """The chunk that each worker computes in the trial. Empty when the run has no trial."""
    return trial_chunks(plan.queues, plan.holders(), config.faults.adopt) if config.trial else {}


def rows_taken(config: Config, num_rows: int | None) -> int | Epochs | None:
    """The rows that an iteration takes: a number of rows of every chunk, the batches of epochs, or None for all rows.

    num_rows: of the data, None without data
    """
    batch = config.batch
    if not isinstance(batch, BatchSettings):
        return batch
    if num_rows is None:
        raise UserError("batch: epochs need data: {path: ...}")
    return Epochs(num_rows, batch.size, batch.epochs, config.seed, batch.shuffle)


def iterations_of(config: Config, num_rows: int | None) -> int:
    rows = rows_taken(config, num_rows)
    if isinstance(rows, Epochs):
        return rows.iterations
    assert config.iterations is not None  # a rule of `Config`
    return config.iterations


def rows_in_iteration(config: Config, num_rows: int | None) -> int | None:
    """How many rows are cut into the chunks of an iteration; None without data. An epoch's last one may have fewer."""
    rows = rows_taken(config, num_rows)
    return rows.rows_in(0) if isinstance(rows, Epochs) else num_rows


def check_rows(config: Config, num_rows: int | None, num_chunks: int) -> None:
    """Raises UserError when a batch has fewer rows than chunks: some chunks would always be empty."""
    rows = rows_in_iteration(config, num_rows)
    if rows is not None and rows < num_chunks:
        raise UserError(
            f"batch.size: {rows} rows cannot be cut into {num_chunks} chunks; "
            "use larger batches, fewer workers or coding.chunks_per_worker"
        )


def check_data(chunks: ChunkSource, rows: int | Epochs | None, iteration: int, chunk: int) -> None:
    """Check the data from which a gradient was computed. Raises UserError when its numbers cannot be used."""
    if not isinstance(rows, Epochs):
        chunks.check(chunk)
    elif (taken := rows.rows(iteration, chunk, chunks.num_chunks)).size:
        chunks.check(chunk, taken)
