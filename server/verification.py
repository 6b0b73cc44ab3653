"""Which copies have to agree before they count (`verify`).

These rules add to those of `psgc.server.coordinator`:

1. A *checked* chunk is committed once the copies of parts + 1 workers agree, to the first `parts` of these workers.
   With `per_chunk` the coded gradients come with the reports. With `combined` sketches come with the reports
   (`psgc.coding.sketch`), and workers keep the copies. Copies that are not committed are discarded. A sketch remains
   when its worker is lost, and still shows whether other copies are right.
2. As soon as the server has more than `parts` copies of a chunk, it compares them. That includes surplus copies that
   come anyway (`per_chunk`), and copies that come after the commit.
3. When no parts + 1 of them agree, the chunk is *disputed*: its commit is taken back, and one more worker does it,
   until parts + 1 copies agree. When all holders have done it, a live worker that does not hold it takes it over.
4. A worker is wrong when its copy differs from the copies that agree. No worker is wrong while the chunk is disputed.
5. A checked chunk whose contributor is lost (`combined`) is done again, and checked again: the new copy counts if it
   agrees with another copy, otherwise one more worker does the chunk.
6. When the iteration ends early (approximate recovery), a checked chunk is committed to the copies that are there, and
   a disputed chunk is left out. If a contributor of such a chunk is lost (`combined`), the new copy is not compared:
   it could show a copy to be wrong that ranks have summed already.
"""

from collections.abc import Sequence

from psgc.errors import TooFewWorkers
from psgc.iteration import is_checked
from psgc.server.instructions import Wrong


class Checks:
    """The comparisons of one iteration.

    every: each chunk is checked once in so many iterations; 0: no copies are compared
    checked: the chunks that need parts + 1 copies that agree
    comparing: the chunks whose copies are being compared
    disputed: the chunks with more than `parts` copies, no parts + 1 of which agree
    """

    def __init__(self, every: int = 0) -> None:
        self.every = every

    def begin(self, iteration: int, num_chunks: int) -> None:
        """Forget the iteration before."""
        chunks = range(num_chunks if self.every else 0)
        self.checked = frozenset(chunk for chunk in chunks if is_checked(chunk, iteration, self.every))
        self.comparing: list[int] = []
        self.disputed: set[int] = set()
        self._wrong: set[tuple[int, int]] = set()  # (worker, chunk)

    def judge(self, chunk: int, copies: Sequence[tuple[int, int]], agreeing: Sequence[int]) -> list[Wrong]:
        """The `copies`, (worker, role) each, were compared. Returns the wrong ones that were not known to be wrong.

        agreeing: the workers whose copies agree, empty when no parts + 1 agree
        """
        self.comparing.remove(chunk)
        if not agreeing:
            self.disputed.add(chunk)
            return []
        self.disputed.discard(chunk)
        wrong = [w for w, _ in copies if w not in agreeing and (w, chunk) not in self._wrong]
        self._wrong.update((worker, chunk) for worker in wrong)
        return [Wrong(worker, chunk, tuple(agreeing)) for worker in wrong]

    def wanted(self, chunk: int, parts: int, there: int) -> int:
        """How many copies an uncommitted chunk needs, when `there` copies have been done."""
        return there + 1 if chunk in self.disputed else parts + (chunk in self.checked)

    def explain(
        self, error: TooFewWorkers, chunk: int, iteration: int, copies: Sequence[tuple[int, int]], parts: int
    ) -> TooFewWorkers:
        """The error when no worker is left to do `chunk`, with the reason if it is disputed."""

        if chunk not in self.disputed:
            return error
        workers = ", ".join(str(worker) for worker, _ in copies)
        hint = str(error).partition("; ")[2]
        return TooFewWorkers(
            f"chunk {chunk}, iteration {iteration}: workers {workers} have done it, no {parts + 1} copies agree, and "
            "nobody is left to ask: the gradient is not deterministic, verify.tolerance is too small, or too many are "
            f"wrong{hint and '; ' + hint}"
        )
