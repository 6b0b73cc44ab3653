"""The example for Kubernetes has fields that an MPIJob (v2beta1) has, and the command in it is one of psgc's."""

from pathlib import Path

import yaml

from psgc.cli import Options, parser_for
from psgc.config import load
from tests.unit.test_submit import RUN

MANIFEST = Path(__file__).parents[2] / "scripts/kubernetes/mpijob.yaml"
STRINGS = [str]
POD = {
    "containers": [{
        "name": str, "image": str, "command": STRINGS, "args": STRINGS, "workingDir": str,
        "volumeMounts": [{"name": str, "mountPath": str}],
        "resources": {"limits": {"cpu": str, "memory": str}},
    }],
    "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
}  # fmt: skip
REPLICA = {"replicas": int, "restartPolicy": {"Always", "OnFailure", "Never", "ExitCode"}, "template": {"spec": POD}}
# What the example needs of the CRD's schema; sets are enums.
SCHEMA = {
    "apiVersion": {"kubeflow.org/v2beta1"},
    "kind": {"MPIJob"},
    "metadata": {"name": str},
    "spec": {
        "slotsPerWorker": int,
        "runPolicy": {"backoffLimit": int, "cleanPodPolicy": {"All", "Running", "None"}, "activeDeadlineSeconds": int},
        "mpiReplicaSpecs": {"Launcher": REPLICA, "Worker": REPLICA},
    },
}


def check(value, schema, where="MPIJob"):
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        for key, inner in value.items():
            assert key in schema, f"{where}.{key}"
            check(inner, schema[key], f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        for inner in value:
            check(inner, schema[0], where)
    elif isinstance(schema, set):
        assert value in schema, where
    else:
        assert type(value) is schema, where


def test_the_example_for_kubernetes(tmp_path, monkeypatch):
    job = yaml.safe_load(MANIFEST.read_text())
    check(job, SCHEMA)
    replicas = job["spec"]["mpiReplicaSpecs"]
    (launcher,) = replicas["Launcher"]["template"]["spec"]["containers"]
    (program, *words), options = [*launcher["command"], *launcher["args"]], Options()
    assert program == "psgc"
    parser_for("launch").parse_args(words, options)
    assert options.ranks == job["spec"]["slotsPerWorker"] * replicas["Worker"]["replicas"]
    assert options.hostfile == "/etc/mpi/hostfile"  # where the operator puts it
    assert options.resume
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    assert load("run.yaml", options.overrides).faults.restore.after == 60
    for replica in replicas.values():
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
