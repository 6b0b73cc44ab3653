"""The dispatcher with `verify` and `combined`: sketches that workers send are what it compares."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from coordinating import begun

from psgc.backend import Backend
from psgc.coding.sketch import sketch
from psgc.messages import Kind
from psgc.server.arrivals import Sketched
from psgc.server.decoder import Decoder
from psgc.server.dispatch import Dispatcher
from psgc.server.driver import ProblemDriver
from psgc.server.events import Report
from psgc.server.trial import TrialComparison

HOLDERS = [[1, 2, 3], [1, 2, 3]]


def ignore(*_, **__):
    pass


class Run:
    """A dispatcher in iteration 0, in which both chunks are checked."""

    def __init__(self):
        self.it = begun(HOLDERS, every=1)
        self.told, self.wrong, self.lost = [], [], []
        outbox = SimpleNamespace(tell=lambda *what, **_: self.told.append(what))
        links = SimpleNamespace(outbox=outbox, now=1.0, ignore=self.lost.append, lost=ignore)
        detector = SimpleNamespace(heard=ignore, through=ignore)
        observer = SimpleNamespace(wrong=lambda worker, *_: self.wrong.append(worker), lost=ignore)
        cluster = SimpleNamespace(
            observer=observer,
            detector=detector,
            queues={},
            now=0.0,
            failures={},
            strikes=Counter(),
            hosts=[""] * 4,
            lose=lambda *_: True,
        )
        log = SimpleNamespace(reported=ignore, lost=ignore)
        self.dispatcher = Dispatcher(self.it, cluster, links, log, TrialComparison({}, 1e-9), ProblemDriver(None))
        self.dispatcher.decoder = Decoder(Backend(), np.ones((3, 1)), 3, "float64", tolerance=1e-9)
        self.dispatcher.summing = SimpleNamespace(is_complete=False, lost=ignore, reassign=ignore)

    def copy(self, worker, chunk, value, iteration=0):
        self.dispatcher.hear(Sketched(worker, iteration, chunk, sketch(np.full(3, value))))
        self.dispatcher.hear(Report(worker, 0, chunk))


@pytest.mark.parametrize("first", [1.0, 1.0 + 1e-12])
def test_copies_whose_sketches_agree_count(first):
    run = Run()
    run.copy(1, 0, first)
    assert run.told == []
    run.copy(3, 0, 1.0)
    assert run.told == [(1, Kind.COMMIT, 0), (3, Kind.DISCARD, 0)]
    assert run.wrong == run.lost == []


def test_the_odd_one_is_named():
    run = Run()
    run.copy(1, 0, 1.0)
    run.copy(2, 0, 2.0)
    assert run.told == [(3, Kind.NEXT, 0)]
    run.copy(3, 0, 2.0)
    assert run.wrong == [1]
    assert run.told[1:] == [(2, Kind.COMMIT, 0), (1, Kind.DISCARD, 0), (3, Kind.DISCARD, 0)]


@pytest.mark.parametrize("missing", ["of this iteration", "of this chunk", "any"])
def test_a_worker_that_sends_no_sketch_before_its_report_is_lost(missing):
    run = Run()
    if missing == "any":
        run.dispatcher.hear(Report(1, 0, 0))
    elif missing == "of this iteration":
        run.copy(1, 0, 1.0, iteration=-1)
    else:
        run.dispatcher.hear(Sketched(1, 0, 1, sketch(np.ones(3))))
        run.dispatcher.hear(Report(1, 0, 0))
    assert run.lost == [1]
