"""The transport without MPI, for one loop at a time: a test says what arrives, and reads what was sent."""

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from psgc.config import Config, OptimizerSettings, PythonProblem
from psgc.messages import Kind, Records, record
from psgc.transport import Control, Shared, Term, Vector
from psgc.vectors import TAIL, stamp_length, stamp_of

HAS_LEFT = SimpleNamespace(is_done=True, is_free=True)  # of everything that is sent


class Transport:
    """What `psgc.transport` promises, over lists.

    ranks: of the run; script: yields what each poll gives out besides `arrived`, which is given out once. It goes on
    only when the loop polls, so it can look at what was sent so far. A loop that polls after its end still waits for
    something: the test fails.
    """

    survives_deaths = is_woken = True
    library, dead = "no MPI", frozenset[int]()
    shared, term = Shared(), Term()
    rank = local_rank = bytes_sent = bytes_received = 0

    def __init__(self, ranks: int, script: Iterator[list[Any]] | None = None) -> None:
        self.size = ranks
        self.hosts = ["here", *(f"h{rank}" for rank in range(1, ranks))]
        self.script = script
        self.arrived: list[Any] = []
        self.on_the_way = Counter[int]()  # bytes to each rank, as `pending` says
        self.sent: list[tuple[int, Any]] = []  # (rank, iteration) of vectors, (rank, names of their kinds) of records
        self.vectors: list[tuple[int, int, int, np.ndarray]] = []  # (rank, iteration, what, as it was when it was sent)
        self.records: dict[int, list[Any]] = {rank: [] for rank in range(ranks)}  # to each rank, one by one
        self.posted = 0  # receives, so far
        self._to_wake: set[int] = set()
        self.woken: list[set[int]] = []  # the ranks that were woken at the same time

    def poll(self) -> list[Any]:
        self.arrived, arrived = [], self.arrived
        if self.script is None:
            return arrived
        more = next(self.script, None)
        assert more is not None, "the script is at its end, and the loop still waits"
        return arrived + more

    def send(self, dest: int, records: list[Records], hurries: bool = True) -> None:
        self._to_wake.add(dest)
        self.sent.append((dest, [Kind(int(entry["kind"][0])).name for entry in records]))
        self.records[dest].extend(np.concatenate(records))

    def send_vector(self, dest: int, vector: np.ndarray, heard: bool = False) -> Any:
        iteration, what = stamp_of(vector)
        self._to_wake.add(dest)
        self.sent.append((dest, iteration))
        self.vectors.append((dest, iteration, what, vector[: -stamp_length(vector.dtype)].copy()))
        return HAS_LEFT

    def send_vectors(self, dest: int, vectors: list[np.ndarray]) -> None:
        for vector in vectors:
            self.send_vector(dest, vector)

    def post(self, buffer: np.ndarray, source: int = 0) -> None:
        self.posted += 1

    def keep(self, buffer: np.ndarray) -> None:
        pass

    def be_patient(self, timeout: float, stopped_timeout: float) -> None:
        pass

    def broadcast(self, data: bytes, doing: str = "") -> bytes:
        return data

    def gather(self, text: str, doing: str = "") -> list[str]:
        others = "" if text == "yes" else text  # they do not see the checkpoint
        return [text, *[others] * (self.size - 1)]

    def start(self, from_everybody: bool = False) -> None:
        pass

    def kill(self, rank: int) -> bool:
        return False

    def neighbours(self, place: int) -> dict[int, Any]:
        return {}

    def pending(self) -> Counter[int]:
        return self.on_the_way

    def sending(self, buffer: np.ndarray | None = None) -> bool:
        return False

    def unreached(self, patience: float) -> list[int]:
        return []

    def wait(self, *_: object, **__: object) -> bool:
        self.wake_others()
        return True

    def wake(self) -> None:
        pass

    def wake_others(self) -> None:
        if self._to_wake:
            self.woken.append(self._to_wake)
            self._to_wake = set()

    def forget(self, rank: int) -> None:
        pass

    remember = forget

    def queue(self, worker: int, kind: Kind = Kind.DEFAULT_QUEUE) -> list[int]:
        """The newest queue of that kind that `worker` was sent, as far as it has been sent whole."""
        entries = [entry for entry in self.records[worker] if entry["kind"] == kind]
        ends = [place for place, entry in enumerate(entries) if entry["last"]]
        first = ends[-2] + 1 if len(ends) > 1 else 0
        return [int(entry["chunk"]) for entry in entries[first : ends[-1] + 1] if entry["chunk"] >= 0]


class Following(Transport):
    """The replicas of the workers follow at once; what the script has to say arrives after that."""

    def __init__(self, ranks: int, script: Iterator[list[Any]] | None = None) -> None:
        super().__init__(ranks, script)
        self._at: dict[int, int] = {}  # worker -> iteration
        self._lacking: set[int] = set()  # who is to begin, and has no state
        self._said: list[Any] = []
        self._quiet = 0  # polls in which nothing arrives: rank 0 makes a step, and passes something on

    def poll(self) -> list[Any]:
        if self._said:
            self._said, said = [], self._said
            return said
        if self._quiet or self._lacking:
            self._quiet = max(0, self._quiet - 1)
            return []
        return super().poll()

    def send(self, dest: int, records: list[Records]) -> None:
        super().send(dest, records)
        for entry in np.concatenate(records):
            iteration = int(entry["iteration"])
            match Kind(int(entry["kind"])):
                case Kind.BEGIN if dest not in self._at:
                    self._lacking.add(dest)
                case Kind.STATE if entry["last"]:
                    self._come_to(dest, iteration)
                case Kind.GIVE:
                    self._come_to(int(entry["worker"]), iteration)
                case Kind.CLOSE if entry["last"] and self._at.get(dest) == iteration:
                    self._come_to(dest, iteration + 1)
                case Kind.STOP:
                    self._lacking.clear()

    def forget(self, rank: int) -> None:
        self._lacking.discard(rank)

    def _come_to(self, worker: int, iteration: int) -> None:
        self._at[worker], self._quiet = iteration, self.size
        self._lacking.discard(worker)
        self._said.append(said(worker, Kind.STEPPED, iteration))


def config_of(timeout: float = 30.0, adopt: bool = True, **settings: Any) -> Config:
    """A run with these settings, in whatever combination. timeout: faults.collect_timeout."""
    config = Config(
        problem=PythonProblem(python="model:problem"),
        optimizer=OptimizerSettings(kind="sgd", lr=0.5),
        iterations=1,
        output="out",
        transfer="per_chunk",
    )
    faults = config.faults.model_copy(update={"collect_timeout": timeout, "adopt": adopt})
    return config.model_copy(update={"faults": faults, **settings})


def done(
    worker: int,
    iteration: int,
    chunk: int,
    gradient: Any,
    seconds: float = 1.0,
    loss: float = 1.0,
    held_out: tuple[float, float] = (0.0, 0.0),
) -> Vector:
    """A coded gradient with the tail of its report, as it arrives (`per_chunk`)."""
    vector = np.concatenate([np.atleast_1d(gradient), [0.0, seconds, loss, *held_out, 0.0]])
    assert len(vector) == np.size(gradient) + TAIL
    return Vector(worker, iteration, chunk, vector, len(vector))


def said(worker: int, kind: Kind, /, *fields: Any, **more: Any) -> Control:
    """One record, as it arrives."""
    return Control(worker, record(kind, *fields, **more))
