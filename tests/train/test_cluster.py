"""The examples for schedulers: their own lines start ranks that find each other."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).resolve().parents[2] / "configs" / "cluster"
FAKES = {
    "scontrol": '[ $1 = show ] && echo node1 && echo node2 || echo "$@" >>$LOG',
    "srun": 'shift; for SLURM_PROCID in 0 1; do export SLURM_PROCID SLURM_LOCALID=$SLURM_PROCID; "$@" || code=$?; done; exit ${code:-0}',
    "python": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $@" >>$LOG; exit $CODE',
}


@pytest.mark.parametrize("code", [0, 1, 143])
def test_slurm_starts_ranks_and_queues_what_was_stopped(tmp_path: Path, code: int) -> None:
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "CODE": str(code)}
    env |= {"SLURM_JOB_ID": "70001", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    command = ["bash", str(CLUSTER / "slurm.sh"), "--config", "a b.yaml", "zero=2"]
    assert subprocess.run(command, env=env).returncode == code
    ranks = [f"{r} {r} 2 node1 30001 tools/train.py --config a b.yaml zero=2" for r in (0, 1)]
    assert log.read_text().splitlines() == ranks + ["requeue 70001"] * (code == 143)


def test_kubernetes_says_one_number_of_ranks_and_restarts_what_was_stopped() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {x["name"]: x.get("value") for x in container["env"]}
    assert spec["completions"] == spec["parallelism"] == int(env["WORLD_SIZE"])
    assert env.keys() == {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    assert env["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    rules = spec["podFailurePolicy"]["rules"]
    actions = {c: r["action"] for r in rules for c in r.get("onExitCodes", {}).get("values", [])}
    assert actions == {2: "FailJob", 143: "Ignore"} and pod["restartPolicy"] == "Never"
    assert container["command"][0] == "python", "no shell that keeps the signal to itself"
