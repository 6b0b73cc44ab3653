"""Runs over several hosts, and what becomes of them when a link or a host is lost."""

import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from psgc.data import write_dense
from tests.ranks.mpirun import Finished, MpiRun, mpirun

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from hosts import Hosts, impossible, wait_until

sys.path.pop(0)

pytestmark = pytest.mark.faults
ITERATIONS = 40
CONFIG = f"""
problem: {{kind: softmax, l2: 0.01}}
data: {{path: data.npz}}
optimizer: {{kind: nesterov, lr: 0.1}}
iterations: {ITERATIONS}
coding: {{chunks_per_worker: 4, replication: 2}}
transfer: per_chunk
checkpoint: {{every: 5, keep: 2}}
dedicated_server: true
output: whole
"""
SLOWLY = "stragglers={kind: exponential, seconds: {all: 0.03}}"  # time enough to be disturbed in
MORE_SLOWLY = "stragglers={kind: exponential, seconds: {all: 0.1}}"  # not over before mpirun misses a host
WATCHFUL = "faults.collect_timeout=3"
ALLREDUCE = ("aggregation=allreduce", "transfer=combined")
GO_ON = "psgc launch: to resume from the last checkpoint, with -n and --host for the remaining hosts: psgc launch"


class Cluster:
    """Hosts, and a folder that all of them share."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder

    def start(
        self, places: str, output: str, *settings: str, resume: bool = False, at: str = "a", **environment: str
    ) -> MpiRun:
        """`psgc launch`, at host `at`, of as many ranks as `places` ("a:3,b:3") has room for."""
        ranks = sum(int(place.partition(":")[2]) for place in places.split(","))
        command = [sys.executable, "-m", "psgc", "launch", "run.yaml", "-n", str(ranks), "--host", places]
        for setting in (f"output={output}", *settings):
            command += ["--set", setting]
        command += ["--resume"] if resume else []
        return MpiRun(self.hosts.command(at, command), self.folder, {**self.hosts.environment, **environment})

    def run(self, places: str, output: str, *settings: str, resume: bool = False, at: str = "a") -> Finished:
        with self.start(places, output, *settings, resume=resume, at=at) as running:
            return running.wait(60)

    def rows(self, output: str) -> list[dict[str, str]]:
        """Of iterations.csv, as far as it has been written."""
        try:
            with (self.folder / output / "iterations.csv").open(newline="") as stream:
                return list(csv.DictReader(stream))
        except FileNotFoundError:
            return []

    def lost(self, output: str, event: str) -> set[int]:
        """The workers that lost.csv says this of so far: lost, or returned."""
        try:
            with (self.folder / output / "lost.csv").open(newline="") as stream:
                return {int(row["worker"]) for row in csv.DictReader(stream) if row["event"] == event}
        except FileNotFoundError:
            return set()

    def wait_for_iteration(self, output: str, iteration: int) -> None:
        wait_until(lambda: len(self.rows(output)) > iteration)

    def assert_done(self, finished: Finished, output: str) -> None:
        """With what the undisturbed run has come to, and nothing left on any host."""
        assert finished.returncode == 0, finished.said
        assert json.loads((self.folder / output / "summary.json").read_text())["status"] == "done"
        assert [row["iteration"] for row in self.rows(output)] == [str(i) for i in range(ITERATIONS)]
        whole, found = (np.load(self.folder / name / "params.npy") for name in ("whole", output))
        np.testing.assert_allclose(found, whole, rtol=1e-10)
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        wait_until(lambda: not any(self.hosts.processes(name) for name in self.hosts.names), seconds=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the data, and in `whole` the run that nothing disturbs, on one host."""
    if reason := impossible():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
    rng = np.random.default_rng(0)
    write_dense(str(folder / "data.npz"), rng.normal(size=(240, 5)), rng.integers(0, 3, 240).astype(float))
    (folder / "run.yaml").write_text(CONFIG)
    with Hosts("a") as hosts:
        finished = Cluster(hosts, folder).run("a:3", "whole")
    assert finished.returncode == 0, finished.said
    return folder


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    with Hosts("a", "b", "c") as hosts:
        yield Cluster(hosts, folder)


def test_a_run_over_several_hosts(cluster: Cluster) -> None:
    finished = cluster.run("a:2,b:2,c:1", "several", "transfer=combined")
    assert "4 workers on 3 hosts" in finished.stdout, finished.said
    cluster.assert_done(finished, "several")


def test_a_rank_on_another_host_that_dies_before_mpi_has_started_ends_the_run(cluster: Cluster) -> None:
    site = cluster.folder / "dies"
    site.mkdir()
    dies = 'os.environ.get("OMPI_COMM_WORLD_RANK") == "3" and os.kill(os.getpid(), 9)'
    (site / "sitecustomize.py").write_text(f"import os\n{dies}\n")
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    with cluster.start("a:2,b:2,c:1", "never", PYTHONPATH=path) as running:
        finished = running.wait(60)
    assert finished.returncode == 1, finished.said
    assert (
        "psgc: a rank (number 2 of 2) on b has ended, or never begun, before MPI had started on all ranks\n"
        in finished.stderr
    )
    cluster.assert_nothing_left()


def test_a_link_that_comes_back_brings_its_workers_back(cluster: Cluster) -> None:
    with cluster.start("a:2,b:3", "link", SLOWLY, WATCHFUL, "transfer=combined") as running:
        cluster.wait_for_iteration("link", 6)
        cluster.hosts.unplug("b")
        wait_until(lambda: cluster.lost("link", "lost") == {2, 3, 4})
        cluster.hosts.plug("b")
        finished = running.wait(60)
    cluster.assert_done(finished, "link")
    assert cluster.lost("link", "returned") == {2, 3, 4}, finished.said


def test_a_host_that_is_cut_off_for_ever_is_done_without_and_ends_by_itself(cluster: Cluster) -> None:
    for name in cluster.hosts.names:
        cluster.hosts.make_impatient(name)
    with cluster.start("a:4,b:2", "cut", SLOWLY, WATCHFUL) as running:
        cluster.wait_for_iteration("cut", 6)
        cluster.hosts.unplug("b")
        finished = running.wait(60)
    cluster.assert_done(finished, "cut")
    assert cluster.lost("cut", "lost") == {4, 5}, finished.said


WAITING = """
from psgc import rendezvous, transport
rendezvous.REMINDER = 0.5
ranks = transport.Transport()
if ranks.rank == 0:
    print("all are here", flush=True)
    time.sleep(1000)
ranks.gather("")
"""


def test_who_waits_while_the_servers_host_is_lost_ends_by_itself(cluster: Cluster) -> None:
    cluster.hosts.make_impatient("b")
    program = ["--host", "a:1,b:2", sys.executable, "-c", f"import time{WAITING}"]
    command = [*mpirun(3, [], ulfm=True)[:-1], "-x", "PYTHONPATH", *program]
    with MpiRun(cluster.hosts.command("a", command), cluster.folder, cluster.hosts.environment) as running:
        wait_until(lambda: "all are here" in running.output())
        cluster.hosts.crash("a")
        cluster.assert_nothing_left()


def test_when_the_host_of_rank_0_is_lost_a_rank_on_another_one_takes_over(cluster: Cluster) -> None:
    for name in cluster.hosts.names:
        cluster.hosts.make_impatient(name)
    with cluster.start("b:2,c:2", "server", SLOWLY, at="a") as running:
        cluster.wait_for_iteration("server", 6)
        cluster.hosts.crash("b")
        finished = running.wait(60)
    cluster.assert_done(finished, "server")
    assert "its process died; worker 2 on c takes over as the server" in finished.stdout, finished.said


def test_a_server_that_is_cut_off_from_all_ends_the_run_and_the_others_end_by_themselves(cluster: Cluster) -> None:
    for name in cluster.hosts.names:
        cluster.hosts.make_impatient(name)
    with cluster.start("a:1,b:3", "alone", MORE_SLOWLY, WATCHFUL, *ALLREDUCE) as running:
        cluster.wait_for_iteration("alone", 6)
        cluster.hosts.unplug("a")
        finished = running.wait(60)
    assert finished.returncode == 1, finished.said
    assert GO_ON in finished.stderr.splitlines()[-1], finished.said
    cluster.assert_nothing_left()
    cluster.assert_done(cluster.run("b:3", "alone", *ALLREDUCE, resume=True, at="b"), "alone")


def test_a_host_that_is_shut_down_ends_the_run_and_the_others_go_on_by_hand_or_by_themselves(cluster: Cluster) -> None:
    with cluster.start("a:3,b:3", "down", SLOWLY) as running:
        cluster.wait_for_iteration("down", 6)
        cluster.hosts.shut_down("b")
        finished = running.wait(60)
    assert finished.returncode == 1, finished.said
    assert GO_ON in finished.stderr.splitlines()[-1], finished.said
    cluster.assert_nothing_left()
    reached = len(cluster.rows("down"))
    with cluster.start("a:3,c:2", "down", SLOWLY, "faults.restore={after: 9}", resume=True) as running:
        cluster.wait_for_iteration("down", reached + 20)  # by then it has answered to ssh
        cluster.hosts.shut_down("c")
        finished = running.wait(60)
    assert "no answer from c: the run starts again, with 3 ranks (faults.restore)" in finished.stderr, finished.said
    cluster.assert_done(finished, "down")
