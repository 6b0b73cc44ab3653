"""Workers whose contributions come late rest, for longer and longer, and are tried again."""

from psgc.server.contributions import FIRST_REST, IN_A_ROW, LATE, LEAST_LATE, LONGEST_REST, Contributions

SECONDS = {1: 1.0, 2: 1.01 * LATE, 3: 1.0, 4: 0.9 * LATE, 5: 1.0}


def iteration(it, number, seconds):
    """Each worker's last block comes after so many seconds."""
    it.begin(100.0)
    for worker, after in seconds.items():
        it.arrived(worker, 100.0)
        it.arrived(worker, 100.0 + after)
    it.learn(number)


def late(it, last):
    """Worker 2 is late as often as it takes, in `last` for the last time."""
    for number in range(last - IN_A_ROW + 1, last + 1):
        assert not it.resting(number)
        iteration(it, number, SECONDS)


def test_whoever_is_late_rests_and_is_tried_again():
    it, rest, now = Contributions(), FIRST_REST, IN_A_ROW - 1
    late(it, now)
    while rest <= 2 * LONGEST_REST:
        expected = min(rest, LONGEST_REST)
        assert [it.resting(now + k) for k in (1, expected, expected + 1)] == [{2}, {2}, set()]
        now, rest = now + expected + 1, 2 * rest
        iteration(it, now, SECONDS)  # once is enough now
    now += LONGEST_REST + 1
    iteration(it, now, {1: 1.0, 2: 1.0, 3: 1.0})
    late(it, now := now + IN_A_ROW)
    assert it.resting(now + FIRST_REST)
    assert not it.resting(now + 1 + FIRST_REST)


def test_whoever_is_late_now_and_then_does_not_rest():
    it = Contributions()
    for number in range(20):
        iteration(it, number, {1: 1.0, 2: 2.0 if (number + 1) % IN_A_ROW else 1.0, 3: 1.0})
        assert not it.resting(number + 1)


def test_a_difference_of_little_time_does_not_count():
    it = Contributions()
    for number in range(2 * IN_A_ROW):
        iteration(it, number, {1: 0.001, 2: 0.9 * LEAST_LATE, 3: 0.001})
        assert not it.resting(number + 1)


def test_a_rest_goes_on_while_others_contribute():
    it, last = Contributions(), IN_A_ROW - 1
    late(it, last)
    iteration(it, last + 1, {1: 1.0, 3: 1.0})
    iteration(it, last + 2, {})
    assert it.resting(last + FIRST_REST) == {2}
    assert not it.resting(last + FIRST_REST + 1)  # it is not judged anew by what it did before
