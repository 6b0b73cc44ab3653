"""The clock of a simulated world, in the place of the module `time`."""


class Clock:
    """now: seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now
