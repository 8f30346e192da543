"""Kill `dvc repro` at random moments, again and again, and compare what it ends with to an uninterrupted one.

    python -m benchmarks.kills --kills 200

Each kill hits the whole process group with SIGKILL, SIGTERM, SIGINT or SIGHUP (a closed terminal), or DVC alone with SIGKILL, or
closes the pipe that all output goes to (`dvc repro | head`), at a random moment of what is left to do. Whenever the pipeline ends before the kill, its bytes are compared, and it begins anew without its cache.
tests/test_resume.py does it twenty times.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.project import Project, clean_environment, clone

OUTPUTS = ("data/vocabulary.json", "data/dataset", "data/model", "metrics")
STEPS = 1200
# DVC rewrites this file in place, and refuses one that a kill has torn: docs/reliability.md tells users to delete it.
TORN = ".dvc/tmp/rwlock"
RUN_CACHE = ".dvc/cache/runs"
# What Python says of DVC's progress bar, where a signal comes in the moment in which DVC makes it.
HALF_MADE_BAR = re.compile(
    r"Exception ignored in: <function tqdm\.__del__ .*\nTraceback .*\n"
    r"(?:  .*\n)+  File \".*dvc.progress\.py\", line .*, in close\n(?:  .*\n)+AttributeError: .*\n"
)
# How a process ends: what is signalled, and with what. The reader of a pipe is killed, and DVC ends when it writes to it.
ENDINGS = (
    ("group", signal.SIGKILL),
    ("group", signal.SIGTERM),
    ("group", signal.SIGINT),
    ("group", signal.SIGHUP),
    ("dvc", signal.SIGKILL),
    ("reader", signal.SIGKILL),
)


def slow_toy(folder: Path, steps: int = STEPS) -> Project:
    """Clone the project, with a training of some seconds that takes a checkpoint every half second."""
    project = clone(folder)
    project.replace("params.yaml", "epochs: 30", "epochs: null")
    project.replace("params.yaml", "max_steps: null", f"max_steps: {steps}")
    project.replace("params.yaml", "dropout: 0.0", "dropout: 0.1")
    project.replace("params.yaml", "checkpoint_minutes: 10", "checkpoint_minutes: 0.008")
    return project


def digests(project: Project) -> dict[str, str]:
    """Hash every output file."""
    files = [path for output in OUTPUTS for path in [project.folder / output, *(project.folder / output).rglob("*")]]
    return {
        str(path.relative_to(project.folder)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if path.is_file() and path.name != ".gitignore"
    }


def start(project: Project, log: Path, *command: str) -> subprocess.Popen[bytes]:
    """Start a command, by default `dvc repro`, in a process group of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command or ("dvc", "repro"),
            cwd=project.folder,
            env=clean_environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def start_with_reader(project: Project, log: Path) -> "tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]":
    """Start `dvc repro` with its output in a pipe, and the process that reads it into the log."""
    process = subprocess.Popen(
        ("dvc", "repro"),
        cwd=project.folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    with log.open("ab") as output:
        reader = subprocess.Popen("cat", stdin=process.stdout, stdout=output, start_new_session=True)
    process.stdout.close()
    return process, reader


def end(process: subprocess.Popen[bytes], target: str, number: signal.Signals) -> None:
    """End it, and wait until all of its group is gone."""
    if target == "group":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    process.wait()
    for _ in range(600):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)


def statuses(project: Project) -> Counter[str]:
    """Count the MLflow runs by their status."""
    with sqlite3.connect(project.folder / "mlflow.db") as database:
        return Counter(status for (status,) in database.execute("select status from runs"))


@dataclass
class Kills:
    """What became of a pipeline that was killed again and again."""

    signals: Counter[str] = field(default_factory=Counter)
    """Kills by target and signal."""
    stages: Counter[str] = field(default_factory=Counter)
    """Kills by the stage that was running; an empty name where none had begun."""
    passes: int = 0
    """How often the pipeline ended, each time with the bytes of an uninterrupted one."""
    runs: Counter[str] = field(default_factory=Counter)
    """MLflow runs by status, at the end."""
    resumed: int = 0
    """Trainings that went on from a checkpoint."""


def put_right(project: Project) -> None:
    """Delete what a kill of DVC may leave torn, as docs/reliability.md says to."""
    (project.folder / TORN).unlink(missing_ok=True)
    for folder in (project.folder / RUN_CACHE).glob("*/*"):
        if not any(folder.iterdir()):
            folder.rmdir()


def kill_at_random(project: Project, expected: dict[str, str], kills: int, seconds: float, seed: int) -> Kills:
    """Kill the pipeline of ``project``, each time at a moment drawn from ``seconds``.

    With half the time that the pipeline takes, the kills reach all stages: what is done is not done again. ``expected``
    are the digests that it must end with.

    Raises:
        AssertionError: bytes differ, or a process failed otherwise than by its kill, or showed a traceback.
    """
    chance = random.Random(seed)
    log = project.folder.parent / "log"
    killed = Kills()
    while True:
        log.write_bytes(b"")
        put_right(project)
        process, reader = start_with_reader(project, log)
        try:
            process.wait(chance.uniform(0, seconds) if killed.signals.total() < kills else None)
        except subprocess.TimeoutExpired:
            target, number = chance.choice(ENDINGS)
            if target == "reader":
                reader.kill()
                process.wait()
            else:
                end(process, target, number)
            killed.signals[f"{target} {number.name}"] += 1
            killed.stages[log.read_text().rpartition("Running stage '")[2].partition("'")[0]] += 1
            print(f"kill {killed.signals.total()} of {kills}: {target} {number.name}", file=sys.stderr, flush=True)
        else:
            other = [name for name, _ in digests(project).items() ^ expected.items()]
            if process.returncode or other:
                raise AssertionError(f"exit code {process.returncode}, other bytes in {other}:\n{log.read_text()}")
            killed.passes += 1
        reader.wait()
        text = HALF_MADE_BAR.sub("", log.read_text())
        killed.resumed += text.count("resumed at step")
        if "Traceback" in text:
            raise AssertionError(text)
        if process.returncode == 0:
            if killed.signals.total() >= kills:
                break
            # Begin anew, with nothing that DVC could restore.
            shutil.rmtree(project.folder / ".dvc/cache")
            for name in digests(project):
                (project.folder / name).unlink()
    killed.runs = statuses(project)
    return killed


def main() -> None:
    """Kill as often as asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole = slow_toy(Path(folder) / "whole/project")
        began = time.monotonic()
        whole.run("dvc", "repro")
        seconds = time.monotonic() - began
        began = time.monotonic()
        project = slow_toy(Path(folder) / "killed/project")
        killed = kill_at_random(project, digests(whole), options.kills, seconds / 2, options.seed)
        print(f"uninterrupted: {seconds:.1f} s; killed and begun again: {time.monotonic() - began:.1f} s")
        print("kills: " + ", ".join(f"{count} x {name}" for name, count in sorted(killed.signals.items())))
        print("kills by stage: " + ", ".join(f"{name or 'none yet'} {count}" for name, count in killed.stages.items()))
        print(f"passes with the same bytes: {killed.passes}; resumed from a checkpoint: {killed.resumed} times")
        print(f"MLflow runs: {dict(killed.runs)}")


if __name__ == "__main__":
    main()
