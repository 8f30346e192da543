"""deploy/train.sbatch on a real SLURM of one node, which the test starts."""

import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.project import Project, clean_environment
from tests.servers import HOST, free_port, program, running

pytestmark = pytest.mark.slow

JOB_SECONDS = 900  # at most; a busy machine takes its time
CONFIGURATION = """
ClusterName=test
SlurmctldHost={name}({host})
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MinJobAge=86400
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={name} NodeAddr={host} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={name} Default=YES State=UP
"""


class Cluster:
    """A SLURM that runs, and its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, cwd: Path) -> str:
        """Run one of SLURM's commands, and return what it prints."""
        environment = clean_environment() | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> dict[str, str]:
        shown = self.run("scontrol", "show", "--oneliner", "job", job, cwd=self.folder)
        return dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)

    def wait(self, job: str, *, restarts: int) -> dict[str, str]:
        """Return the state of a job that has ended, after so many restarts."""
        for _ in range(JOB_SECONDS):
            state = self.state(job)
            if int(state["Restarts"]) >= restarts and state["JobState"] in (
                "COMPLETED",
                "FAILED",
                "CANCELLED",
                "TIMEOUT",
            ):
                return state
            time.sleep(1)
        pytest.fail(f"{self.state(job)}\n{(self.folder / 'slurmctld.log').read_text()[-2000:]}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start munge, the controller and one node; all that they write is in a folder of their own."""
    munged, controller, node = (program(name) for name in ("munged", "slurmctld", "slurmd"))
    if os.getuid() != 0:
        pytest.skip("slurmd must be started by root")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: sockets have at most 107 characters
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o400)
        ports = {"controller": free_port(), "node": free_port()}
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(name=socket.gethostname(), host=HOST, folder=folder, cpus=os.cpu_count(), **ports)
        )
        for name in ("state", "spool"):
            (folder / name).mkdir()
        keeper = subprocess.Popen([
            munged, "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log",
        ])  # fmt: skip
        stack.callback(keeper.wait)
        stack.callback(keeper.terminate)
        for command, port in ((controller, ports["controller"]), (node, ports["node"])):
            log = folder / f"{Path(command).name}.log"
            arguments = (command, "-D", "-f", str(folder / "slurm.conf"))
            stack.enter_context(running(*arguments, port=port, log=log))
        yield Cluster(folder)


@pytest.fixture
def long_training(project: Project) -> Project:
    """A clone whose training takes some ten seconds, with the environment that the script expects."""
    (project.folder / ".venv").symlink_to(sys.prefix)
    project.replace("params.yaml", "epochs: 30", "epochs: 1000")
    project.run("git", "commit", "--quiet", "--all", "--message", "Train longer")
    return project


def runs(project: Project) -> list[tuple[str]]:
    with sqlite3.connect(project.folder / "mlflow.db") as database:
        return database.execute("select status from runs").fetchall()


def test_a_job_that_nears_its_time_limit_is_requeued_and_goes_on(cluster: Cluster, long_training: Project) -> None:
    folder = long_training.folder
    job = cluster.run("sbatch", "--parsable", "deploy/train.sbatch", cwd=folder)
    output = folder / f"slurm-{job}.out"
    while not (folder / "mlflow.db").exists() or "RUNNING" not in {status for (status,) in started(long_training)}:
        assert cluster.state(job)["JobState"] in ("PENDING", "CONFIGURING", "RUNNING"), output.read_text()
        time.sleep(0.5)
    time.sleep(2)
    # The signal that SLURM sends by itself, as --signal asks, before the time limit.
    cluster.run("scancel", "--batch", "--signal=USR1", job, cwd=folder)
    ended = cluster.wait(job, restarts=1)
    text = output.read_text()
    assert ended["JobState"] == "COMPLETED", text
    assert "resumed at step" in text
    assert runs(long_training) == [("FINISHED",)]
    assert long_training.stages_run("repro") == []


def started(project: Project) -> list[tuple[str]]:
    """Return the runs that there are, none while the store is being made."""
    try:
        return runs(project)
    except sqlite3.Error:
        return []


def test_a_mistake_ends_the_job_and_is_not_tried_again(cluster: Cluster, project: Project) -> None:
    (project.folder / ".venv").symlink_to(sys.prefix)
    project.replace("params.yaml", "prompt_column: prompt", "prompt_column: question")
    job = cluster.run("sbatch", "--parsable", "deploy/train.sbatch", cwd=project.folder)
    assert cluster.wait(job, restarts=0)["JobState"] == "FAILED"
    assert "question" in (project.folder / f"slurm-{job}.out").read_text()
