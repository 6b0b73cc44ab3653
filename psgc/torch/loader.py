"""The examples of a chunk, in micro-batches; those of the next chunk are loaded while this one is computed."""

import atexit
import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.data import default_collate

from psgc.errors import UserError, one_line, raised_at
from psgc.machine import local_ranks, usable_cores
from psgc.torch.generators import GENERATORS, Draws, NoDraws, all_states, states
from psgc.torch.loading import Loading, Times, indexed
from psgc.torch.sampling import length_of

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
    """Loads rows of a map-style dataset in micro-batches, and the next ones ahead, in a thread.

    Only one thread uses the dataset at a time. It is loaded ahead once that would save more time than a thread costs.
    Where all cores compute, a thread saves only the time in which a load waits.

    It is not loaded ahead when it draws random numbers: then `micro_batches` loads it, where they are seeded by the
    chunk. Whether it does is seen with the first chunk, which is never loaded ahead, and watched from then on. Nor is
    it loaded ahead any more once that has failed: what is wrong comes out where the rows are used.

    collate_fn: examples -> batch, as of torch's DataLoader, whose default is the default here; size: examples of a
    batch at most, may be changed. The rows of a chunk are spread evenly over as few batches as that allows, so that
    none is left alone, as batch normalisation needs it. The dataset's `__getitems__` is used if it has one.
    spare_core: whether there is a core for the thread; may_load_ahead: None while that is not known.

    Raises UserError for a dataset without length (`length_of`).
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any] | None,
        size: int,
        spare_core: bool = True,
    ) -> None:
        self._length, self._spare_core = length_of(dataset), spare_core
        self._dataset, self._collate, self.size = dataset, collate_fn or default_collate, size
        self._indexed = indexed(dataset, self._collate)
        self._reading = threading.Lock()
        self._changed = threading.Condition()  # guards what follows
        self._current = Loading()
        self._next = Loading()  # what is expected
        self._before = Loading()  # what was expected before that
        self.may_load_ahead: bool | None = None
        self._savings: deque[float] = deque(maxlen=TIMED)  # seconds of loads that were not ahead
        self._is_worth_it = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def micro_batches(self, rows: Sequence[int] | np.ndarray) -> Iterator[MicroBatch]:
        """The micro-batches of a chunk, in order. It may be left early; one chunk at a time.

        Raises UserError, with the row, when the dataset or collate_fn fails.
        """
        with self._changed:
            self._current = Loading(rows, self.size)
            if self._before.is_like(self._current):
                self._current = self._before
            elif self._next.is_like(self._current):
                self._current, self._next = self._next, Loading()
            self._before = Loading()
            self._start()
            return self._batches(self._current)

    def _batches(self, chunk: Loading) -> Iterator[MicroBatch]:
        draws = False
        try:
            for at in range(chunk.batches):
                rows = chunk.rows_of(at)
                if self.may_load_ahead is None:
                    before = all_states()
                    batch = self._load(rows)
                    draws = draws or all_states() != before
                else:
                    batch = self._taken(chunk, at)
                yield MicroBatch(len(rows), batch)
            if self.may_load_ahead is None and len(chunk.rows):
                with self._changed:  # a default device, unlike a default dtype, is that of one thread
                    self.may_load_ahead = not draws and torch.get_default_device().type == "cpu"
                    self._start()
        finally:
            with self._changed:
                if self._current is chunk:
                    self._current = Loading()
                    self._start()

    def micro_batch(self, rows: Sequence[int]) -> MicroBatch:
        """The micro-batch of these rows, loaded now. Raises UserError, as above."""
        with self._reading:
            return MicroBatch(len(rows), self._collated(np.asarray(rows)))

    def expect(self, rows: Sequence[int] | np.ndarray) -> None:
        """Load these rows next, ahead: most probably the next chunk is of them. Any thread may call it.

        They take the place of those that were expected before, of which no more is loaded; what is loaded stays for the
        next chunk, so this may be called right before `micro_batches` as well. No rows: nothing is expected.
        """
        with self._changed:
            if not self._next.is_like(expected := Loading(rows, self.size)):
                self._before, self._next = self._next, expected
                self._start()

    def close(self) -> None:
        """Load nothing ahead any more, and drop what was. May be called again."""
        with self._changed:
            self._closed = True
            self._next = self._before = Loading()
            self._changed.notify_all()

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
        return self._load(chunk.rows_of(at))

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
            batch = self._collated(rows)
            if states() != before:
                raise Draws
        return batch

    def _load(self, rows: np.ndarray) -> Any:
        with self._reading:
            before = Times()
            batch = self._collated(rows)
            self._savings.append(before.savings(Times(), self._spare_core))
        if len(self._savings) >= LEAST and statistics.median_low(self._savings) > LONG:
            self._is_worth_it = True
        return batch

    def _collated(self, which: np.ndarray) -> Any:
        if self._indexed is not None:
            with suppress(Exception):  # row by row it is told which one it is
                return self._indexed(which)
        rows = which.tolist()
        examples = self._examples(rows)
        try:
            return self._collate(examples)
        except Exception as error:  # the user's code
            name = getattr(self._collate, "__name__", type(self._collate).__name__)
            raise UserError(f"{name} of {_shown(rows)}: {one_line(error)}{raised_at(error)}") from error

    def _examples(self, rows: list[int]) -> list[Any]:
        many = getattr(self._dataset, "__getitems__", None)
        if not many:
            return [self._example(row) for row in rows]
        try:
            examples = many(rows)
        except Exception as error:  # the user's code
            for row in rows:  # which one is it?
                try:
                    many([row])
                except Exception as alone:
                    raise self._failed([row], alone) from alone
            raise self._failed(rows, error) from error
        if len(examples) != len(rows):
            name = type(self._dataset).__name__
            raise UserError(f"the dataset ({name}): __getitems__ gave {len(examples)} examples for {len(rows)} rows")
        return list(examples)

    def _example(self, row: int) -> Any:
        try:
            return self._dataset[row]
        except Exception as error:  # the user's code
            raise self._failed([row], error) from error

    def _failed(self, rows: Sequence[int], error: Exception) -> UserError:
        of = f"of the dataset ({type(self._dataset).__name__}, {self._length} examples)"
        return UserError(f"{_shown(rows)} {of}: {one_line(error)}{raised_at(error)}")


def _shown(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]}"
    return f"rows {', '.join(map(str, rows[:3]))}{', ...' if len(rows) > 3 else ''}"
