"""Workers whose contributions come late rest, for longer and longer, and are tried again."""

from psgc.server.contributions import FIRST_REST, LATE, LEAST_LATE, LONGEST_REST, Contributions


def iteration(it, number, seconds):
    """Each worker's last block comes after so many seconds."""
    it.begin(100.0)
    for worker, after in seconds.items():
        it.arrived(worker, 100.0)
        it.arrived(worker, 100.0 + after)
    it.learn(number)


def test_whoever_is_late_rests_and_is_tried_again():
    it, rest, now = Contributions(), FIRST_REST, 0
    while rest <= 2 * LONGEST_REST:
        iteration(it, now, {1: 1.0, 2: 1.01 * LATE, 3: 1.0, 4: 0.9 * LATE, 5: 1.0})
        expected = min(rest, LONGEST_REST)
        assert [it.resting(now + k) for k in (1, expected, expected + 1)] == [{2}, {2}, set()]
        now, rest = now + expected + 1, 2 * rest
    iteration(it, now, {1: 1.0, 2: 1.0, 3: 1.0})
    iteration(it, now + 1, {1: 1.0, 2: 2.0 * LATE, 3: 1.0})
    assert it.resting(now + 1 + FIRST_REST)
    assert not it.resting(now + 2 + FIRST_REST)


def test_a_difference_of_little_time_does_not_count():
    it = Contributions()
    iteration(it, 0, {1: 0.001, 2: 0.9 * LEAST_LATE, 3: 0.001})
    assert not it.resting(1)


def test_a_rest_goes_on_while_others_contribute():
    it = Contributions()
    iteration(it, 0, {1: 1.0, 2: 3.0, 3: 1.0})
    iteration(it, 1, {1: 1.0, 3: 1.0})
    iteration(it, 2, {})
    assert it.resting(FIRST_REST) == {2}
    assert not it.resting(FIRST_REST + 1)  # it is not judged anew by what it did before
