"""What a training takes of its machine, under the names by which MLflow shows system metrics on a page of their own."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import psutil
import torch

MEGABYTE = 1024**2
SECONDS = 10.0

LogSample = Callable[[Mapping[str, float]], None]


@contextmanager
def record_system_metrics(log: LogSample, *, wanted: bool, seconds: float = SECONDS) -> Iterator[None]:
    """Log the machine's use every ``seconds`` while the block runs, and once when it ends."""
    if not wanted:
        yield
        return
    ended = threading.Event()

    def sample_until_ended() -> None:
        psutil.cpu_percent()  # the next call tells the use since this one
        while not ended.wait(seconds):
            log(sample())
        log(sample())

    sampler = threading.Thread(target=sample_until_ended, name="system metrics", daemon=True)
    sampler.start()
    try:
        yield
    finally:
        ended.set()
        sampler.join()


def sample() -> Mapping[str, float]:
    """Return the use of the processor, of memory, and of each GPU."""
    memory = psutil.virtual_memory()
    figures = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system/system_memory_usage_percentage": memory.percent,
    }
    for device in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(device)
        figures[f"system/gpu_{device}_memory_usage_megabytes"] = (total - free) / MEGABYTE
        figures[f"system/gpu_{device}_memory_usage_percentage"] = 100 * (total - free) / total
        with suppress(ModuleNotFoundError, RuntimeError):  # it needs nvidia-ml-py and a driver that answers it
            figures[f"system/gpu_{device}_utilization_percentage"] = torch.cuda.utilization(device)
    return figures
