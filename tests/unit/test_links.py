"""What the server reads, and what it has room for, against a transport that only listens."""

import pytest

from psgc.backend import Backend
from psgc.config import Coding
from psgc.messages import Kind, joined, stepped_record, sums_records
from psgc.plan import make_plan
from psgc.server.arrivals import Failed, Gone, Moved
from psgc.server.links import Links
from psgc.transport import Control, Text
from psgc.vectors import UNDER_WAY
from tests.unit.scripted import Transport, config_of, said

DIGEST = b"0123456789abcdef"
STEPPED_8 = "it sent STEPPED of iteration 8, the run is in iteration 7"


@pytest.fixture
def transport():
    return Transport(5)


@pytest.fixture
def links(transport):
    return Links(transport, Backend(), config_of(), make_plan(Coding(chunks_per_worker=2), "static", 4, seed=0))


def test_a_worker_of_a_run_that_goes_on_may_be_there_before_rank_0_begins(transport, links):
    links.start(7)
    for iteration, comes in ((7, Moved(3, 7, False, DIGEST)), (8, Gone(3, STEPPED_8, dead=False))):
        transport.arrived = [Control(3, joined([stepped_record(iteration, DIGEST)]))]
        assert list(links.poll()) == [comes]


def test_a_text_belongs_to_the_records_that_come_next_and_to_no_later_ones(transport, links):
    links.start(1)
    transport.arrived = [Text(3, b"one"), Text(3, b"\nhalf"), Text(2, b"other"), said(3, Kind.FAILED, 0, 1)]
    transport.arrived += [said(3, Kind.FAILED, 0, 2), Text(3, b"more"), said(3, Kind.FAILED, 0, 3)]
    assert list(links.poll()) == [
        Failed(3, 0, chunk, 0, text) for chunk, text in ((1, "one\nhalf"), (2, ""), (3, "more"))
    ]


def test_sums_belong_to_the_report_that_comes_next_and_to_no_later_one(transport, links):
    links.start(1)
    transport.arrived = [Control(3, sums_records(0, 1, (5.0, 2.0, 7.0))), said(3, Kind.REPORT, 0, 1)]
    transport.arrived += [said(2, Kind.REPORT, 0, 1), said(3, Kind.REPORT, 0, 2)]
    assert [report.sums for report in links.poll()] == [(5.0, 2.0, 7.0), (0.0, 0.0), (0.0, 0.0)]


def test_at_the_end_nothing_more_is_sent(transport, links):
    links.outbox.tell(2, Kind.SKIP)
    links.close()
    links.outbox.send()
    assert transport.sent == []


@pytest.mark.parametrize(("coded", "for_good", "more"), [(True, False, UNDER_WAY), (True, True, 0), (False, False, 0)])
def test_what_a_silent_worker_was_sending_takes_no_buffer_from_the_others(transport, links, coded, for_good, more):
    """A process that has ended sends nothing; one that is lost a second time has its buffers. Blocks have others."""
    if coded:
        links.open(3)
    before = transport.posted
    for _ in range(2):
        links.lost(1, for_good)
        assert transport.posted == before + more
