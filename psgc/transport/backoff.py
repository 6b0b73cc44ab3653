"""How long to sleep between two looks at MPI: not at all after a message, then longer and longer."""

LARGE = 1 << 16  # bytes from which a transfer is worth looking at without sleeping
SPINS = 3  # looks before the first sleep
HOT_SPINS = 2000  # the same while a large transfer is under way: about 20 ms
SHORTEST, LONGEST, SILENT = 50e-6, 1e-3, 2e-3  # seconds: the first sleep, the longest, and the sleeps after SILENCE
BUSY = 200e-6  # the first sleep while another thread of this process computes
BELL = 32e-3  # the sleeps of a worker that is woken for every message
SILENCE = 0.1  # seconds without a message
GROWTH = 1.3  # of a sleep over the one before: a message is noticed late by a quarter of the time waited


class Backoff:
    """The sleeps of one process. first: seconds of the first sleep after a message, for SHORTEST or longer."""

    def __init__(self, first: float) -> None:
        self._first = first
        self.reset()

    def reset(self, soon: bool = False) -> None:
        """Something has come, or was sent. soon: something is about to come, and the bell has rung."""
        self._looks, self._slept, self._soon = 0, 0.0, soon
        self._sleep = SHORTEST if soon else self._first

    def next(self, large: bool, busy: bool, least: float = 0.0) -> float:
        """Seconds to sleep before the next look, at least `least`.

        large: a large transfer is under way. Where the kernel does not help, its data moves only while MPI is called.
        busy: another thread of this process has a use for the core.
        """
        self._looks += 1
        spins = HOT_SPINS if large else SPINS if self._soon or not busy else 0
        if self._looks <= spins and not least:
            return 0.0
        if self._slept > SILENCE:
            return max(SILENT, self._first)
        sleep = max(self._sleep, least, BUSY if busy else 0.0)
        self._slept += sleep
        self._sleep = max(sleep, min(LONGEST, sleep * GROWTH))
        return sleep
