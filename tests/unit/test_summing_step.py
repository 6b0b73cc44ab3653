"""The server's step: it is made to its end, whatever happens meanwhile."""

from unittest import mock

import pytest

from psgc.errors import RunFailed
from psgc.server.driver import ProblemDriver
from psgc.server.loop import Server


class Stepping:
    """Stands for `Summing`: the step is made when it is polled for the last time, or waited for."""

    params = None
    is_stepping = True

    def close(self):
        pass

    def finish_step(self):
        self.params, self.is_stepping = "stepped", False


def make_server(summing):
    server = Server.__new__(Server)
    server.summing, server._failure, server._driver = summing, None, ProblemDriver(None)
    server.links, server._dispatcher = mock.Mock(), mock.Mock(num_sums=0)

    def poll():
        raise RunFailed("stopped by SIGTERM")

    server._poll = poll
    return server


def test_a_run_that_is_stopped_during_a_step_has_made_it():
    server = make_server(Stepping())
    assert server._step() == "stepped"
    assert str(server._failure) == "stopped by SIGTERM"


def test_a_step_that_cannot_be_made_ends_the_run():
    summing = Stepping()
    summing.is_stepping = False
    with pytest.raises(RunFailed):
        make_server(summing)._step()


def test_a_run_that_is_stopped_in_the_poll_that_finds_the_step_made_has_made_it():
    summing = Stepping()
    server = make_server(summing)

    def poll():
        summing.finish_step()
        raise RunFailed("stopped by SIGTERM")

    server._poll = poll
    assert server._step() == "stepped"
    assert str(server._failure) == "stopped by SIGTERM"
