import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.workplace import Workplace
from tests.sweeper import environ_of


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "slurm":
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster():
    """Four virtual nodes; nothing that their jobs started outlives the tests."""
    with Cluster(nodes=4, cpus=8) as cluster:
        yield cluster
        cluster.end_jobs()
        cluster.until(lambda: not jobs_processes(cluster), 15, "end of all that jobs have started")
    assert cluster.processes() == []


def jobs_processes(cluster):
    return [pid for pid in cluster.processes() if any(v.startswith("SLURM_JOB_ID=") for v in environ_of(pid))]


@pytest.fixture
def work(cluster, tmp_path):
    """A folder with a run that takes a while, and the cluster to run it on."""
    return Workplace(cluster, tmp_path)
