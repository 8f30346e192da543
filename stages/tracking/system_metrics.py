"""What a training takes of its machine, as MLflow measures it and shows it on a page of its own.

MLflow's own thread would send the figures as well. It ends at the first answer that fails, and a training of less than ten
seconds gets no figure from it. So only its measuring is used: the points go the way of all others, and survive an outage.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SECONDS = 10.0
PREFIX = "system/"

LogSample = Callable[[Mapping[str, float]], None]


@contextmanager
def record_system_metrics(log: LogSample, *, wanted: bool, seconds: float = SECONDS) -> Iterator[None]:
    """Log the machine's use every ``seconds`` while the block runs, and once when it ends."""
    if not wanted:
        yield
        return
    sample = start_sampling()
    ended = threading.Event()

    def sample_until_ended() -> None:
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


def start_sampling() -> Callable[[], Mapping[str, float]]:
    """Return what measures the use of processor, memory, disk, network and GPUs since it was called last, or since now."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # noqa: PLC0415 - takes a while

    monitor: Any = SystemMetricsMonitor(run_id=None)

    def sample() -> Mapping[str, float]:
        monitor.collect_metrics()
        figures = monitor.aggregate_metrics()
        for part in monitor.monitors:
            part.clear_metrics()
        return {PREFIX + name: value for name, value in figures.items()}

    sample()  # the processor's use is counted from one call to the next
    return sample
