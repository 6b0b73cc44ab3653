"""Prometheus asks a run that goes on, before and after another rank has become rank 0."""

import socket
import urllib.error

import pytest

from tests.ranks.mpirun import MpiRun, psgc, sets, wait_until
from tests.ranks.test_train import MODEL
from tests.unit.test_loggers import free_port, scraped


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "run.yaml").write_text(
        "problem: {python: 'model:Model', options: {seconds: 0.01}}\noptimizer: {kind: sgd, lr: 0.001}\n"
        "iterations: 2000\ncoding: {chunks_per_worker: 2, replication: 2}\noutput: out\n"
    )
    return "run.yaml"


def test_whoever_is_rank_0_answers(settings, tmp_path):
    port, values = free_port(), {}

    def answers(**expected):
        try:
            values.update(scraped(port))
        except (urllib.error.URLError, OSError):
            return False
        return all(values.get(f"psgc_{name}", -1) >= value for name, value in expected.items())

    killed = "faults.inject=[{kind: kill, rank: 0, iteration: 150, step: begin}]"
    arguments = psgc("launch", settings, "-n", "4", *sets(f"metrics.prometheus={port}", killed))
    with MpiRun(arguments, tmp_path) as running:
        wait_until(lambda: answers(iterations_total=5))
        assert values["psgc_takeovers_total"] == values["psgc_restores_total"] == values["psgc_lost_workers"] == 0
        assert values["psgc_seconds"] > 0.01
        assert values["psgc_bytes_total"] > 0
        assert values["psgc_chunks_total"] >= 5 * 6
        wait_until(lambda: answers(takeovers_total=1, iterations_total=155))
        assert values["psgc_takeovers_total"] == 1
        assert running.process.poll() is None


def test_a_port_that_is_taken_is_refused(settings, tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with MpiRun(psgc("launch", settings, "-n", "3", *sets(f"metrics.prometheus={port}")), tmp_path) as running:
            refused = running.wait(60, code=2)
    said = f"psgc: metrics.prometheus: port {port} is taken by another program; expected a free port"
    assert said in refused.stderr.splitlines(), refused.said
