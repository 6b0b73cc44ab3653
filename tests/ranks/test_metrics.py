"""Prometheus asks a run that goes on, also after a takeover and a restore, and `psgc report --watch` follows it."""

import os
import re
import signal
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
        "stragglers: {kind: slow, seconds: {3: 0.03}}\n"
    )
    return "run.yaml"


def test_whoever_is_rank_0_answers(settings, tmp_path):
    port, values = free_port(), {}

    def answers(iterations, **expected):
        try:
            values.update(scraped(port))
        except (urllib.error.URLError, OSError):
            return False
        is_there = values.get("psgc_iterations_total", 0) >= iterations
        return is_there and all(values[f"psgc_{name}"] == value for name, value in expected.items())

    killed = "faults.inject=[{kind: kill, rank: 0, iteration: 250, step: begin}]"
    restored = "faults.restore={lost: 1, after: 2}"
    arguments = psgc("launch", settings, "-n", "4", *sets(f"metrics.prometheus={port}", killed, restored))
    with MpiRun(arguments, tmp_path) as running:
        # worker 3, and on a busy machine also others
        wait_until(lambda: answers(5) and values["psgc_slow_workers"] > 0)
        assert values["psgc_takeovers_total"] == values["psgc_restores_total"] == values["psgc_lost_workers"] == 0
        assert values["psgc_seconds"] > 0.01
        assert values["psgc_bytes_total"] > 0
        assert values["psgc_chunks_total"] >= 5 * 6
        wait_until(lambda: answers(255, takeovers_total=1, restores_total=0, lost_workers=1))
        wait_until(lambda: answers(255, takeovers_total=1, restores_total=1, lost_workers=0))
        assert running.process.poll() is None


def test_a_port_that_is_taken_is_refused(settings, tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with MpiRun(psgc("launch", settings, "-n", "3", *sets(f"metrics.prometheus={port}")), tmp_path) as running:
            refused = running.wait(60, code=2)
    said = f"psgc: metrics.prometheus: port {port} is taken by another program; expected a free port"
    assert said in refused.stderr.splitlines(), refused.said


@pytest.mark.faults
def test_the_page_follows_the_run(settings, tmp_path):
    page = tmp_path / "out/report/index.html"

    def recorded():
        """How many iterations the page has of the run that goes on; 0: there is no such page."""
        text = page.read_text() if page.exists() else ""
        found = re.search("It has recorded ([0-9]+) iterations", text)
        return int(found[1]) if found and 'http-equiv="refresh"' in text else 0

    with MpiRun(psgc("launch", settings, "-n", "3"), tmp_path) as running:
        wait_until((tmp_path / "out/iterations.csv").exists)
        with MpiRun(psgc("report", "out", "--watch"), tmp_path) as watching:
            for _ in range(2):
                before = recorded()
                wait_until(lambda before=before: recorded() > before)
            os.kill(running.process.pid, signal.SIGINT)
            running.wait(60, code=130)
            watching.wait(60, code=0)
    text = page.read_text()
    assert "refresh" not in text
    assert (
        f"The run was interrupted after {len((tmp_path / 'out/iterations.csv').read_text().splitlines()) - 1} " in text
    )
