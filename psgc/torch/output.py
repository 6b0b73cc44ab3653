"""The output of rank 0 from the script's thread: checkpoints, files of the model, loggers, progress.

Every rank keeps track of it, because any rank may take over from rank 0 (`serve`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import nn

from psgc.checkpoints import CheckpointStore
from psgc.config.torch import TorchRun
from psgc.record.loggers import Loggers
from psgc.run.launched import undo, undo_at_takeover
from psgc.run_rows import EvaluationRow
from psgc.terminal import say
from psgc.torch.checkpoints import content_of
from psgc.torch.record import Record
from psgc.torch.standing import Standing
from psgc.torch.tensor_files import save_model


class Output:
    """The output of a run.

    open_loggers: makes the loggers; called when this rank becomes rank 0

    has_moved: the script has loaded another state, so that a checkpoint is due
    loggers: the loggers, on rank 0; None without loggers
    """

    loggers: Loggers | None = None
    has_moved = False

    def __init__(
        self, settings: TorchRun, model: nn.Module, standing: Standing, open_loggers: Callable[[], object]
    ) -> None:
        self._directory, self._model, self._standing = settings.output, model, standing
        self._every, self._keep = settings.checkpoint.every, settings.checkpoint.keep
        self._at_begin = settings.verify_idle  # one before the first step too, so that each step can be undone
        self._store: CheckpointStore | None = None  # on rank 0
        self._memory: bytearray | None = None  # the content of the newest checkpoint; used again for the next one
        self._calls: dict[int, int] = {}  # of the newest checkpoints, by step: number of calls before it; steps rise
        self._open_loggers, self._is_first = open_loggers, False
        self._record: Record | None = None
        self._steps = self._reached = 0  # steps at the end of the script's loop; the step of the newest batch
        self._metrics: dict[str, float] = {}
        self._evaluated: list[EvaluationRow] = []  # evaluations that rank 0 may not have recorded yet
        self._saves: list[Path] = []  # files of the model that rank 0 may not have written yet

    def serve(self, record: Record | None) -> None:
        """This rank is rank 0, from the beginning or from now on. record: the record of the run, if any."""
        self._is_first, self._record = True, record
        if self._directory:
            self._store = CheckpointStore(Path(self._directory) / "checkpoints", self._keep, "step")
        self._open_loggers()
        if record is not None:
            record.metrics = self._metrics
            if self._directory and self._store is not None:
                record.make_room = self._make_room
                of_run = partial(undo, Path(self._directory), self._store.give_up_after)
                record.undo = lambda iteration: of_run(self._step_before(iteration))
                undo_at_takeover(Path(self._directory), of_run)
            if self._steps:
                record.expects(self._steps, self._reached)
            record.evaluated(self._evaluated)
        for path in self._saves:
            self.save(path)

    def goes_on(self, step: int, calls: int) -> None:
        """The run goes on from a checkpoint, the state before `step`. calls: number of calls before it."""
        self._calls = {step: calls}

    def reaches(self, batch: int, steps: int | None) -> None:
        """The batch of this step begins. steps: see `Record.expects`; None: as before."""
        self._reached = batch
        if steps is not None:
            self._steps = steps
            if self._record is not None:
                self._record.expects(steps, batch)

    def called(self) -> None:
        """A call has its answer. So rank 0 has written all that was due before the call."""
        self._saves, self._evaluated = [], []

    def save(self, path: Path) -> None:
        """Write the model, on rank 0. Another rank writes it if rank 0 dies before it has."""
        if not self._is_first:
            self._saves.append(path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(path, self._model)

    def evaluated(self, means: Mapping[str, float], at: tuple[int, int] | None = None) -> None:
        """Take the results of an evaluation. The newest result of each name goes into the summary.

        at: iteration and epoch, see `EvaluationRow`; None: the results are recorded and logged already
        """
        self._metrics = {**self._metrics, **means}
        if at is not None:
            self._evaluated += [EvaluationRow(*at, name, mean) for name, mean in means.items()]
        if self._record is not None:
            self._record.metrics = self._metrics
            self._record.evaluated(self._evaluated)
        if at is not None and self.loggers is not None:
            self.loggers.metrics(at[0], means)

    def after_epoch(self, epoch: int, means: Mapping[str, float]) -> None:
        """After so many epochs these are the means of metrics, and all that the summary has of them."""
        self._metrics = {}
        self.evaluated({"epoch": epoch, **means})
        if self._record is not None:
            say(f"epoch {epoch}  " + "  ".join(f"{name} {mean:.6g}" for name, mean in means.items()))

    def is_due(self, step: int) -> bool:
        """Whether to write a checkpoint before `step`, if the state is whole there. The last one is always written."""
        newest = max(self._calls, default=-1 if self._at_begin else 0)
        return self._every > 0 and (self.has_moved or step // self._every > newest // self._every)

    def write_checkpoint(self, step: int, calls: int) -> None:
        """Begin to write the state before `step`. calls: number of calls before it. Raises as `Record.check_claim`."""
        seconds = 0.0
        if self._record is not None:
            self._record.check_claim()
            seconds = self._record.seconds
        self.has_moved = False
        # a new dict each time, since the MPI thread may read it; a checkpoint replaces those of later steps
        earlier = [(of, before) for of, before in self._calls.items() if of < step]
        self._calls = dict(earlier[-self._keep :]) | {step: calls}
        if self._store is not None:
            if not self._store.flush():
                self._memory = None  # a slow disk may still be taking it
            self._memory = self._standing.state(calls, seconds, self._memory)
            self._store.write(content_of(step, self._memory, self._model))

    def _step_before(self, iteration: int) -> int:
        """The step of the newest checkpoint that has nothing of the call `iteration` in it; -1 if there is none."""
        return max((step for step, calls in self._calls.items() if calls <= iteration), default=-1)

    def _make_room(self) -> bool:
        """Remove the oldest checkpoint, but never the newest. Returns whether one was removed."""
        return self._store is not None and self._store.flush() and self._store.make_room()

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
