"""How every benchmark measures: peers take turns, medians with their spread, tables in docs/performance.md."""

import argparse
import gc
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

PAGE = Path("docs/performance.md")


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    threads: int
    rounds: int
    nanogpt: Path | None


@dataclass(frozen=True)
class Timing:
    """Seconds for one call."""

    median: float
    low: float
    high: float

    def rate(self, amount: float) -> str:
        """Return an amount a second, with the spread of its middle half."""
        return f"{amount / self.median:,.0f} ({amount / self.high:,.0f} to {amount / self.low:,.0f})"


def options(description: str | None) -> Options:
    """Read the command line and set the number of threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="1 measures processor time, which other programs do not disturb",
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each peer")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT, to be measured as well")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.nanogpt:
        sys.path.append(str(given.nanogpt))
    return Options(given.threads, given.rounds, given.nanogpt)


def clock_for(threads: int, device: str) -> Callable[[], float]:
    """Return a clock: of this process where one thread of the CPU does all the work, else of the world."""
    return time.process_time if threads == 1 and device == "cpu" else time.perf_counter


def seconds_of(call: Callable[[], object], threads: int, calls: int = 1, device: str = "cpu") -> float:
    """Return the seconds that one of several calls takes."""
    clock = clock_for(threads, device)
    gc.collect()
    start = clock()
    for _ in range(calls):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / calls


class Training:
    """A training in a process of its own, as its users run it, that does some steps when it is told to."""

    def __init__(self, begin: Callable[[], Callable[[], object]], threads: int, device: str = "cpu") -> None:
        """Begin it, and do two steps; ``begin`` returns what does a step."""
        processes = multiprocessing.get_context("spawn")
        self._connection, theirs = processes.Pipe()
        self._process = processes.Process(target=_do_steps, args=(theirs, begin, threads, device), daemon=True)
        self._process.start()
        theirs.close()  # so that a training that cannot begin ends the wait for it
        self.peak_bytes: int = self._connection.recv()
        """The bytes that it takes at most on a GPU."""

    def seconds(self, steps: int) -> float:
        """Do some steps, and return the seconds of one."""
        self._connection.send(steps)
        seconds: float = self._connection.recv()
        return seconds

    def end(self) -> None:
        """End it, and give its memory back."""
        self._connection.send(0)
        self._process.join()


def _do_steps(connection: Connection, begin: Callable[[], Callable[[], object]], threads: int, device: str) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = begin()
    step()
    step()
    connection.send(torch.cuda.max_memory_allocated() if device == "cuda" else 0)
    while steps := connection.recv():
        if device == "cuda":
            step()  # takes the memory again
        connection.send(seconds_of(step, threads, steps, device))
        if device == "cuda":
            torch.cuda.empty_cache()  # for the others


def take_turns(peers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """Let each peer return its seconds in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(rounds + 1):
        for name, peer in peers.items():
            took = peer()
            if turn:
                seconds[name].append(took)
    return {name: summarise(values) for name, values in seconds.items()}


def summarise(values: list[float]) -> Timing:
    """Return the median and the quartiles."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Timing(median, low, high)


def peak_flops(dtype: torch.dtype, threads: int, device: str) -> float:
    """Return the floating-point operations a second of the fastest of several matrix products."""
    best = 0.0
    clock = clock_for(threads, device)
    shapes = [(768, 128, 512), (768, 512, 128), (1024, 1024, 1024), (2048, 384, 1536)]
    for rows, inner, columns in [(8192, 8192, 8192)] if device == "cuda" else shapes:
        left = torch.randn(rows, inner, dtype=dtype, device=device)
        right = torch.randn(columns, inner, dtype=dtype, device=device)
        for _ in range(10):
            start = clock()
            torch.nn.functional.linear(left, right)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * rows * inner * columns / (clock() - start))
    return best


def write_table(name: str, caption: str, columns: list[str], rows: list[list[str]], page: Path | None = None) -> None:
    """Print a table and put it between its markers in a page, by default docs/performance.md."""
    lines = [caption, "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    table = "\n".join(lines)
    print(table + "\n", flush=True)
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = page or PAGE
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")
