"""A run that `psgc.launching.restoring.Watch` watches, with fakes of its hosts and ranks."""

import os
import time
from pathlib import Path

import pytest

from psgc.launching.mpirun import Placement
from psgc.launching.outcome import RunDirectory
from psgc.launching.restoring import Watch
from tests.unit.fake_mpirun import RUN

LOST = "iteration,worker,host,event,reason\n5,{},n1,lost,its process died\n"


@pytest.fixture
def run_before(tmp_path, monkeypatch):
    """With the directory `out` of an earlier run, which has lost worker 1."""
    monkeypatch.chdir(tmp_path)
    Path("out/checkpoints").mkdir(parents=True)
    Path("out/config.yaml").write_text(RUN)
    Path("out/lost.csv").write_text(LOST.format(1))
    Path("hosts").write_text("a slots=3\n")
    return tmp_path


class Answers:
    """hosts: those that do not answer; mute: those that never do; begun: those that were asked as the run began."""

    def __init__(self, *hosts, mute=()):
        self.hosts, self.mute, self.begun = set(hosts), set(mute), set()

    def begin(self, hosts):
        self.begun |= set(hosts)

    def unreached(self, hosts):
        return self.mute & set(hosts) & self.begun

    def silent(self, hosts):
        return self.hosts & set(hosts)

    def all_answer(self, hosts):
        return not self.silent(hosts)


class Ranks:
    """That were started."""

    has_ended = False

    def kill(self):
        self.has_ended = True


def is_ready(_, file, told=None):
    """Ranks are started, and ready at once."""
    if file is not None:
        file.touch()
    return Ranks()


def watch(refuses=lambda _: None, needs_checkpoint=False, hostfile=None):
    """Of a run of three ranks that has not begun."""
    found = Watch(Placement(3, hostfile=hostfile), is_ready, refuses, needs_checkpoint, Answers())
    found.begin(RunDirectory(Path("out"), resumed=False))
    return found


def begins(restore="{lost: 1, after: 0.1}", more=""):
    """The run writes its settings, with the user's variables expanded."""
    Path("new").write_text(f"{RUN}initial: a$b.npy\nfaults: {{restore: {restore}}}\n{more}")
    os.replace("new", "out/config.yaml")


def is_asked(watched):
    """Whether the run is asked to end within 0.4 s, or longer where looks take long."""
    for _ in range(40):
        if watched.look():
            break
        time.sleep(0.01)
    return watched.is_asked
