"""What a recorded run would have taken with other settings: its workers' paces under the production schedules again.

The model:

* A worker takes in each iteration what it took then (`psgc.simulation.recording`), in proportion to the rows of a
  chunk: with twice as many chunks half as long for each. The sampled rows of a run with `batch` stay as many.
* What a worker needs between two chunks stays as it was, whatever their size.
* What an iteration takes besides is its overhead: messages, decoding, the step. Rank 0 sends and receives one message
  after another, so the overhead is in proportion to the messages and their bytes. The time of a message is what makes
  the simulator agree with the run, in the median. A message of no bytes counts as `MESSAGE` bytes.
* What a gradient takes however few rows it has (calls, allocations) is in the seconds of a chunk. One run cannot tell
  it from what grows with the rows, so fewer and larger chunks are often faster than predicted.
* Workers that were lost are away in the same iterations, and the others share their chunks as in production.
* Recovery is exact. An iteration of the run that was not tells what the workers took, and nothing else.
* The schedule learns from one iteration to the next, as in production. Of a long run blocks of consecutive iterations
  are taken, spread over all of it; the first of a block is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psgc.backend import Backend, part_length
from psgc.config import AssignmentFile, Config
from psgc.data import ChunkSource, Dataset
from psgc.errors import UserError
from psgc.messages import MESSAGE, RECORD, TAIL
from psgc.plan import Plan, make_plan
from psgc.reporting.run_directory import RecordedRun
from psgc.schedules import SCHEDULES, Schedule
from psgc.server.membership import Membership
from psgc.server.rebalance import queues_for
from psgc.simulation.recording import read_recording
from psgc.simulation.virtual import Trial, VirtualCluster

BLOCK = 10  # consecutive iterations of a long run


@dataclass(frozen=True, order=True)
class Choice:
    """Settings that a run can be given, of section `coding` all but the first."""

    schedule: str
    chunks_per_worker: int
    replication: int
    parts: int


def own_choice(config: Config) -> Choice:
    """What a run with this configuration has."""
    coding = config.coding
    return Choice(config.schedule, coding.per_worker, coding.replication, coding.parts)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run with these settings would have been.

    times: seconds of each iteration that counts; overhead: of these, for messages, decoding and the step, in the mean;
    redundant: share of the computing time that is for nothing;
    data: largest share of the data that a worker holds; gradients: most of them that a worker may have to keep;
    incoming, outgoing: bytes into and out of the server, per iteration, None when the size of the model is not known.
    """

    choice: Choice
    times: np.ndarray
    overhead: float
    redundant: float
    data: float
    gradients: int
    incoming: float | None
    outgoing: float | None

    @property
    def seconds(self) -> float:
        """Mean per iteration."""
        return float(self.times.mean())


@dataclass(frozen=True, eq=False)
class _Traffic:
    """Of each iteration: bytes into and out of the server, and messages, which count by their bytes as well."""

    messages: np.ndarray
    incoming: np.ndarray
    outgoing: np.ndarray


class Replay:
    """A recorded run, to be run again with other settings.

    dataset: what it was trained on, None when there is none or it is not here: then chunks count as equally large;
    dim: entries of the gradient, if known; most: iterations that are simulated, at most.

    took: (counted iterations,) seconds, recorded; exact: in which of them all was recovered; redundant: share of the
    computing time, recorded; per_message: seconds that a message without bytes adds to an iteration; own: what is
    predicted for the settings that the run had. Raises UserError when there is nothing in the record to replay.
    """

    def __init__(self, run: RecordedRun, dataset: Dataset | None, dim: int | None, most: int) -> None:
        self.run, self._dataset, self._dim = run, dataset, dim
        config = run.config
        slow = config.stragglers
        self._combined = config.transfer == "combined"
        self._breaks_off = slow.kind != "none"  # who only waits hears that the iteration is over
        self._in_proportion = slow.seconds is None and slow.path is None  # emulated seconds are the same for all chunks
        costs = self._costs(run.chunks)
        self.recording = read_recording(run, costs if self._in_proportion else None, self._breaks_off)
        self._blocks = blocks(len(self.recording.took), most)
        counted = [t for block in self._blocks for t in (block[1:] or block) if self.recording.counts[t]]
        if not counted:
            raise UserError(f"{run.path}: no iteration in which nobody was lost; nothing to replay")
        self._counted = set(counted)
        self.took = self.recording.took[counted]
        self.redundant = 1 - float(self.recording.used[counted].sum() / self.recording.spent[counted].sum())
        self.exact = self.recording.exact[counted]
        choice = own_choice(config)
        plan = self._plan(choice)
        trials = self._trials(plan, choice.schedule)
        self.per_message = 0.0
        if self.exact.any():
            rest = (self.took - [trial.time for trial in trials]) / self._traffic(plan, trials).messages
            self.per_message = max(0.0, float(np.median(rest[self.exact])))
        self.own = self._prediction(choice, plan, trials)

    def predict(self, choice: Choice) -> Prediction:
        """Raises UserError when these settings are not possible, RunFailed when the losses would have ended the run."""
        plan = self._plan(choice)
        return self._prediction(choice, plan, self._trials(plan, choice.schedule))

    def _prediction(self, choice: Choice, plan: Plan, trials: Sequence[Trial]) -> Prediction:
        spent, used = (sum(getattr(trial, name) for trial in trials) for name in ("spent", "used"))
        load = int(np.bincount(plan.assignment.indices).max())
        # an uncommitted gradient waits for other copies, or for the whole load
        waits = self._combined and (choice.parts > 1 or SCHEDULES[choice.schedule].counts_whole_loads)
        traffic = self._traffic(plan, trials)
        overhead = self.per_message * traffic.messages
        return Prediction(
            choice,
            times=np.array([trial.time for trial in trials]) + overhead,
            overhead=float(overhead.mean()),
            redundant=1 - used / spent if spent else 0.0,
            data=load / plan.num_chunks,
            gradients=load if waits else 1,
            incoming=None if self._dim is None else float(traffic.incoming.mean()),
            outgoing=None if self._dim is None else float(traffic.outgoing.mean()),
        )

    def _plan(self, choice: Choice) -> Plan:
        coding, run = self.run.config.coding, self.run
        if isinstance(coding.assignment, AssignmentFile):
            kept = (coding.per_worker, coding.replication)
            if (choice.chunks_per_worker, choice.replication) != kept:
                raise UserError("the assignment of this run is from a file, which says replication and chunks")
        elif choice.parts > choice.replication:
            raise UserError(f"parts {choice.parts} is more than replication {choice.replication}, each needs a holder")
        update = {
            "chunks_per_worker": choice.chunks_per_worker,
            "replication": choice.replication,
            "parts": choice.parts,
            "coding_matrix": "gaussian",  # the quickest to make: times do not depend on it
        }
        same = choice.chunks_per_worker == coding.per_worker  # after --resume with others they stay as many
        num_chunks = run.chunks if same else None
        config = run.config
        return make_plan(coding.model_copy(update=update), choice.schedule, run.workers, config.seed, num_chunks)

    def _costs(self, num_chunks: int) -> list[float] | None:
        """As the server of a run knows them. Raises UserError when there are fewer rows than chunks."""
        costs = ChunkSource(self._dataset, num_chunks, self.run.config.dtype, Backend()).costs()
        return None if self.run.config.batch else costs

    def _trials(self, plan: Plan, schedule: str) -> list[Trial]:
        recording = self.recording
        seconds = recording.seconds * (self.run.chunks / plan.num_chunks)
        costs = self._costs(plan.num_chunks)
        away: frozenset[int] | None = None
        rules: Schedule | None = None
        trials = []
        for t in (t for block in self._blocks for t in block):
            if recording.away[t] != away:
                away = recording.away[t]
                holders, queues, backups = self._shared_out(plan, schedule, away, t)
                before, rules = rules, SCHEDULES[schedule](queues, backups, holders, plan.parts, costs)
                if before is not None:
                    rules.inherit(before)
                takes = costs if self._in_proportion else None
                cluster = VirtualCluster(holders, queues, plan.parts, rules, takes, recording.pause, self._breaks_off)
            trial = cluster.recover({rank: float(seconds[t, rank - 1]) for rank in queues})
            if t in self._counted:
                trials.append(trial)
        return trials

    def _shared_out(
        self, plan: Plan, schedule: str, away: frozenset[int], iteration: int
    ) -> tuple[Sequence[Sequence[int]], dict[int, list[int]], dict[int, list[int]]]:
        if not away:
            return plan.holders(), plan.queues, plan.backups
        everybody = Membership(plan.holders(), plan.parts, self.run.config.faults.adopt, range(1, plan.num_workers + 1))
        membership = everybody.without(away)
        return membership.holders, *queues_for(membership, schedule, self.run.config.seed, iteration)

    def _traffic(self, plan: Plan, trials: Sequence[Trial]) -> _Traffic:
        dim = self._dim or 0
        number = np.dtype(self.run.config.dtype).itemsize
        coded = part_length(dim, plan.parts)
        copies, reported, orders, contributors = (
            np.array([getattr(trial, name) for trial in trials])
            for name in ("computed", "reported", "orders", "contributors")
        )
        live = plan.num_workers - np.array([len(self.recording.away[t]) for t in sorted(self._counted)])
        messages = live + copies
        if self._combined:
            messages = messages + contributors
            incoming = contributors * coded * number + copies * RECORD.itemsize
            needed = plan.num_chunks * plan.parts
            # of the copies in the gradient each hears all contributors, of the others that they are not needed
            orders = orders + needed * plan.parts + (reported - needed) + contributors
        else:
            incoming = reported * (coded + TAIL) * number + (copies - reported) * RECORD.itemsize
        outgoing = live * dim * number + orders * RECORD.itemsize
        return _Traffic(messages + (incoming + outgoing) / MESSAGE, incoming, outgoing)


def blocks(iterations: int, most: int) -> list[range]:
    """Which iterations are simulated: all, or at most `most` of them in blocks spread over the run.

    >>> blocks(8, most=10), blocks(100, most=20)
    ([range(0, 8)], [range(0, 10), range(50, 60)])
    """
    if iterations <= most:
        return [range(iterations)]
    length = min(BLOCK, most)
    count = most // length
    return [range(first, first + length) for first in (k * iterations // count for k in range(count))]
