"""The examples of a chunk, in micro-batches; those of the next chunk are loaded while this one is computed."""

import atexit
import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch

from psgc.machine import local_ranks, usable_cores
from psgc.torch.generators import GENERATORS, Draws, NoDraws, states
from psgc.torch.loading import Loading, Times
from psgc.torch.processes import Processes, taken_apart
from psgc.torch.reading import Reader

AHEAD = 2  # micro-batches that are loaded before they are asked for, at most, and of what is not expected any more
LONG = 1e-3  # seconds of a load that a thread has to save: it costs about 0.6 ms of CPU time for each
LEAST, TIMED = 3, 9  # the newest loads, of which the median has to save so much: the first may be slow

LAST_LOAD = 5.0  # seconds that Python's end waits for a load that is under way
_with_thread: "WeakSet[ChunkLoader]" = WeakSet()


@atexit.register
def _end_threads() -> None:
    """A thread that is inside torch while Python ends aborts the process."""
    loaders = [*_with_thread]
    for loader in loaders:
        loader.close()
    for loader in loaders:
        loader.join(LAST_LOAD)


def has_spare_core(device: torch.device) -> bool:
    """Whether the ranks of this machine leave a core to others while their models, on such a device, compute."""
    return device.type != "cpu" or usable_cores() > local_ranks() * torch.get_num_threads()


class MicroBatch(NamedTuple):
    """What the loss is called with. rows: how many examples it is made of; batch: of collate_fn."""

    rows: int
    batch: Any


class ChunkLoader:
    """Loads rows of a map-style dataset in micro-batches, and the next ones ahead: in the worker processes of a
    DataLoader, if it is given one with such in place of the dataset, otherwise in a thread.

    Only one thread uses the dataset at a time. It is loaded ahead once that would save more time than a thread costs.
    Where all cores compute, a thread saves only the time in which a load waits.

    A thread does not load ahead what draws random numbers, since all threads have the same generators. Whether it does
    is seen with the first chunk, which is never loaded ahead, and watched from then on. Nor does it load ahead any more
    once that has failed: what is wrong comes out where the rows are used.

    collate_fn: examples -> batch, by default that of the DataLoader, or torch's; size: examples of a batch at most;
    seed: (seed, epoch), of what rows draw; both may be changed. The rows of a chunk are spread evenly over as few
    batches as that allows, so that none is left alone, as batch normalisation needs it.
    spare_core: whether there is a core for the thread; may_load_ahead: None while that is not known.
    ahead: how many micro-batches it is of use to know beforehand.

    Raises UserError for a dataset without length (`length_of`), or a DataLoader that cannot be used (`taken_apart`).
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any] | None,
        size: int,
        spare_core: bool = True,
    ) -> None:
        self._spare_core, self.size = spare_core, size
        self.seed: tuple[object, ...] = (0, 0)
        rows, collate, like = taken_apart(dataset, collate_fn)
        self._reader = Reader(rows, collate)
        self.length = self._reader.length
        self._processes = None if like is None else Processes(self._reader, like)
        self.ahead = 0 if self._processes is None else self._processes.ahead
        self._reading = threading.Lock()
        self._changed = threading.Condition()  # guards what follows
        self._current = Loading()
        self._next = Loading()  # what is expected
        self._before = Loading()  # what was expected before that
        self._then: Sequence[Loading] = ()  # what comes after that
        self.may_load_ahead: bool | None = None if self._processes is None else False
        self._savings: deque[float] = deque(maxlen=TIMED)  # seconds of loads that were not ahead
        self._is_worth_it = False
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def mixes(self) -> bool:
        """Whether collate_fn has drawn random numbers so far: then it matters which rows are loaded together."""
        return self._reader.mixes or (self._processes is not None and self._processes.mixes)

    def micro_batches(self, rows: Sequence[int] | np.ndarray, then: Sequence[Loading] = ()) -> Iterator[MicroBatch]:
        """The micro-batches of a chunk, in order. It may be left early; one chunk at a time.

        then: what probably comes after it and what is expected, for worker processes.

        Raises UserError, with the row, when the dataset or collate_fn fails.
        """
        with self._changed:
            self._current, self._then = Loading(rows, self.size, self.seed), then
            if self._before.is_like(self._current):
                self._current = self._before
            elif self._next.is_like(self._current):
                self._current, self._next = self._next, Loading()
            self._before = Loading()
            self._start()
            self._tell()
            return self._batches(self._current)

    def _batches(self, chunk: Loading) -> Iterator[MicroBatch]:
        try:
            for at in range(chunk.batches):
                yield MicroBatch(len(chunk.rows_of(at)), self._taken(chunk, at))
            if self.may_load_ahead is None and len(chunk.rows):
                with self._changed:  # a default device, unlike a default dtype, is that of one thread
                    self.may_load_ahead = torch.get_default_device().type == "cpu"
                    self._start()
        finally:
            with self._changed:
                if self._current is chunk:
                    self._current = Loading()
                    self._start()

    def micro_batch(self, rows: Sequence[int]) -> MicroBatch:
        """The micro-batch of these rows, loaded now. Raises UserError, as above."""
        return MicroBatch(len(rows), self._load(np.asarray(rows, np.int64), self.seed))

    def expect(self, rows: Sequence[int] | np.ndarray) -> None:
        """Load these rows next, ahead: most probably the next chunk is of them. Any thread may call it.

        They take the place of those that were expected before, of which no more is loaded; what is loaded stays for the
        next chunk, so this may be called right before `micro_batches` as well. No rows: nothing is expected.
        """
        with self._changed:
            if not self._next.is_like(expected := Loading(rows, self.size, self.seed)):
                self._before, self._next = self._next, expected
                self._start()
                self._tell()

    def close(self) -> None:
        """Load nothing ahead any more, and drop what was. May be called again."""
        with self._changed:
            self._closed = True
            self._next = self._before = Loading()
            self._changed.notify_all()
        if self._processes is not None:
            self._processes.close()

    def join(self, timeout: float) -> None:
        """After `close`: wait for a load that is under way, so many seconds at most."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _start(self) -> None:
        """Have the thread load what there is to load, if it may; to wake it for nothing takes long."""
        if not self._is_loading_ahead() or self._to_load() is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="psgc-loader", daemon=True)
            _with_thread.add(self)
            self._thread.start()
        self._changed.notify_all()

    def _tell(self) -> None:
        """Have the processes load what there is to load."""
        if self._processes is not None:
            self._processes.need([self._current, self._next, *self._then])

    def _taken(self, chunk: Loading, at: int) -> Any:
        """Micro-batch `at` of the chunk: from the thread if it has begun it, else loaded here."""
        with self._changed:
            if chunk.begun > at:
                self._changed.wait_for(lambda: chunk.loaded or not self._is_loading_ahead())
                if chunk.loaded:
                    batch = chunk.loaded.popleft()
                    self._start()
                    return batch
            chunk.begun = at + 1
            self._start()
        return self._load(chunk.rows_of(at), chunk.seed)

    def _is_loading_ahead(self) -> bool:
        return bool(self.may_load_ahead) and self._is_worth_it and not self._closed

    def _run(self) -> None:
        """The thread."""
        with NoDraws():
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: not self._is_loading_ahead() or self._to_load() is not None)
                    if not self._is_loading_ahead() or (chunk := self._to_load()) is None:
                        return
                    rows = chunk.rows_of(chunk.begun)
                    chunk.begun += 1
                try:
                    batch = self._load_quietly(rows)
                except BaseException:  # of the dataset; `_taken` will meet it again, if it is an error
                    with self._changed:
                        self.may_load_ahead = False
                        self._changed.notify_all()
                    return
                with self._changed:
                    chunk.loaded.append(batch)
                    self._changed.notify_all()

    def _to_load(self) -> Loading | None:
        """The chunk whose next micro-batch is to be loaded ahead, if any."""
        if len(self._current.loaded) + len(self._next.loaded) < AHEAD:
            if 0 < self._current.begun < self._current.batches:  # its first one is not worth a change of threads
                return self._current
            if self._next.begun < self._next.batches:
                return self._next
        return None

    def _load_quietly(self, rows: np.ndarray) -> Any:
        """As `_load`. Raises Draws when the dataset draws random numbers."""
        with self._reading, GENERATORS:  # nobody else seeds them meanwhile
            before = states()
            batch = self._reader.plain(rows)
            if states() != before:
                raise Draws
        return batch

    def _load(self, rows: np.ndarray, seed: tuple[object, ...]) -> Any:
        if self._processes is not None:
            return self._processes.take(rows, seed)
        with self._reading:
            before = Times()
            batch = self._reader.load(rows, seed)
            self._savings.append(before.savings(Times(), self._spare_core))
        if self._reader.draws or self._reader.mixes:
            self.may_load_ahead = False
        if len(self._savings) >= LEAST and statistics.median_low(self._savings) > LONG:
            self._is_worth_it = True
        return batch
