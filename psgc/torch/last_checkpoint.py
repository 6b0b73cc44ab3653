"""The last checkpoint of a script's run: whether there can be one, and at which place the run goes on from it."""

from psgc.errors import ModelError, PsgcError
from psgc.torch.calls import Call
from psgc.torch.sampling import Batch, Position, Sampler
from psgc.torch.standing import Standing
from psgc.torch.steps import Steps


class LastCheckpoint:
    """Follows the calls of a script, to know whether a run that ends now can go on from its state.

    is_allowed: False while the script is at no place at which a run can go on
    is_broken: the newest call has failed since the loss is not finite, within a batch that is not finished, or with
        other parameters in the model; or the script raised
    """

    is_allowed, is_broken = True, False

    def __init__(self, steps: Steps, standing: Standing, sampler: Sampler) -> None:
        self._steps, self._standing, self._sampler = steps, standing, sampler
        self._after_loop: int | None = None  # a checksum of the parameters at the end of the newest loop
        self._stopped_at: Position | None = None  # the place of the call that has failed

    def loop_ends(self) -> None:
        """A loop over batches has ended, or was left."""
        self._after_loop = self._steps.checksum()

    def begins_call(self) -> None:
        """The script makes a call. If the one before has failed, the script has caught the error, and goes on."""
        self._stopped_at, self.is_broken = None, False

    def failed(self, error: PsgcError, call: Call, batch: Batch | None) -> None:
        """The call has failed. batch: whose gradient it is; None for an evaluation."""
        # within a batch of several calls, the script has done only a part of what the batch needs
        is_in_batch = batch is not None or self._steps.loops > 0
        self.is_broken = isinstance(error, ModelError) or (is_in_batch and not call.is_whole)
        if not is_in_batch and self._after_loop is not None:  # others may be in the model for this evaluation
            self.is_broken = self.is_broken or self._steps.checksum() != self._after_loop
        if batch is not None:
            self._stopped_at = batch.position
        elif not self._steps.is_between:  # the loop before is over, also if it was left by `break`
            self._stopped_at = Position(self._sampler.position.iteration, self._sampler.end_of_loop)

    @property
    def position(self) -> Position | None:
        """The place at which the run goes on from its present state; None if it cannot."""
        if not self._steps.is_complete or not self.is_allowed or self.is_broken or self._standing.pending is not None:
            return None
        return self._steps.next and (self._stopped_at or self._steps.next)
