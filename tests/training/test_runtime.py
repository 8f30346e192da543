"""What the settings of the machine do to the process."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.errors import UserError
from stages.training import runtime as runtime_module
from stages.training.runtime import available_cpus, keep_freed_memory
from tests.project import ROOT, clean_environment
from tests.training.conftest import runtime_parameters

MEGABYTE = 1024**2
ALLOCATIONS = f"""
import resource, sys
import torch
from stages.training import runtime as runtime_module
from stages.training.runtime import available_cpus, keep_freed_memory
from tests.project import ROOT, clean_environment
if sys.argv[1] == "keep":
    keep_freed_memory()
def page_faults():
    for size in (1, 8, 64):
        torch.ones(size * {MEGABYTE}, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = page_faults()
for _ in range(50):
    last = page_faults()
print((last - first) / 50)
"""


@pytest.mark.parametrize(("gpu", "expected"), [
    (None, {"auto": "cpu", "cpu": "cpu"}),
    ("cuda", {"auto": "cuda", "gpu": "cuda", "cuda": "cuda", "cpu": "cpu"}),
    ("mps", {"auto": "mps", "gpu": "mps", "mps": "mps", "cpu": "cpu"}),
])  # fmt: skip
def test_scoring_takes_the_accelerator_that_is_there(
    gpu: str | None, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device(gpu) if gpu else None)
    for accelerator in ("auto", "cpu", "gpu", "cuda", "mps", "tpu"):
        runtime = runtime_parameters(accelerator=accelerator)
        if accelerator in expected:
            assert runtime.torch_device() == expected[accelerator]
        else:
            with pytest.raises(
                UserError, match=f"found {accelerator}, which this machine lacks; allowed here: auto, cpu"
            ):
                runtime.torch_device()


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc, whose memory it is about"
)
def test_freed_memory_is_kept_for_the_next_step() -> None:
    faults = {
        what: float(subprocess.run([sys.executable, "-c", ALLOCATIONS, what], capture_output=True, check=True).stdout)
        for what in ("keep", "leave")
    }
    assert faults["keep"] < faults["leave"] / 5


def test_a_system_without_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", None)
    keep_freed_memory()


GROUPS: dict[str, tuple[dict[str, str], float]] = {
    "no limit": ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 4),
    "two and a half": ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "250000 100000"}, 2),
    "less than one": ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "20000 100000"}, 1),
    "of the group around it": (
        {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "100000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 1,
    ),
    "of a container, which sees itself as the root": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
    "of version 1": (
        {"proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "200000",
         "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000"}, 2,
    ),
    "of version 1, none": (
        {"proc/self/cgroup": "5:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 4,
    ),
    "more than there are": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "6400000 100000"}, 4),
    "unreadable": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "?"}, 4),
    "another system": ({}, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_threads_are_as_many_as_the_process_may_use(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, expected = GROUPS[name]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    assert available_cpus(tmp_path) == expected
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(runtime_module, "available_cpus", lambda: expected)
    runtime_parameters(threads=None).limit_threads()
    assert threads == ([] if expected == 4 else [expected])
    runtime_parameters(threads=7).limit_threads()
    assert threads[-1] == 7


def test_threads_wait_shortly_before_they_sleep() -> None:
    program = "import os, stages; print(os.environ.get('GOMP_SPINCOUNT'))"
    for environment, expected in (
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={name: value for name, value in clean_environment().items() if "OMP" not in name} | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected
