"""Predicts the times of a recorded run with other settings: the recorded speeds under the production schedules.

The model:

* In each iteration a worker has its recorded pace (`psgc.simulation.recording`), in proportion to the rows of a chunk:
  with twice as many chunks, each takes half as long. With `batch` an iteration has as many rows as in the run. With
  epochs, and with psgc.torch, every worker holds all data, and the schedule does not know that the last batch of an
  epoch is smaller. Evaluations of psgc.torch, iterations of their own, are left out.
* Iterations that evaluate held-out rows do not count, unless all do: then a chunk's share of these rows is a part of
  the chunk.
* The pause of a worker between two passes is as in the run, for passes of any size.
* The rest of an iteration is its overhead: messages, decoding, the step. It is in proportion to the messages of rank 0
  and their bytes (each message counts as `MESSAGE` bytes more), so that the median of the simulated run is that of the
  recorded one. With `allreduce` vectors go between all ranks: rank 0 gets and sends as many bytes of them as recorded,
  whatever the settings.
* The fixed cost of a pass is known only if workers did different numbers of chunks in one pass. In other runs it cannot
  be separated from the cost of rows, so fewer and larger chunks are often faster than predicted.
* Lost workers are absent in the same iterations, and the other workers share their chunks as in production.
* Recovery is exact. Approximate iterations of the run are used only for the speeds of workers.
* The schedule learns from one iteration to the next. In a long run only blocks of consecutive iterations are simulated,
  spread over all of it. The first iteration of a block does not count.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from psgc.backend import Backend, part_length
from psgc.config import AssignmentFile, BatchSettings, Config
from psgc.data import ChunkSource, Dataset
from psgc.errors import UserError
from psgc.messages import RECORD
from psgc.plan import Plan, even_plan, make_plan, read_assignment
from psgc.schedules import SCHEDULES, Schedule
from psgc.server.membership import Membership
from psgc.server.rebalance import queues_for
from psgc.simulation.recording import read_recording
from psgc.simulation.virtual import Passes, VirtualCluster
from psgc.tools.run_directory import RecordedRun
from psgc.vectors import MESSAGE, tail_length

BLOCK = 10  # consecutive iterations of a long run


@dataclass(frozen=True, order=True)
class Choice:
    """Settings of a run. chunks: those of each worker; if not `per_worker`, with psgc.torch, those of all together.

    Of an assignment from a file: the whole chunks for each worker, and the copies that every chunk has.
    """

    schedule: str
    chunks: int
    replication: int
    parts: int
    per_worker: bool = True

    def coding(self) -> dict[str, int]:
        name = "chunks_per_worker" if self.per_worker else "chunks"
        return {name: self.chunks, "replication": self.replication, "parts": self.parts}


def own_choice(config: Config, num_chunks: int, workers: int) -> Choice:
    """The settings of a run with so many chunks and workers. Raises UserError for an assignment file that is not there.

    A run that was resumed with another number of workers has kept its chunks. So each worker has more or fewer of them
    than `coding` says; if not all have the same number, it is rounded.
    """
    coding = config.coding
    if isinstance(coding.assignment, AssignmentFile):  # the file says both numbers, and the settings have defaults
        held = read_assignment(coding.assignment.path)
        fewest = int(np.diff(held.indptr).min())
        return Choice(config.schedule, max(1, held.shape[0] // held.shape[1]), fewest, coding.parts)
    chunks = num_chunks if config.of_torch else max(1, round(num_chunks / max(1, workers)))
    return Choice(config.schedule, chunks, coding.replication, coding.parts, not config.of_torch)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for a run with these settings. Bytes are None when the size of data or model is unknown."""

    choice: Choice
    times: np.ndarray  # seconds of each iteration that counts
    overhead: float  # mean seconds of an iteration for messages, decoding and the step
    redundant: float  # share of the computing time that was not needed
    data: float  # largest share of the data that a worker holds
    gradients: int  # largest number of gradients that a worker keeps
    memory: float | None  # bytes of a worker's data and gradients
    incoming: float | None  # bytes into the server, mean per iteration
    outgoing: float | None  # bytes out of the server, mean per iteration

    @property
    def seconds(self) -> float:
        return float(self.times.mean())


class Replay:
    """A recorded run, to be simulated with other settings. Raises UserError when the record has nothing to replay.

    dataset: the data of the run; without it all chunks count as equally large
    dim: number of entries of the gradient, if known
    most: largest number of iterations that are simulated

    took: (counted iterations,), recorded seconds
    exact: (counted iterations,), whether all chunks were recovered
    redundant: recorded share of the computing time that was not needed
    per_message: seconds that a message without bytes adds to an iteration
    own: the prediction for the settings of the run
    """

    def __init__(self, run: RecordedRun, dataset: Dataset | None, dim: int | None, most: int) -> None:
        self.run, self._dataset, self._dim = run, dataset, dim
        slow = run.config.stragglers
        self._combined = run.config.transfer == "combined"
        self._allreduce = run.config.aggregation == "allreduce"
        self._breaks_off = slow.kind != "none"  # an emulated chunk ends with its iteration
        self._in_proportion = slow.seconds is None and slow.path is None  # otherwise chunks take the emulated seconds
        costs = self._costs(run.chunks)
        self.recording = read_recording(run, costs if self._in_proportion else None, self._breaks_off)
        self._blocks = blocks(len(self.recording.took), most)
        counted = [t for block in self._blocks for t in (block[1:] or block) if self.recording.counts[t]]
        if not counted:
            raise UserError(f"{run.path}: no iteration in which nobody was lost; nothing to replay")
        self._counted = counted
        self.took, self.exact = self.recording.took[counted], self.recording.exact[counted]
        self.redundant = 1 - float(self.recording.used[counted].sum() / self.recording.spent[counted].sum())
        own = self._own = own_choice(run.config, run.chunks, run.workers)
        plan = self._plan(own)
        trials = self._simulate(plan, own.schedule)
        self._vectors: Any = np.zeros(2)  # with `allreduce`: mean bytes into and out of rank 0 besides records
        if self._allreduce:
            _, *records = self._traffic(plan, trials)
            recorded = self.recording.incoming[counted], self.recording.outgoing[counted]
            self._vectors = np.subtract(recorded, records).mean(axis=1).clip(min=0.0)
        self.per_message = 0.0
        if self.exact.any():
            messages, _, _ = self._traffic(plan, trials)
            rest = (self.took - trials["time"]) / messages
            self.per_message = max(0.0, float(np.median(rest[self.exact])))
        self.own = self._prediction(own, plan, trials)

    def predict(self, choice: Choice) -> Prediction:
        """Raises UserError when these settings are not possible, RunFailed when the losses would have ended the run."""
        plan, batch = self._plan(choice), self.run.config.batch
        if choice.per_worker and isinstance(batch, BatchSettings) and batch.size < plan.num_chunks:
            raise UserError(f"batch.size: {batch.size} rows cannot be cut into {plan.num_chunks} chunks")
        return self._prediction(choice, plan, self._simulate(plan, choice.schedule))

    def _plan(self, choice: Choice) -> Plan:
        run, coding = self.run, self.run.config.coding
        wanted = coding.model_copy(update=choice.coding() | {"coding_matrix": "gaussian"})  # the quickest to make
        if not choice.per_worker:
            return even_plan(wanted, choice.schedule, run.workers, choice.chunks, run.config.seed)
        num_chunks = run.chunks if choice.chunks == self._own.chunks else None  # these may be rounded
        return make_plan(wanted, choice.schedule, run.workers, run.config.seed, num_chunks)

    def _costs(self, num_chunks: int) -> list[float] | None:
        """The costs of chunks that the server knows. Raises UserError when there are fewer rows than chunks."""
        costs = ChunkSource(self._dataset, num_chunks, self.run.config.dtype, Backend()).costs()
        return None if self.run.config.batch else costs

    def _simulate(self, plan: Plan, schedule: str) -> dict[str, np.ndarray]:
        """The fields of `Simulated` in each iteration that counts."""
        recording, config = self.recording, self.run.config
        rows = self.run.chunks / plan.num_chunks
        seconds, joins = recording.seconds * rows, recording.joins and plan.parts == 1
        costs = self._costs(plan.num_chunks)
        ranks = np.arange(1, plan.num_workers + 1)
        everybody = Membership(
            plan.holders(), plan.parts, config.faults.adopt, ranks.tolist(), renewing=bool(plan.backups)
        )
        here: np.ndarray | None = None
        rules: Schedule | None = None
        trials = {}
        for t in chain(*self._blocks):
            if here is None or (recording.here[t] != here).any():
                here = recording.here[t]
                membership = everybody.without(ranks[~here].tolist())
                queues, backups = queues_for(membership, plan)
                before, rules = rules, SCHEDULES[schedule](queues, backups, membership.holders, plan.parts, costs)
                if before is not None:
                    rules.inherit(before)
                takes = costs if self._in_proportion else None
                cluster = VirtualCluster(
                    *(membership.holders, queues, plan.parts, rules, takes, self._breaks_off),
                    Passes(joins, recording.pass_cost / rows, recording.pause),
                )
            trials[t] = cluster.recover({rank: float(seconds[t, rank - 1]) for rank in queues})
        return {
            name: np.array([getattr(trials[t], name) for t in self._counted])
            for name in ("time", "computed", "passes", "spent", "used", "reported", "orders", "contributors")
        }

    def _prediction(self, choice: Choice, plan: Plan, trials: dict[str, np.ndarray]) -> Prediction:
        messages, incoming, outgoing = self._traffic(plan, trials)
        overhead, spent = self.per_message * messages, trials["spent"].sum()
        load = int(np.bincount(plan.assignment.indices).max())
        # a worker keeps gradients until they are committed: until other copies, or its whole load, are done
        waits = self._combined and (choice.parts > 1 or SCHEDULES[choice.schedule].counts_whole_loads)
        holds_all = isinstance(self.run.config.batch, BatchSettings) or not choice.per_worker
        data = 1.0 if holds_all else load / plan.num_chunks
        gradients = load if waits else 1
        number, dim, memory = np.dtype(self.run.config.dtype).itemsize, self._dim, None
        if self._dataset is not None and dim is not None:
            memory = data * _data_bytes(self._dataset, number) + gradients * dim * number
        return Prediction(
            choice,
            times=trials["time"] + overhead,
            overhead=float(overhead.mean()),
            redundant=1 - float(trials["used"].sum() / spent) if spent else 0.0,
            data=data,
            gradients=gradients,
            memory=memory,
            incoming=None if dim is None else float(incoming.mean()),
            outgoing=None if dim is None else float(outgoing.mean()),
        )

    def _traffic(self, plan: Plan, trials: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Messages, bytes into and bytes out of the server, for each iteration. A large message counts as several."""
        dim, number = self._dim or 0, np.dtype(self.run.config.dtype).itemsize
        coded = part_length(dim, plan.parts)
        copies, reported, orders = trials["computed"], trials["reported"], trials["orders"]
        live = self.recording.here[self._counted].sum(axis=1)
        messages, params = live + trials["passes"], live * dim * number
        if self._combined:
            contributors, needed = trials["contributors"], plan.num_chunks * plan.parts
            # for each of its copies a worker gets all contributors, or the message that the copy is not needed
            orders = orders + needed * plan.parts + (reported - needed) + contributors
            if self._allreduce:
                sums, params = self._vectors
            else:
                messages, sums = messages + contributors, contributors * coded * number
            incoming = sums + copies * RECORD.itemsize
        else:
            sent = trials["passes"] if self.recording.joins else reported
            tail = tail_length(self.run.config.transfer, plan.num_chunks, self.run.config.dtype)
            incoming = sent * (coded + tail) * number + (copies - reported) * RECORD.itemsize
        outgoing = params + orders * RECORD.itemsize
        return messages + (incoming + outgoing) / MESSAGE, incoming, outgoing


def _data_bytes(dataset: Dataset, number: int) -> int:
    """Memory for all of the data, with `number` bytes for each number."""
    if dataset.sparse:
        data, indices, indptr = dataset.features
        return int(len(data) * (number + indices.itemsize) + dataset.num_rows * (number + indptr.itemsize))
    return dataset.num_rows * (dataset.num_features + 1) * number


def blocks(iterations: int, most: int) -> list[range]:
    """The iterations that are simulated: all, or at most `most` of them in blocks spread over the run.

    >>> blocks(8, most=10), blocks(100, most=20)
    ([range(0, 8)], [range(0, 10), range(50, 60)])
    """
    if iterations <= most:
        return [range(iterations)]
    length = min(BLOCK, most)
    count = most // length
    return [range(first, first + length) for first in (k * iterations // count for k in range(count))]
