"""The simulated network: when messages arrive. Rate 10 bytes per second, latency 0.5 s."""

import pytest

from psgc.simulation.network import VirtualNetwork


class Recorded(VirtualNetwork):
    """Notes when each message was sent and arrived."""

    def __init__(self, ranks=4):
        super().__init__([10.0] * ranks, latency=0.5)
        self.arrived, self.left = {}, {}

    def vector(self, source, dest, size, name, then=lambda: None):
        def arrived():
            self.arrived[name] = self.now
            then()

        self.send(source, dest, size, arrived, lambda: self.left.update({name: self.now}))

    def note(self, source, dest, size, name):
        self.tell(source, dest, size, lambda: self.arrived.update({name: self.now}))


def test_a_message_takes_its_size_over_the_rate_and_the_latency():
    network = Recorded()
    network.vector(0, 1, 20, "a")
    network.run()
    assert network.left == {"a": 2.0}
    assert network.arrived == {"a": 2.5}
    assert network.now == 2.5
    assert network.vectors.bytes == [20, 20, 0, 0]
    assert network.control.bytes == [0, 0, 0, 0]


def test_one_send_at_a_time_in_the_order_of_posting():
    network = Recorded()
    network.vector(0, 1, 20, "a")
    network.vector(0, 2, 10, "b")
    network.run()
    assert network.left == {"a": 2.0, "b": 3.0}
    assert network.arrived == {"a": 2.5, "b": 3.5}


def test_one_receive_at_a_time_which_keeps_no_sender_waiting():
    network = Recorded()
    network.vector(0, 2, 20, "a")
    network.vector(1, 2, 30, "b")
    network.vector(1, 3, 10, "c")
    network.run()
    assert network.left == {"a": 2.0, "b": 3.0, "c": 4.0}
    assert network.arrived == {"a": 2.5, "b": 5.5, "c": 4.5}


def test_both_directions_of_a_link_are_independent():
    network = Recorded()
    network.vector(0, 1, 20, "a")
    network.vector(1, 0, 20, "b")
    network.run()
    assert network.arrived == {"a": 2.5, "b": 2.5}


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
