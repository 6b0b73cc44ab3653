"""The log of iterations: what it hands over of the passes that workers have made."""

from unittest.mock import Mock

from psgc.run_rows import Outcome
from psgc.server.copies import Books
from psgc.server.events import Report
from psgc.server.iteration_log import IterationLog


def test_a_pass_that_was_dropped_stays_when_its_chunk_is_done_again():
    """Worker 1 does chunks 0 and 1 in one pass. Worker 2 was first with chunk 0, so chunk 1 is done again."""
    log, books = IterationLog(observer := Mock(), num_chunks=2, has_loss=False), Books(2, 1)
    log.begin(0, lost=0)
    books.chunks[0].commit([(2, 2)])
    log.reported(Report(2, 0, 0, seconds=1.0))
    log.reported(Report(1, 0, 0, seconds=4.0, others=(1,)), counts=False)
    books.chunks[1].commit([(1, 1)])
    log.reported(Report(1, 0, 1, start=5.0, seconds=3.0))
    log.complete(8.0, recovered=2, error_measure=0.0)
    log.finish(books)
    log.write()
    assert sorted(call.args for call in observer.chunk.call_args_list) == [
        (1, 0, 0, 0.0, 2.0, Outcome.LATE),
        (1, 1, 0, 2.0, 2.0, Outcome.LATE),
        (1, 1, 0, 5.0, 3.0, Outcome.USED),
        (2, 0, 0, 0.0, 1.0, Outcome.USED),
    ]
    ((row,),) = (call.args for call in observer.iteration.call_args_list)
    assert row.redundant == 2
