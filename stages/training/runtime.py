"""Where to compute: the `runtime` section of params.yaml, which no DVC stage depends on."""

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import psutil
from pydantic import Field

from stages.core.params_model import ParamsModel
from stages.errors import UserError
from stages.partitions.engine_params import Scheduler

Count = Annotated[int, Field(ge=1)]
Threads = Annotated[int, Field(ge=1, le=1024)]  # with more than the system starts, libraries crash

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4


class RuntimeParams(ParamsModel):
    """Settings of the machine at hand. Changing one reruns nothing: results are defined by the other sections."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]
    """What Lightning trains on; auto takes a GPU where there is one."""
    devices: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
    """Devices on each machine. They share the global batch: more devices do not make it larger."""
    num_nodes: Annotated[int, Field(ge=1, le=10_000)]
    """Machines that train together."""
    strategy: Literal["auto", "ddp", "fsdp"]
    """How devices train together: each with all weights (ddp), or each with a part of them (fsdp), for models that one device
    cannot hold; auto takes ddp where there are several."""
    micro_batch_size: Count | None
    """Examples that one device computes at once; null takes its whole share of the batch. Lower it when memory runs out:
    gradients are accumulated, so that the global batch stays what train.batch_size says."""
    threads: Threads | None
    """CPU threads; null takes one for each core that this process may use. Another number can change the last digits of a trained weight."""
    loader_workers: Annotated[int, Field(ge=0, le=256)]
    """Processes that prepare batches ahead; 0 prepares them in the training process."""
    dask: Scheduler | None
    """Where the preparation stages compute: see ``EngineParams``."""
    checkpoint_minutes: Annotated[float, Field(gt=0, le=10**9)] | None
    """Minutes between two checkpoints, from which a killed training goes on; null takes none."""
    tracking: Literal["required", "optional"]
    """Without its MLflow server, a stage fails at its start (required), or goes on unrecorded (optional)."""
    system_metrics: bool
    """Record the use of CPU, memory and GPU with each training."""

    def limit_threads(self) -> None:
        """Let torch compute with as many CPU threads as ``threads`` says."""
        import torch  # noqa: PLC0415 - the preparation stages read this section without torch

        usable = available_cpus()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        elif usable < torch.get_num_threads():
            torch.set_num_threads(usable)

    def torch_device(self) -> str:
        """Return the one device that scoring runs on: the CPU beside a TPU, which only trains.

        Raises:
            UserError: this machine lacks the accelerator.
        """
        import torch  # noqa: PLC0415 - the preparation stages read this section without torch

        gpu = torch.accelerator.current_accelerator(check_available=True)
        best = "cpu" if gpu is None else gpu.type
        devices = {"auto": best, "cpu": "cpu"}
        if gpu is not None:
            devices |= {"gpu": best, best: best}
        if find_spec("torch_xla"):
            devices["tpu"] = "cpu"
        if self.accelerator not in devices:
            message = (
                f"params.yaml: runtime.accelerator: found {self.accelerator}, which this machine lacks; allowed here: "
                f"{', '.join(devices)}. Set auto, which takes the best there is"
            )
            raise UserError(message)
        return devices[self.accelerator]


def available_cpus(root: Path = Path("/")) -> int:
    """Return the CPUs that this process may use: as many as it may run on, and as its control group's limit allows.

    torch counts the first alone, and would let threads wait for each other in a container with half a CPU.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cpus, _cpu_quota(root))))


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process may use: the machine's, or less where its control group has a limit."""
    limits = [psutil.virtual_memory().total]
    for folder, version in _control_groups(root, "memory"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text()))
    return min(limits)


def _cpu_quota(root: Path) -> float:
    """Return the CPUs that Linux's control groups allow; infinity where none limits them."""
    quotas = [math.inf]
    for folder, version in _control_groups(root, "cpu"):
        with contextlib.suppress(OSError, ValueError):
            if version == 1:
                quota, period = ((folder / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
            else:
                quota, period = (folder / "cpu.max").read_text().split()
            if int(quota) > 0:  # "max", or -1, is no limit
                quotas.append(int(quota) / int(period))
    return min(quotas)


def _control_groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folder of each control group that this process lies in, and its version, 1 or 2; none but on Linux."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = base / name.lstrip("/")
        for folder in (group, *group.parents):  # the limits of all groups around it hold as well
            if not folder.is_relative_to(base):
                break
            yield folder, 1 if controllers else 2


@contextmanager
def memory_errors(fix: str) -> Iterator[None]:
    """Turn the error of memory that ran out, on any device, into one line with its fix.

    Raises:
        UserError: memory ran out.
    """
    import torch  # noqa: PLC0415 - as above

    try:
        yield
    except RuntimeError as error:
        # Where it is the computer's own memory, torch says so in words alone.
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise UserError(f"out of memory: {fix} ({str(error).splitlines()[0]})") from None


@contextmanager
def peer_errors() -> Iterator[None]:
    """Turn the error of a device that no longer answers into one line.

    Raises:
        UserError: another process of this training ended, or cannot be reached.
    """
    import torch  # noqa: PLC0415 - as above

    try:
        yield
    except RuntimeError as error:
        # Only some of torch's errors have a class of their own: gloo's, on a CPU, have its name in them.
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            "another process of this training ended, or cannot be reached: its own messages say why; the same command goes "
            f"on from the last checkpoint ({str(error).splitlines()[0]})"
        ) from None


def keep_freed_memory() -> None:
    """Keep the memory that a training step frees for the next step; only Linux with glibc can be told so.

    Otherwise glibc gives large blocks back to the system at every step, and asking for them again costs a page fault
    for every 4 KiB: up to a fifth of a small model's step. The most memory that is taken stays the same.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)
