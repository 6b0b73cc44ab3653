"""Which hosts answer: to a program in the place of ssh."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from psgc.launching import hosts as module
from psgc.launching.hosts import HostAnswers
from tests.unit.fake_mpirun import wait_for


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """Call it with a shell body: the variables with which it is asked in the place of ssh."""
    monkeypatch.chdir(tmp_path)

    def make(body):
        (tmp_path / "agent").write_text(f"#!/bin/sh\ncd '{tmp_path}'\n{body}\n")  # a thread may ask after the test
        (tmp_path / "agent").chmod(0o755)
        return {"PATH": os.environ["PATH"], "PRTE_MCA_plm_ssh_agent": f"{tmp_path}/agent : rsh"}

    return make


@pytest.fixture
def answers(agent, monkeypatch):
    """Of hosts that answer while there is a file of their name; each that is asked is in `asked`."""
    for name, value in (("EVERY", 0.02), ("LATE", 1000)):  # so 20 s, however busy the machine is
        monkeypatch.setattr(module, name, value)
    Path("asked").touch()
    return HostAnswers(agent('echo "$1" >> asked; [ -e "$1" ]'))


def is_checked(answers, hosts):
    """Whether all answer, after one more check."""
    before, found = asked(hosts[-1]), []

    def again():
        found.append(answers.all_answer(hosts))
        return asked(hosts[-1]) >= before + 2  # the second check begins when the first one is over

    wait_for(again)
    return found[-1]


def asked(host):
    return Path("asked").read_text().split().count(host)


def test_hosts_are_asked_as_open_mpi_asks_them(agent):
    environ = agent('echo "$@" > asked') | {"PRTE_MCA_plm_ssh_args": "-p 2222"}
    assert HostAnswers(environ).silent(["far"]) == set()
    assert Path("asked").read_text() == "-p 2222 far true\n"


def test_a_host_is_silent_until_it_answers(answers):
    Path("b").touch()
    assert answers.silent(["b", "c"]) == {"c"}
    assert not is_checked(answers, ["b", "c"])
    Path("c").touch()
    wait_for(lambda: answers.all_answer(["b", "c"]))
    assert answers.silent(["b", "c"]) == set()


def test_silence_means_nothing_of_hosts_that_never_answer(answers):
    """MPI reaches them all the same: the run has begun on them."""
    hosts = ["b", "c"]
    Path("b").touch()
    answers.begin(hosts)
    assert answers.silent(hosts) == set()
    assert answers.unreached(hosts) == {"c"}
    wait_for(lambda: answers.all_answer(hosts))
    assert not is_checked(answers, ["b", "c", "new"]), "a host that is added has to answer"
    Path("b").unlink()
    assert answers.silent(hosts) == {"b"}
    answers.begin(["b", "c", "new"])
    assert answers.silent([*hosts, "new"]) == {"b", "new"}, "only the first time all hosts are there"


def test_an_answer_of_long_ago_says_nothing(answers, monkeypatch):
    """Nobody asks between two losses of workers."""
    Path("b").touch()
    wait_for(lambda: answers.all_answer(["b"]))
    Path("b").unlink()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 3600))
    assert not answers.all_answer(["b"])
    assert not is_checked(answers, ["b"])
    Path("b").touch()
    wait_for(lambda: answers.all_answer(["b"]))


def test_a_host_that_answers_late_may_be_gone_afterwards(answers):
    answers.begin(["b"])
    assert answers.silent(["b"]) == set()
    Path("b").touch()
    assert answers.silent(["b"]) == answers.unreached(["b"]) == set()
    Path("b").unlink()
    assert answers.silent(["b"]) == {"b"}
