"""One rank's part in the coded all-reduce: any interleaving of messages, any loss, any change of owners."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rank_network import Network


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 3), st.integers(0, 1 << 32))
def test_whatever_happens_ranks_step_with_what_was_closed_and_nobody_waits_for_ever(workers, iterations, losses, seed):
    network = Network(workers, iterations, Random(seed).randrange, losses)
    network.run()
    network.check()
