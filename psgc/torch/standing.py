"""Where a script stands: the state that it goes on from, and the one that another rank or run can go on from."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

from torch import nn

from psgc.errors import UserError
from psgc.torch.evaluation import Evaluator
from psgc.torch.fingerprint import Fingerprint
from psgc.torch.flat import FlatModel
from psgc.torch.generators import Generators, preserved
from psgc.torch.sampling import Batch, Position, Sampler
from psgc.torch.state import About, Stateful, about_in, about_of, load_state, state_of
from psgc.torch.steps import Steps
from psgc.torch.tensor_files import from_bytes, to_bytes, to_memory


class Standing:
    """attached: what belongs to the state besides the model; seed: of the run. sampler, steps, evaluator: those of the
    run, which follow the state that is loaded.

    iteration: of the next call; loss: the newest.
    pending: a state that has come, and is loaded before the next batch.
    has_moved: a state was loaded since the newest batch; is_behind: the newest one that has come is of another rank;
    catches_up: it was loaded, and the next call is that of this state.
    loaded: a checksum of what `load` has loaded, for the next call.
    """

    def __init__(
        self,
        model: nn.Module,
        attached: Sequence[Stateful],
        flat: FlatModel,
        seed: int,
        sampler: Sampler,
        steps: Steps,
        evaluator: Evaluator,
    ) -> None:
        self._model, self._attached, self._flat, self._seed = model, attached, flat, seed
        self._sampler, self._steps, self._evaluator = sampler, steps, evaluator
        self.iteration, self.loss = 0, 0.0
        self.pending: bytes | None = None
        self._latest: bytes | None = None  # the state that was loaded, until a batch begins from it
        self.has_moved = self.is_behind = self.catches_up = False
        self.loaded: int | None = None
        self._position = Position()  # where a state that is made now would go on
        self._generators = Generators.now(flat.device)  # with which random numbers it would
        self._at_batch: tuple[Position | None, Generators] = None, self._generators  # before the newest batch
        self._to_set: Generators | None = None  # of a state that was loaded, before the next batch
        self._fingerprint = Fingerprint(model, attached)

    # going on from a state

    def comes(self, iteration: int, state: bytes | None, is_behind: bool = False) -> None:
        """The next call is that of `iteration`, with this state; None: there is nothing to load."""
        self.iteration, self.pending, self.is_behind = iteration, state, is_behind
        if state is not None:
            self._evaluator.results = about_in(state, "the state").evaluations

    def load_own(self) -> None:
        """Load the state that is pending, unless it is of another rank: then the script is not where it is of use."""
        if not self.is_behind:
            self._load_pending()

    def load(self, state: dict[str, Any], where: str) -> None:
        """Go on from a state that the script has. where: said in errors. Raises UserError."""
        self._take(state, where)
        if self._latest is None:  # else this is undone
            self._evaluator.results = about_of(state, where).evaluations
        params = self._flat.params.detach().cpu().numpy()
        self.loaded = crc32(repr(self._sampler.position).encode(), crc32(params.data))

    def before_batch(self) -> None:
        """The script comes for a batch: the state that it goes on from is loaded, again if no batch has begun since,
        for the script may have stepped schedules.
        """
        if self.pending is None:
            self.pending = self._latest
        self._load_pending()

    def has_none(self) -> None:
        """A loop has no batch: all of it was done before the state that was loaded, and what follows it, too."""
        if self._latest is None:
            self.is_at(self._sampler.position)
            self._latest = self.state()

    def begin(self, batch: Batch) -> None:
        self._latest, self.has_moved = None, False
        if self._to_set is not None:
            self._fingerprint.generators, self._to_set = self._to_set, None
            self._fingerprint.generators.set(self._flat.device)
        self._at_batch = batch.position, Generators.now(self._flat.device)

    @property
    def is_past(self) -> bool:
        """Whether the state is that of a later batch than those of the loops that the script has had."""
        pending = self.pending
        if pending is not None and self.is_behind:
            return True
        at = self._sampler.position if pending is None else about_in(pending, "the state").position
        return (at.epoch, at.start) > (self._sampler.epochs, 0)

    def _load_pending(self) -> None:
        if self.pending is not None:
            self._latest, self.pending = self.pending, None
            self._take(from_bytes(self._latest, "the state"), "the state")
            self.catches_up = self.is_behind

    def _take(self, state: Any, where: str) -> None:
        about = about_of(state, where)
        if about.seed != self._seed:
            raise UserError(
                f"{where}: it is of a run with seed {about.seed}, this one has {self._seed}; expected the same"
            )
        self._sampler.check(about.position)
        generators = None if about.random is None else Generators.of(about.random)
        if generators is not None:
            with preserved(self._flat.device):
                generators.set(self._flat.device)  # raises now, not later
        load_state(state, self._model, self._attached, where)
        self.loss, self.loaded, self._sampler.position = about.loss, about.loaded, about.position
        self._flat.check()
        self._flat.clear()
        self._steps.forget()
        self.has_moved, self._to_set = True, generators

    # a state to go on from

    def is_at(self, position: Position) -> None:
        """A state that is made now goes on at this position.

        If that batch has begun it goes on with the random numbers before it: what was drawn for it is drawn again.
        """
        before, generators = self._at_batch
        if before != position:
            generators = Generators.now(self._flat.device)
        self._position, self._generators = position, self._to_set or generators

    def state(self, calls: int | None = None) -> bytes:
        """What another rank needs to go on from the call that this one is in, or that it has made after so many."""
        return to_bytes(self._state(self.iteration if calls is None else calls, 0.0))

    def checkpoint(self, calls: int, seconds: float, memory: bytearray | None) -> bytearray:
        """What a run needs to go on after so many calls, which have taken so long. memory: see `to_memory`."""
        return to_memory(self._state(calls, seconds), memory)

    def _state(self, calls: int, seconds: float) -> dict[str, Any]:
        about = About(
            *(calls, self._position, self._seed, self.loss),
            *(self._evaluator.results, self.loaded, self._generators.saved()),
            seconds=seconds,
        )
        return state_of(self._model, self._attached, about)

    def digest(self) -> bytes:
        """16 bytes of all that decides the next step, as it is now."""
        return self._fingerprint.digest(Generators.now(self._flat.device))
