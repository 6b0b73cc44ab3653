"""`psgc.torch.init`: makes a run from a model, a dataset and a loss, on every rank of mpirun or in one process."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from psgc.config import TorchConfig
from psgc.errors import UserError
from psgc.record.loggers import Loggers
from psgc.run import launched
from psgc.run.inputs import Given
from psgc.run.script_ending import ScriptEnding, stopped_by
from psgc.torch.calls import Single
from psgc.torch.chunk_gradient import Buffers, Loss
from psgc.torch.program import TorchProgram
from psgc.torch.run import ScriptRun
from psgc.torch.sampling import CostFunction
from psgc.torch.session import Session
from psgc.torch.settings import alone, settings_of, settled


def init(
    model: nn.Module,
    dataset: Any,
    loss: Loss,
    *,
    replication: int = 3,
    chunks: int = 60,
    micro_batch: int | None = None,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    cost_fn: CostFunction | None = None,
    buffers: Buffers = None,
    draws: str = "chunk",
    aggregation: str = "auto",
    transfer: str = "auto",
    parts: int = 1,
    schedule: str = "dynamic",
    checkpoint_every: int = 50,
    checkpoint_keep: int = 3,
    reproducible: bool = False,
    dedicated_server: bool = False,
    trial: bool = True,
    verify: Mapping[str, Any] | None = None,
    faults: Mapping[str, Any] | None = None,
    stragglers: Mapping[str, Any] | None = None,
    log_with: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
) -> ScriptRun:
    """Begin a run. Every rank calls this with the same arguments. Without mpirun the run has one process.

    model: a module whose trainable parameters are all float32, all float64 or all bfloat16, on one device. Gradients of
        bfloat16 are summed in float32. All ranks begin with the parameters of rank 0.
    dataset: a map-style dataset, the same on every rank
    loss: (model, batch) -> (sum over the examples, number of examples), or the mean over the examples. The loss of an
        example must not depend on other examples.
    collate_fn: makes a batch from a list of examples; by default torch's
    cost_fn: (rows of a micro-batch) -> its time, in any unit. Give it if examples have different lengths: then the
        longest chunks are computed first. It changes no result.

    The other arguments are settings, which docs/api/torch.md explains; most have the same name in YAML files. In one
    process replication, parts, schedule, aggregation, dedicated_server, trial, verify, faults and stragglers have no
    effect, and of the values of transfer only per_chunk has one.

    Raises UserError, on rank 0, when an argument is wrong; the other ranks exit without a message.
    """
    defaults = init.__kwdefaults__ or {}
    given = {name: value for name, value in locals().items() if value is not defaults.get(name, value)}
    given.pop("collate_fn", None)
    given.pop("cost_fn", None)
    return begin(model, dataset, loss, given, collate_fn, cost_fn)


def begin(
    model: nn.Module,
    dataset: Any,
    loss: Loss,
    given: Mapping[str, Any] | TorchConfig,
    collate_fn: Callable[[list[Any]], Any] | None,
    cost_fn: CostFunction | None,
    source: Given | None = None,
) -> ScriptRun:
    """Begin a run, as `init` does.

    given: the arguments of `init` that are settings, by name; or settings of a YAML
    source: the YAML; None: this script
    """
    if launched.has_begun() and not ScriptEnding.another_may_follow():  # one of psgc.train
        raise UserError("psgc.torch.init: these ranks have a run of psgc.train already; expected one of both")
    ending = ScriptEnding()
    made: TorchProgram | UserError
    try:
        if launched.has_dedicated_server() and not isinstance(given, TorchConfig):
            given = {**given, "dedicated_server": True}
        settings = given if isinstance(given, TorchConfig) else settings_of(given)
        source = source or Given(sys.argv[0], arguments=sys.argv[1:])
        made = TorchProgram(model, dataset, loss, settings, collate_fn, cost_fn, source)
    except UserError as error:
        made = error
    if launched.ranks() < 2:
        if isinstance(made, UserError):
            raise made
        if made.output is not None and not hasattr(sys, "ps1"):  # an interactive session is only interrupted
            ending.catch_signals()
        return _begun(made, _alone(made), ending)
    ending.catch_signals()
    if isinstance(made, TorchProgram):
        made.look_at_rows()
    follows = launched.has_begun()
    launched.begin(stopped_by)
    ending.session = session = Session(made, stopped_by, follows)
    assert not isinstance(made, UserError)
    return _begun(made, session, ending)


def _alone(program: TorchProgram) -> Single:
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    record, state = program.prepare(columns)
    config, plan = settled(alone(program.settings), 1, program.dim)
    record.begin(config, plan, state)
    singly = config.transfer == "per_chunk" or config.reproducible
    return Single(plan.num_chunks, state, record, program.params, stopped_by, singly)


def _begun(program: TorchProgram, engine: Session | Single, ending: ScriptEnding) -> ScriptRun:
    run, output, takes_over = program.run, program.output, False

    def log() -> None:
        if (program.settings.log or program.settings.metrics) and output is not None:
            goes_on = takes_over or (engine.record is not None and engine.record.ranks_before > 0)
            run.output.loggers = loggers = Loggers(program.settings, Path(output), must_begin=not goes_on)
            run.on("iteration", loggers.row)
            ending.come_first()
            ending.closed = loggers.close

    ending.session = engine
    run.begin(engine, log, ending.close)
    takes_over = True  # whoever is rank 0 from now on
    ending.last, ending.rows = run.end, run.give_rows
    return run
