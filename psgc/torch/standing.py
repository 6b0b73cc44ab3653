"""The script's place in the run: loads the state to continue from, and makes the state for other ranks and runs."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import torch
from torch import nn

from psgc.config.torch import TorchRun
from psgc.errors import UserError
from psgc.torch.checks import Groups, changed
from psgc.torch.evaluation import Evaluator
from psgc.torch.fingerprint import Fingerprint
from psgc.torch.flat import FlatModel
from psgc.torch.generators import Generators, preserved
from psgc.torch.modes import Modes, evaluating_of
from psgc.torch.sampling import Batch, Position, Sampler
from psgc.torch.settings import kept_in_states
from psgc.torch.state import About, Stateful, about_in, about_of, load_state, state_of
from psgc.torch.steps import Steps
from psgc.torch.tensor_files import from_bytes, to_memory


class Standing:
    """Loads and makes states of a run.

    attached: the objects that are part of the state besides the model
    settings: the settings of the run
    sampler, steps, evaluator: the run's; they are set to the state that is loaded

    iteration: the iteration of the next call
    loss: the newest loss
    pending: a state that has come, and is loaded before the next batch
    has_moved: whether a state was loaded since the newest batch
    is_behind: whether the newest state that has come is of another rank
    catches_up: whether this state was loaded, and the next call is the one of the state
    loaded: a checksum of the state of `load`, for the next call
    initial: of each attached optimizer, the settings when it was attached; in a resumed run those of the checkpoint
    note: what rank 0 is to say about the state that was loaded; empty if nothing
    """

    def __init__(
        self,
        model: nn.Module,
        attached: Sequence[Stateful],
        flat: FlatModel,
        settings: TorchRun,
        sampler: Sampler,
        steps: Steps,
        evaluator: Evaluator,
    ) -> None:
        self._model, self._attached, self._flat = model, attached, flat
        self._seed, self._kept = settings.seed, kept_in_states(settings)
        self._sampler, self._steps, self._evaluator = sampler, steps, evaluator
        self.iteration, self.loss = 0, 0.0
        self.pending: bytes | bytearray | None = None
        self._latest: bytes | bytearray | None = None  # the state that was loaded, until the next batch begins
        self.has_moved = self.is_behind = self.catches_up = False
        self.loaded: int | None = None
        self.initial, self.note = list[Groups](), ""
        self._initial_then: Sequence[Groups] = ()  # of the state of a resumed run, until it is loaded
        self._position = Position()  # position of a state that is made now
        self._generators = Generators.now(flat.device)  # generators of a state that is made now
        self._at_batch: tuple[Position | None, Generators] = None, self._generators  # before the newest batch
        self._modes: Modes | None = None  # at the newest gradient (`frozen`: or `ends`), or of the state loaded since
        self._to_set: Generators | None = None  # generators of a loaded state, to be set before the next batch
        self._fingerprint = Fingerprint(model, attached)

    # continuing from a state

    def comes(self, iteration: int, state: bytes | bytearray | None, is_behind: bool = False) -> None:
        """Continue with the call of `iteration`. state: to be loaded before the next batch; None: nothing to load."""
        self.iteration, self.pending, self.is_behind = iteration, state, is_behind
        if state is not None:
            about = about_in(state, "the state")
            self._evaluator.results = about.evaluations
            self._initial_then = () if is_behind else about.initial

    def load_own(self) -> None:
        """Load the pending state, unless it is of another rank: such a state is only loaded before a batch."""
        if not self.is_behind:
            self._load_pending()

    def load(self, state: dict[str, Any], where: str) -> None:
        """Continue from a state that the script has. where: the state's name in errors. Raises UserError.

        As in torch, what is frozen or in evaluation mode stays so: the script may have frozen a part just before.
        """
        self._take(state, where)
        self._modes = None
        if self._latest is None:  # else the latest state is loaded again before the next batch
            self._evaluator.results = about_of(state, where).evaluations
        params = self._flat.params.detach().cpu().view(torch.uint8).numpy()
        self.loaded = crc32(repr(self._sampler.position).encode(), crc32(params.data))

    def before_batch(self) -> None:
        """Load the state to continue from, before the script gets a batch.

        If no batch has begun since it was loaded, load it again: the script may have stepped schedules.
        """
        is_again = self.pending is None
        if is_again:
            self.pending = self._latest
        self._load_pending(is_again)

    def has_none(self) -> None:
        """A loop has no batch, since it was done before the loaded state. So what follows the loop was done as well."""
        if self._latest is None:
            self.is_at(self._sampler.position)
            self._latest = self.state()

    def begin(self, batch: Batch) -> None:
        """This batch begins."""
        self._latest, self.has_moved = None, False
        self.restore_generators()
        self._at_batch = batch.position, Generators.now(self._flat.device)

    def restore_generators(self) -> None:
        """Set the generators to those of a state that was loaded, once."""
        if self._to_set is not None:
            self._fingerprint.generators, self._to_set = self._to_set, None
            self._fingerprint.generators.set(self._flat.device)

    def begins_evaluation(self) -> None:
        """An evaluation begins that the loaded state does not know, after the loops that were done before the state.

        So the state was made at this call, when the run was asked to end: what the script has done before it since was
        done already, and what it does after it was not.
        """
        self.load_own()
        if self._latest is not None and not self.is_behind and not self.is_past:
            self.pending = self._latest
            self._load_pending(is_again=True)  # what the script has frozen since, it has frozen before the state, too
            self._latest = None
            self.restore_generators()

    @property
    def is_past(self) -> bool:
        """Whether the state is one of a later batch than all batches of the script's loops so far."""
        pending = self.pending
        if pending is not None and self.is_behind:
            return True
        at = self._sampler.position if pending is None else about_in(pending, "the state").position
        return (at.epoch, at.start) > (self._sampler.epochs, 0)

    def _load_pending(self, is_again: bool = False) -> None:
        if self.pending is not None:
            self._latest, self.pending = self.pending, None
            self._set_modes(self._take(from_bytes(self._latest, "the state"), "the state"), is_again)
            self.catches_up = self._sampler.is_of_other = self.is_behind
            if self._initial_then:
                kinds = [type(thing).__name__ for thing in self._attached if isinstance(thing, torch.optim.Optimizer)]
                self.note = changed(self._initial_then, self.initial, kinds)
                self.initial, self._initial_then = [*self._initial_then], ()

    def _take(self, state: Any, where: str) -> About:
        about = about_of(state, where)
        if about.seed != self._seed:
            raise UserError(
                f"{where}: it is of a run with seed {about.seed}, this one has {self._seed}; expected the same"
            )
        self._sampler.check(about.position, about.drawn)
        generators = None if about.random is None else Generators.of(about.random)
        if generators is not None:
            with preserved(self._flat.device):
                generators.set(self._flat.device)  # so that an invalid state raises now
        load_state(state, self._model, self._attached, where)
        self.loss, self.loaded = about.loss, about.loaded
        self._sampler.go_to(about.position, about.drawn, about.left)
        self._flat.check()
        self._flat.clear()
        self._steps.forget()
        self.has_moved, self._to_set = True, generators
        return about

    def _set_modes(self, about: About, is_again: bool) -> None:
        """Freeze parameters, and set train() and eval(), as they were.

        At the beginning of an epoch the script may have done so itself since the state was loaded first, as it does in
        an undisturbed run after the state. Within an epoch what it has done since belongs to earlier batches.
        """
        self._modes = about.modes
        if self._modes is not None and (self._modes.is_begun or about.position.start or not is_again):
            self._modes.set(self._model, self._flat.names)

    # making a state

    def is_at(self, position: Position, in_backward: bool = False) -> None:
        """States that are made from now on continue at this position.

        If the batch at this position has begun, states have the generators from before it, so that the script draws the
        same random numbers again.

        in_backward: this is a call for the gradient of the batch; between such calls the script may evaluate by itself
        """
        before, generators = self._at_batch
        if before != position:
            generators = Generators.now(self._flat.device)
        self._position, self._generators = position, self._to_set or generators
        if in_backward:
            self._modes = Modes(self._flat.frozen, evaluating_of(self._model), before == position)
        elif self._modes is not None and not self.has_moved:
            self._modes = self._modes._replace(is_begun=before == position)

    def ends(self) -> None:
        """The script has done what it does with a batch. What it freezes later, for an export, is in no state."""
        if self._modes is not None:
            self._modes = self._modes._replace(frozen=self._flat.frozen)

    def state(self, calls: int | None = None, seconds: float = 0.0, memory: bytearray | None = None) -> bytearray:
        """The state from which another rank continues, or another run from a checkpoint.

        calls: number of calls before it; None: at the present call
        seconds: the time that the run has taken, in a checkpoint
        memory: see `to_memory`
        """
        about = About(
            *(self.iteration if calls is None else calls, self._position, self._seed, self.loss),
            *(self._evaluator.results, self.loaded, self._generators.saved()),
            seconds=seconds,
            drawn=self._sampler.drawn_at(self._position),
            left=self._sampler.left_before(self._position),
            modes=self._modes,
            kept=self._kept,
            initial=self.initial,
        )
        return to_memory(state_of(self._model, self._attached, about), memory)

    def digest(self) -> bytes:
        """16 bytes of everything that decides the next step, at present."""
        return self._fingerprint.digest(Generators.now(self._flat.device), self._modes)
