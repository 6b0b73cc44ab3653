"""A worker of a script: the state that it gives away is whole, although its script is in a chunk when it is asked."""

import threading
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from psgc.backend import Backend
from psgc.torch.begin import _Local
from psgc.torch.generators import Generators
from psgc.torch.hand_over import HandOver, ScriptReplica, blob_of
from psgc.torch.memory import Memory
from psgc.torch.state import from_bytes
from psgc.torch.working import ScriptWorker
from psgc.workers.compute import Trial
from psgc.workers.emulation import Emulation
from psgc.workers.encoder import Encoder
from psgc.workers.mailbox import Mailbox
from psgc.workers.state import WorkerState

CPU, CHUNKS = torch.device("cpu"), 2
GIVEN = {"replication": 1, "chunks": CHUNKS, "micro_batch": 8, "seed": 0, "output": None, "buffers": "chunk"}
GIVEN |= {"aggregation": "allreduce", "transfer": "auto", "parts": 1, "schedule": "dynamic", "checkpoint_every": 0}


class Rank:
    """Worker 1 of a run, which has all chunks, with batch normalisation whose statistics are known; it is in call 0.

    Its other thread asks for a state in each chunk, until it has one. Then the run ends.
    """

    rank, num_chunks, iteration, record, state = 1, CHUNKS, 0, None, None

    def __init__(self):
        self.model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
        with torch.no_grad():
            self.model[0].running_mean.fill_(5.0)
            self.model[0].num_batches_tracked.fill_(100)
        data = [(torch.randn(3), torch.randn(1)) for _ in range(64)]
        self.local = _Local(self.model, data, self.loss, None, GIVEN, None)
        self.local.run.begin(self)
        self.hand_over = HandOver(0, state=self.local.state)
        self.replica = ScriptReplica(self.hand_over, np.float32, Backend())
        self.replica.start(0, np.empty(0))
        encoder = Encoder(Backend(), np.ones((1, 1)), self.local.dim, np.float32, shared=True)
        self.mailbox = Mailbox(WorkerState(1, range(CHUNKS), CHUNKS, combined=True, shared=True), encoder)
        nothing, trial = SimpleNamespace(at=lambda *_: None), Trial(-1, None, frozenset())
        arguments = self.mailbox, self.hand_over, trial, Emulation("none", 1, 0), nothing, Memory(CPU)
        self.worker = ScriptWorker(None, *arguments)
        self.given, self.asked_in_chunks = None, 0

    def loss(self, model, batch):
        self.asked_in_chunks += 1
        thread = threading.Thread(target=self.ask)
        thread.start()
        thread.join()
        assert self.given is None
        x, y = batch
        return nn.functional.mse_loss(model(x), y, reduction="sum"), len(y)

    def ask(self):
        """The thread that does MPI looks whether there is a state."""
        if (snapshot := self.replica.snapshot()) is not None:
            self.given = from_bytes(blob_of(snapshot.vectors[0]), "the state")
            self.hand_over.stop(SystemExit(0))

    def sum(self, iteration, call):
        """As Session.sum; one chunk is done before there is a state."""
        self.hand_over.call(iteration, call.is_whole, call.signature)
        self.mailbox.begin(iteration, None)
        self.hand_over._wake = self.ask
        self.worker.compute(call)
        raise SystemExit


def test_a_state_has_the_statistics_and_the_random_numbers_of_the_script_not_those_of_its_chunk():
    rank = Rank()
    optimizer = torch.optim.SGD(rank.model.parameters(), 0.1)
    rank.local.run.attach(optimizer)
    before = None
    try:
        for batch in rank.local.run.batches(64):
            before = Generators.now(CPU)
            torch.rand(1)  # a scale for the batch, for example
            rank.local.run.backward(batch)
    except SystemExit:
        pass
    assert rank.asked_in_chunks
    assert rank.given["model"]["0.running_mean"].tolist() == [5.0] * 3
    assert rank.given["model"]["0.num_batches_tracked"] == 100
    assert Generators.of(rank.given["psgc"]["random"]).contents() == before.contents()
    assert rank.model[0].running_mean.tolist() == [5.0] * 3
