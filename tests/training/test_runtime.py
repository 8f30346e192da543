"""What the settings of the machine do to the process."""

import ctypes
import subprocess
import sys

import pytest
import torch

from stages.errors import UserError
from stages.training.runtime import keep_freed_memory
from tests.training.conftest import runtime_parameters

MEGABYTE = 1024**2
ALLOCATIONS = f"""
import resource, sys
import torch
from stages.training.runtime import keep_freed_memory
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
