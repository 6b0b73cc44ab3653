"""Which copies have to agree before they count (`verify`).

Besides the rules of `psgc.server.coordinator`:

1. A chunk that is *checked* in this iteration is committed once the copies of parts + 1 workers agree, to the first
   `parts` of these. With `per_chunk` its coded gradients come with the reports. With `combined` their
   sketches do (`psgc.coding.sketch`), and workers keep the copies; those that are not committed are discarded. A sketch
   outlives its worker: it still shows whether other copies are right.
2. As soon as more than `parts` copies of a chunk are with the server, they are compared: also surplus ones that come
   by themselves (`per_chunk`), and those that come after the commit.
3. When no parts + 1 of them agree, the chunk is *disputed*: taken back if it was committed, and done by one more
   worker, until some do. A live worker that does not hold it takes it over when all holders have done it.
4. A worker is in the wrong when its copy does not agree with those that do. Nobody is while the chunk is disputed.
5. A chunk that was committed to a worker that is lost (`combined`) is checked again when it has been done again: it
   counts if it agrees with another copy, otherwise one more worker does it.
6. When the iteration ends before that (approximate recovery), a checked chunk is committed to the copies that are
   there; a disputed one is left out. If such a worker is lost (`combined`), what is done again is not compared either:
   ranks may have summed the copy already that it would show to be wrong.
"""

from collections.abc import Sequence

from psgc.errors import TooFewWorkers
from psgc.iteration import is_checked
from psgc.server.instructions import Wrong


class Checks:
    """What the coordinator asks about the copies of one iteration.

    every: each chunk is checked once in so many iterations; 0: no copies are ever compared.
    checked: the chunks that need parts + 1 copies that agree; comparing: those whose copies are being compared;
    disputed: those that have more than parts copies, no parts + 1 of which agree.
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
        """These `copies`, (worker, role) each, were compared: which of them are wrong, if that was not known before.

        agreeing: the workers whose copies agree, none when no parts + 1 do.
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
        """How many copies a chunk needs that is not committed, `there` of which have been done."""
        return there + 1 if chunk in self.disputed else parts + (chunk in self.checked)

    def explain(
        self, error: TooFewWorkers, chunk: int, iteration: int, copies: Sequence[tuple[int, int]], parts: int
    ) -> TooFewWorkers:
        """The error when nobody is left to do `chunk`, with the reason if it is disputed."""
        if chunk not in self.disputed:
            return error
        workers = ", ".join(str(worker) for worker, _ in copies)
        hint = str(error).partition("; ")[2]
        return TooFewWorkers(
            f"chunk {chunk}, iteration {iteration}: workers {workers} have done it, no {parts + 1} copies agree, and "
            "nobody is left to ask: the gradient is not deterministic, verify.tolerance is too small, or too many are "
            f"wrong{hint and '; ' + hint}"
        )
