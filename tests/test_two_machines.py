"""Two machines as two network namespaces, joined by a cable: torchrun between them, one of them lost, and both again."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kills import slow_toy, statuses
from tests.project import Project, clean_environment
from tests.servers import program

pytestmark = pytest.mark.slow

SECONDS = 300  # at most; a busy machine takes its time
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = 29500  # a namespace has ports of its own


class Machines:
    """Two network namespaces that reach each other, and nothing else."""

    def __init__(self, ip: str) -> None:
        self._ip = ip
        self.names = [f"machine-{os.getpid()}-{rank}" for rank in range(2)]

    def connect(self) -> None:
        """Make both, with a cable from one to the other; skip the test where the system refuses."""
        cards = [f"cable{rank}" for rank in range(2)]
        commands = [["netns", "add", name] for name in self.names]
        commands += [
            [
                "-n",
                self.names[0],
                *f"link add {cards[0]} type veth peer name {cards[1]}".split(),
                "netns",
                self.names[1],
            ]
        ]
        for name, card, address in zip(self.names, cards, ADDRESSES, strict=True):
            commands += [["-n", name, *f"addr add {address}/24 dev {card}".split()]]
            commands += [["-n", name, "link", "set", device, "up"] for device in (card, "lo")]
        for command in commands:
            done = subprocess.run([self._ip, *command], capture_output=True, text=True, check=False)
            if done.returncode:
                self.remove()
                pytest.skip(f"no network namespaces here: ip {' '.join(command)}: {done.stderr.strip()}")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run([self._ip, "netns", "del", name], capture_output=True, check=False)

    def crash(self, rank: int) -> None:
        """Kill all that runs on a machine."""
        running = subprocess.run(
            [self._ip, "netns", "pids", self.names[rank]], capture_output=True, text=True, check=True
        )
        for pid in running.stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    def start(self, project: Project, rank: int) -> "subprocess.Popen[bytes]":
        """Start this machine's part of a training; its output goes to the end of a file beside the project."""
        command = [
            self._ip, "netns", "exec", self.names[rank], "torchrun", "--nnodes=2", "--nproc-per-node=1",
            "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", "--rdzv-id=test",
            f"--rdzv-conf=is_host={rank == 0}", f"--local-addr={ADDRESSES[rank]}", "-m", "stages.train",
        ]  # fmt: skip
        network = {"GLOO_SOCKET_IFNAME": f"cable{rank}", "TP_SOCKET_IFNAME": f"cable{rank}"}
        with output(project, rank).open("ab") as file:
            return subprocess.Popen(
                command, cwd=project.folder, env=clean_environment() | network, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip


def output(project: Project, rank: int) -> Path:
    return project.folder.parent / f"machine{rank}.log"


def said(project: Project) -> str:
    return "".join(
        output(project, rank).read_text(errors="replace") for rank in range(2) if output(project, rank).exists()
    )


@pytest.fixture
def machines() -> Iterator[Machines]:
    if os.getuid() != 0:
        pytest.skip("network namespaces are made by root")
    made = Machines(program("ip"))
    made.connect()
    yield made
    made.remove()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_machine_lost_the_other_ends_with_a_line_and_both_go_on(
    machines: Machines, tmp_path: Path, strategy: str
) -> None:
    project = slow_toy(tmp_path / "project", steps=300)
    project.replace("params.yaml", "num_nodes: 1", "num_nodes: 2")
    project.replace("params.yaml", "strategy: auto", f"strategy: {strategy}")
    project.replace("params.yaml", "batch_size: 1\n", "batch_size: 2\n")
    project.run("dvc", "repro", "build_dataset")
    parts = [machines.start(project, rank) for rank in range(2)]
    try:
        wait_for(project, "step 90/", parts)
        machines.crash(1)
        began = time.monotonic()
        assert parts[0].wait(60) != 0
        assert time.monotonic() - began < 60
        assert said(project).count("another process of this training ended, or cannot be reached") == 1
        parts = [machines.start(project, rank) for rank in range(2)]
        for part in parts:
            assert part.wait(SECONDS) == 0, said(project)
    finally:
        for rank in range(2):
            machines.crash(rank)
    assert "resumed at step" in said(project)
    assert statuses(project) == {"FINISHED": 1}


def wait_for(project: Project, words: str, parts: "list[subprocess.Popen[bytes]]") -> None:
    for _ in range(SECONDS * 10):
        if words in said(project):
            return
        assert all(part.poll() is None for part in parts), said(project)
        time.sleep(0.1)
    pytest.fail(said(project))
