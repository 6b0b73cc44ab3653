"""What the workers of NumPy problems and of scripts are made of."""

from typing import NamedTuple

from psgc.backend import Backend
from psgc.config import Config
from psgc.plan import Plan
from psgc.run.inputs import make_emulation, make_injector, tried_chunks
from psgc.transport import Transport
from psgc.workers.chunk_runner import ChunkRunner, Trial
from psgc.workers.encoder import Encoder
from psgc.workers.injection import Injector
from psgc.workers.mailbox import Mailbox
from psgc.workers.state import WorkerState


class WorkerParts(NamedTuple):
    """runner: for the thread that computes; the others are for the loop as well."""

    mailbox: Mailbox
    encoder: Encoder
    injector: Injector
    runner: ChunkRunner


def worker_parts(
    transport: Transport, config: Config, plan: Plan, backend: Backend, dim: int, first: int
) -> WorkerParts:
    """Those of this rank, in a run with vectors (dim,) that begins with iteration `first`."""
    encoder = Encoder(backend, plan.coding_matrix, dim, config.dtype)
    every, combined = config.verify.every if config.verify else 0, config.transfer == "combined"
    state = WorkerState(transport.rank, plan.queues[transport.rank], plan.num_chunks, combined, every)
    mailbox, injector = Mailbox(state, encoder, transport.wake), make_injector(config, transport.rank)
    tried = tried_chunks(config, plan)
    trial = Trial(first, tried.get(transport.rank), frozenset(tried.values()))
    runner = ChunkRunner(mailbox, backend, make_emulation(config, plan, transport.rank), injector, trial)
    return WorkerParts(mailbox, encoder, injector, runner)
