"""Lines for the user about gradients that have not returned for long."""

from dataclasses import dataclass, field

GATHERING = 1.0  # seconds; workers that tell the same line of code meanwhile share a line
NAMED = 4  # workers whose chunks are listed in a line


@dataclass
class Stuck:
    """Puts what workers tell about their chunks into lines.

    >>> stuck = Stuck()
    >>> stuck.told(1, 0, 30.2, "model.py:3: wait()", now=100.0)
    >>> stuck.told(2, 8, 30.0, "model.py:3: wait()", now=100.5)
    >>> stuck.due(100.9), stuck.due(101.0)
    ([], ['for 30 s gradients have not returned: worker 1 in chunk 0, worker 2 in chunk 8; in model.py:3: wait()'])
    """

    _since: float | None = None
    _workers: dict[str, list[tuple[int, int, float]]] = field(default_factory=dict)  # line of code -> worker, chunk, s

    def told(self, worker: int, chunk: int, seconds: float, line: str, now: float) -> None:
        """The worker has been in the gradient of `chunk` for so long, or in held-out rows, which are chunk -1.

        line: of the user's code, empty if unknown.
        """
        self._workers.setdefault(line, []).append((worker, chunk, seconds))
        if self._since is None:
            self._since = now

    def due(self, now: float) -> list[str]:
        """The lines to show now."""
        if self._since is None or now < self._since + GATHERING:
            return []
        told, self._workers, self._since = self._workers, {}, None
        return [_text(line, workers) for line, workers in told.items()]


def _text(line: str, workers: list[tuple[int, int, float]]) -> str:
    places = ((worker, f"chunk {chunk}" if chunk >= 0 else "held-out rows") for worker, chunk, _ in workers[:NAMED])
    named = ", ".join(f"worker {worker} in {place}" for worker, place in places)
    more = f" and {len(workers) - NAMED} more workers" if len(workers) > NAMED else ""
    seconds = min(seconds for _, _, seconds in workers)
    return f"for {seconds:.0f} s gradients have not returned: {named}{more}" + (f"; in {line}" if line else "")
