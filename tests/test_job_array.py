"""deploy/sweep.sbatch on a real SLURM: eight experiments by one job array, whose node fails in the middle."""

import sys
import time
from pathlib import Path

import pytest

from tests.project import Project
from tests.test_slurm import JOB_SECONDS, Cluster, cluster

__all__ = ["cluster"]  # the fixture

pytestmark = pytest.mark.slow

RATES = ["0.02", "0.03", "0.04", "0.05", "0.06", "0.07", "0.08", "0.09"]
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


def tasks(cluster: Cluster, job: str) -> list[dict[str, str]]:
    """Return the state of each task of a job array that has begun, and one of all that wait."""
    shown = cluster.run("scontrol", "show", "--oneliner", "job", job, cwd=cluster.folder).splitlines()
    return [dict(pair.split("=", 1) for pair in line.split() if "=" in pair) for line in shown]


def experiments(project: Project) -> list[str]:
    return sorted(project.run("dvc", "exp", "list", "origin", "--name-only").stdout.split())


@pytest.fixture
def submitting(trained: Project, tmp_path: Path) -> Project:
    """A clone from which the sweep is submitted; what it needs is in a git remote and a DVC remote."""
    origin = tmp_path / "origin.git"
    trained.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(origin))
    trained.run("git", "remote", "add", "origin", str(origin))
    trained.run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    trained.run("git", "commit", "--quiet", "--message", "Add a remote", ".dvc/config")
    trained.run("git", "push", "--quiet", "origin", "HEAD:main")
    trained.run("dvc", "push")
    clone = Project(tmp_path / "submitting")
    trained.run("git", "clone", "--quiet", str(origin), str(clone.folder))
    (clone.folder / ".venv").symlink_to(sys.prefix)
    return clone


def test_a_node_fails_in_the_middle_of_a_sweep_and_no_experiment_is_lost_or_there_twice(
    cluster: Cluster,
    submitting: Project,
    tmp_path: Path,
) -> None:
    folder = submitting.folder
    (folder / "sweep.txt").write_text("".join(f"train.learning_rate={rate} train.seed=7\n" for rate in RATES))
    job = cluster.run("sbatch", "--parsable", f"--array=1-{len(RATES)}", "deploy/sweep.sbatch", "sweep.txt", cwd=folder)

    def output() -> str:
        return "\n".join(path.read_text() for path in sorted(folder.glob(f"slurm-{job}_*.out")))

    def wait_until(done: str) -> None:
        for _ in range(JOB_SECONDS):
            states = tasks(cluster, job)
            if done == "some are trained" and any(task["JobState"] == "COMPLETED" for task in states):
                if any(task["JobState"] == "RUNNING" for task in states):
                    return
            elif all(task["JobState"] in ENDED for task in states) and len(states) == len(RATES):
                return
            time.sleep(1)
        pytest.fail(f"{tasks(cluster, job)}\n{output()[-3000:]}")

    wait_until("some are trained")
    node = next(task["NodeList"] for task in tasks(cluster, job) if task["JobState"] == "RUNNING")
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test", cwd=folder)
    assert any(int(task["Restarts"]) > 0 or task["JobState"] == "NODE_FAIL" for task in tasks(cluster, job))
    time.sleep(2)
    if "DOWN" in cluster.run("scontrol", "show", "--oneliner", "node", node, cwd=folder):  # it may be back by itself
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME", cwd=folder)
    wait_until("all are")
    states = tasks(cluster, job)
    assert {task["JobState"] for task in states} == {"COMPLETED"}, output()
    assert sum(int(task["Restarts"]) > 0 for task in states) >= 1

    names = [f"sweep-{job}-{number}" for number in range(1, len(RATES) + 1)]
    assert experiments(submitting) == sorted(names)
    taker = Project(tmp_path / "taker")
    submitting.run("git", "clone", "--quiet", str(tmp_path / "origin.git"), str(taker.folder))
    for name, rate in zip(names, RATES, strict=True):
        taker.run("dvc", "exp", "pull", "origin", name)
        taker.run("dvc", "exp", "apply", name)
        assert f"learning_rate: {rate}\n" in (taker.folder / "params.yaml").read_text(encoding="utf-8")
    assert taker.stages_run("repro") == []
