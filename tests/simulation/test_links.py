"""The simulated network: when messages arrive. Rate 10 bytes per second, latency 0.5 s."""

import pytest

from psgc.simulation.network import VirtualNetwork


class Recorded(VirtualNetwork):
    """Notes when each message was sent and arrived."""

    def __init__(self, rates=(10.0,) * 4):
        super().__init__(rates, latency=0.5)
        self.arrived, self.left = {}, {}

    def vector(self, source, dest, size, name, then=lambda: None):
        def arrived():
            self.arrived[name] = self.now
            then()

        self.send(source, dest, size, arrived, lambda: self.left.update({name: self.now}))

    def note(self, source, dest, size, name):
        self.tell(source, dest, size, lambda: self.arrived.update({name: self.now}))


@pytest.mark.parametrize(
    ("vectors", "left", "arrived"),
    [
        ([(0, 1, 20, "a")], {"a": 2.0}, {"a": 2.5}),  # size over rate, and latency
        ([(0, 1, 20, "a"), (0, 2, 10, "b")], {"a": 2.0, "b": 3.0}, {"a": 2.5, "b": 3.5}),  # one send at a time
        (
            [(0, 2, 20, "a"), (1, 2, 30, "b"), (1, 3, 10, "c")],  # one receive at a time, which keeps no sender waiting
            {"a": 2.0, "b": 3.0, "c": 4.0},
            {"a": 2.5, "b": 5.5, "c": 4.5},
        ),
        ([(0, 1, 20, "a"), (1, 0, 20, "b")], {"a": 2.0, "b": 2.0}, {"a": 2.5, "b": 2.5}),  # directions are independent
    ],
)
def test_when_vectors_leave_and_arrive(vectors, left, arrived):
    network = Recorded()
    for vector in vectors:
        network.vector(*vector)
    network.run()
    assert (network.left, network.arrived, network.now) == (left, arrived, max(arrived.values()))
    assert network.vectors.bytes == [sum(v[2] for v in vectors if rank in v[:2]) for rank in range(4)]
    assert network.control.bytes == [0, 0, 0, 0]


def test_a_message_is_as_slow_as_the_slower_of_its_links():
    network = Recorded(rates=(10.0, 5.0))
    network.vector(0, 1, 20, "out")
    network.vector(1, 0, 20, "back")
    network.run()
    assert network.left == {"out": 2.0, "back": 4.0}
    assert network.arrived == {"out": 4.0, "back": 4.5}


def test_control_messages_wait_for_each_other_only():
    network = Recorded()
    network.vector(0, 1, 100, "vector")
    network.note(0, 1, 10, "first")
    network.note(0, 1, 10, "second")
    network.run()
    assert network.arrived == {"first": 1.5, "second": 2.5, "vector": 10.5}
    assert network.control.bytes == [20, 20, 0, 0]


def test_a_link_that_was_idle_sends_what_comes_later_at_once():
    network = Recorded()
    network.vector(0, 1, 10, "a", then=lambda: network.vector(1, 0, 10, "b", then=lambda: network.vector(0, 1, 5, "c")))
    network.run()
    assert network.arrived == pytest.approx({"a": 1.5, "b": 3.0, "c": 4.0})
