"""Which chunks are checked when."""

from hypothesis import given
from hypothesis import strategies as st

from psgc.iteration import is_checked, trial_chunks


@given(chunk=st.integers(0, 99), first=st.integers(0, 99), every=st.integers(1, 20))
def test_each_chunk_is_checked_once_in_so_many_iterations(chunk, first, every):
    assert sum(is_checked(chunk, iteration, every) for iteration in range(first, first + every)) == 1


def test_without_verify_nothing_is_checked():
    assert not any(is_checked(chunk, iteration, 0) for chunk in range(5) for iteration in range(5))


@given(workers=st.integers(1, 12), each=st.integers(1, 4), replication=st.integers(1, 4), reassigning=st.booleans())
def test_in_the_trial_every_worker_does_the_first_chunk_of_another(workers, each, replication, reassigning):
    replication = min(replication, workers)
    queues = {w + 1: list(range(w * each, (w + 1) * each)) for w in range(workers)}
    holders = [[(c // each + k) % workers + 1 for k in range(replication)] for c in range(workers * each)]
    tried = trial_chunks(queues, holders, reassigning)
    assert set(tried) == (set(queues) if workers > 1 and (reassigning or replication > 1) else set())
    for worker, chunk in tried.items():
        assert chunk in {queues[other][0] for other in queues if other != worker}
        assert reassigning or worker in holders[chunk]
        assert worker in holders[chunk] or replication == 1
    assert len(set(tried.values())) == len(tried)  # nobody's is done three times
