"""A worker of a script: its communication loop, and the computation of chunks in the script's thread."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from psgc.aggregation.replica import Stepping
from psgc.backend import Array
from psgc.errors import ModelError, PsgcError, UserError, one_line, raised_at
from psgc.messages import stepped_record
from psgc.run.ending import CalledOff
from psgc.torch.calls import Call
from psgc.torch.hand_over import HandOver
from psgc.torch.memory import Memory
from psgc.torch.serving import ScriptReplica
from psgc.torch.settings import OPEN_END
from psgc.workers.chunk_runner import ChunkRunner, Computed
from psgc.workers.loop import WorkerLoop
from psgc.workers.mailbox import Mailbox
from psgc.workers.reports import SERVER
from psgc.workers.work import Ended, Work

LAST_SUM = 15.0  # seconds after the end of the run in which a script may make its last steps


@dataclass(frozen=True)
class ScriptThread:
    """The script's thread, used as a ComputeThread."""

    ident: int | None

    def start(self) -> None:
        """Nothing to do: the script's thread is running."""


class ScriptLoop(WorkerLoop):
    """A worker's loop. After STOP it continues until the script has all sums of the run, or cannot get them any more.

    calls: number of calls of the run, once it has ended without error
    rank_0_stays: in MPI after the run, since another may follow
    """

    calls: int | None = None
    rank_0_stays = False

    def __init__(self, *arguments: Any, hand_over: HandOver, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self._hand_over = hand_over
        # the first call of the script, whose digest the server has not got yet
        self._first = self._iteration + 1 if self._duties.alike else None
        self._last: tuple[int, float] | None = None  # after STOP: number of calls of the run, and when to give up

    def end_term(self) -> int | None:
        steps = super().end_term()
        self.is_whole = self._hand_over.can_give_state(self.allreduce.replica.steps)
        return steps

    def _stop(self, iteration: int, rank_0_stays: bool) -> None:
        self._last, self.rank_0_stays = (iteration, time.monotonic() + LAST_SUM), rank_0_stays
        self.calls = iteration if iteration >= 0 else None

    def poll(self) -> None:
        super().poll()
        self.is_orphaned = self.is_orphaned and self._last is None and not self._hand_over.has_failed
        if self._last is not None:
            end, late = self._last
            has_all = self._hand_over.given >= end - 1 or self._hand_over.is_ended
            if not has_all and self.allreduce.is_behind:
                self._hand_over.stop(CalledOff())
            self._stopped = self._stopped or has_all or time.monotonic() > late

    def _report(self) -> None:
        """Also send the digest of the script's first call. Later digests are sent after each step."""
        if self._first is not None and self._hand_over.called >= self._first:
            if digest := self._hand_over.digest(self._first):
                self._transport.send(SERVER, [stepped_record(self._first, digest)])
            self._first = None
        super()._report()


class ScriptWorker:
    """A script's model on a worker (`psgc.run.building.WorkerProgram`). It computes the chunks of calls.

    The MPI thread calls `loop` and `computing`; the script's thread calls the other methods.

    dim, dtype: number of entries and dtype of a vector
    script: the id of the script's thread
    begins: is called when a term is ready for the script

    current: the loop of the newest term
    own: the replica of the script
    replica: `own`, or on rank 0 a replica that follows it
    """

    is_alike, last, successor = True, OPEN_END, "psgc.torch.serving"
    current: ScriptLoop | None = None
    _call: Call  # the newest call of the script

    def __init__(
        self,
        dim: int,
        dtype: Any,
        hand_over: HandOver,
        memory: Memory,
        script: int | None,
        begins: Callable[[], object] = lambda: None,
    ) -> None:
        self.dim, self.backend, self.here = dim, memory.backend, memory.here
        self._hand_over, self._memory, self._script, self._begins = hand_over, memory, script, begins
        self.own = ScriptReplica(hand_over, dtype, memory.backend)
        self.replica: Stepping = self.own

    def loop(self, *arguments: Any) -> ScriptLoop:
        self.current = ScriptLoop(*arguments, hand_over=self._hand_over)
        self._begins()  # not before: the script may end at once, and asks the loop who reports its error
        return self.current

    def computing(self, mailbox: Mailbox, runner: ChunkRunner) -> ScriptThread:
        self._mailbox, self._runner = mailbox, runner
        self._hand_over.alert = mailbox.look
        return ScriptThread(self._script)

    def answer(self, call: Call) -> None:
        """Compute chunks until the call has its answer, and make states meanwhile."""
        self._call = call
        while self._runner.run(self, self._hand_over.is_due) and self._hand_over.make_state():
            pass

    at = -1  # an error of a script is of a whole piece

    def running(self) -> tuple[int, float]:
        """The chunk that the script is in, and for how many seconds; -1: in none."""
        return self._mailbox.running()

    @property
    def joins(self) -> bool:
        return self._call.joins()

    def ended(self, iteration: int, text: str, code: int) -> None:
        """The script makes no call for `iteration` or later. text: its error, or empty; code: its exit code."""
        self._mailbox.ended(iteration, text, code)

    def has_sent_its_end(self) -> bool:
        """After the run, and after `ended`: whether the server was told."""
        return not any(isinstance(message, Ended) for message in self._mailbox.outgoing())

    def prepare(self, work: Work) -> tuple[float, float]:
        """Let worker processes load the examples of the next chunks."""
        if following := self._mailbox.following(self.joins):
            self._call.expect(following)
        return 0.0, 0.0

    def compute(
        self, iteration: int, piece: Sequence[int], params: Array, is_wanted: Callable[[], bool]
    ) -> Computed | None:
        # the worker in rank 0's process may still have an iteration that is closed (`Follower`)
        vector = self._call.vector(piece, is_wanted) if iteration == self._hand_over.called else None
        if vector is None:
            return None
        with self.here():
            if self._call.num_sums:
                sums = self._memory.backend.asarray(vector.numpy())
                return Computed(sums, self._call.signature, True, vector.tolist())
            return Computed(self._memory.array(vector), self._call.signature, True)

    def told(self, error: BaseException) -> str | PsgcError:
        if isinstance(error, ModelError | UserError):
            return error
        if not isinstance(error, Exception):  # Ctrl-C, and the script's own exit
            raise error
        return f"{one_line(error)}{raised_at(error)}\n{traceback.format_exc()}"
