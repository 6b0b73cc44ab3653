"""Where a rank's replica is, and which iterations the rank follows. A pure state machine, which `Exchange` drives."""


class StepPosition:
    """Where this rank's replica is, and which iterations this rank follows: those that are neither past nor given up.

    steps: the steps that the replica has made, so also the iteration that is next or under way; -1 before `loaded`
    is_behind: whether the replica needs the state of another rank

    >>> position = StepPosition()
    >>> position.loaded(3)
    >>> position.fall_behind(3)
    >>> position.is_at(3), position.is_past(3), position.is_behind, position.can_use(4)
    (True, True, True, True)
    """

    def __init__(self) -> None:
        self.steps = -1
        self.is_behind = False
        self._is_stepping = False
        self._is_wrong = False  # whether the replica is wrong: it makes no more steps
        self._given_up = -1  # the newest iteration that is not followed

    # questions

    def is_at(self, iteration: int) -> bool:
        """Whether gradients of `iteration` can be computed with the replica. This rank may not get their sum."""
        return self.steps == iteration and not self._is_wrong

    def comes_to(self, iteration: int) -> bool:
        """Whether the replica is at `iteration`, or will be after the step in progress."""
        return self.steps + self._is_stepping == iteration and not self._is_wrong

    def can_use(self, iteration: int) -> bool:
        """Whether another rank's state at the beginning of `iteration` helps this rank."""
        return iteration > self.steps - self._is_wrong and iteration >= self._given_up

    def is_past(self, iteration: int) -> bool:
        """Whether the step of `iteration` is made, or will not be made here."""
        return iteration < self.steps or iteration <= self._given_up

    def is_stepping(self, iteration: int) -> bool:
        """Whether the replica makes the step of `iteration` now."""
        return self._is_stepping and iteration == self.steps

    # events

    def begin_step(self) -> None:
        """The replica begins its next step."""
        self._is_stepping = True

    def stepped(self) -> None:
        """The step is made."""
        self._is_stepping = False
        self.steps += 1

    def loaded(self, iteration: int) -> None:
        """The replica is at the beginning of `iteration`, with the state of another rank or at the first iteration."""
        self.is_behind = iteration == self._given_up  # it may redo chunks of the iteration, but gets no sum of it
        self._is_stepping, self._is_wrong = False, False
        self.steps, self._given_up = iteration, iteration - 1

    def follow(self, iteration: int) -> None:
        """This rank gets the sum of `iteration`, or needs none: a replica that comes there needs no other state."""
        self.is_behind = self.is_behind and not self.comes_to(iteration)

    def fall_behind(self, iteration: int, may_redo: bool = False) -> None:
        """The step of `iteration` will not be made here. may_redo: chunks of it may still have to be done here."""
        self.is_behind = True
        self._given_up = max(self._given_up, iteration - may_redo)

    def missed(self, iteration: int) -> None:
        """The gradient of `iteration` is wrong. A step with it counts for nothing."""
        self._is_stepping = self._is_stepping and iteration != self.steps
        self.fall_behind(iteration)

    def drop(self) -> int:
        """The replica is wrong, and stays so after the step in progress. Returns the iteration of its last step."""
        self._is_wrong, last = True, self.steps + self._is_stepping - 1
        self.fall_behind(last)
        return last

    def ended_unheard(self, iteration: int) -> None:
        """`iteration` is closed, and this rank does not learn how."""
        self._given_up = max(self._given_up, iteration)
        self.is_behind = self.is_behind or iteration >= self.steps
