"""Whose memory an array is: what only psgc refers to may be kept, everything else is copied."""

import ctypes

import numpy as np

from psgc.workers.ownership import call


def test_a_new_array_is_kept():
    for make in (
        lambda: np.ones(3),
        lambda: np.ones((3, 2)) @ np.ones(2),
        lambda: np.ones((2, 3)).reshape(-1),
        lambda: (np.ones((2, 2))[0])[:1],
    ):
        assert call(lambda: (0.0, make()))[2]  # noqa: B023


class Model:
    """Keeps `buffer`, of which `window` is a view."""

    def __init__(self, buffer):
        self.buffer, self.window = buffer, buffer[:2]

    def returns_a_view_only_reachable_by_window(self):
        gradient = np.zeros(4)
        self.window = gradient[:2]
        return 0.0, gradient

    def keeps_what_it_returns(self):
        self.last = 0.0, np.ones(3)
        return self.last


MODEL = Model(np.zeros(4))


def test_memory_that_others_may_reach_is_not():
    for function in (
        lambda: (0.0, MODEL.buffer),
        lambda: (0.0, MODEL.buffer.reshape(2, 2).reshape(-1)),
        lambda: (0.0, MODEL.window),
        lambda: MODEL.returns_a_view_only_reachable_by_window(),
        lambda: MODEL.keeps_what_it_returns(),
        lambda: (0.0, np.frombuffer(bytearray(32))),
        lambda: (0.0, np.ctypeslib.as_array((ctypes.c_double * 4)())),
        lambda: (0.0, np.from_dlpack(np.ones(4))),
        lambda: (0.0, np.ones((2, 2)).view(np.matrix)),
        lambda: (0.0, np.broadcast_to(np.ones(3), (3,))),
        lambda: (0.0, [1.0, 2.0]),
    ):
        assert not call(function)[2]
