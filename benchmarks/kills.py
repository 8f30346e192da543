"""Kill `dvc repro` at random moments, again and again, and compare what it ends with to an uninterrupted one.

    python -m benchmarks.kills --kills 20

Each kill hits the whole process group, or DVC alone, with SIGKILL, SIGTERM or SIGINT, at a random moment of what is left
to do. It ends with a table, and exits with 1 if a byte differs or a run of a dead process is still RUNNING.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.conftest import Project, clean_environment, clone

OUTPUTS = ("data/vocabulary.json", "data/dataset", "data/model", "metrics")
STEPS = 1200
# How a process ends: what is signalled, and with what.
ENDINGS = (("group", signal.SIGKILL), ("group", signal.SIGTERM), ("group", signal.SIGINT), ("dvc", signal.SIGKILL))


def slow_toy(folder: Path) -> Project:
    """Clone the project, with a training of some seconds that takes a checkpoint every half second."""
    project = clone(folder)
    project.replace("params.yaml", "epochs: 30", "epochs: null")
    project.replace("params.yaml", "max_steps: null", f"max_steps: {STEPS}")
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


def start(project: Project, log: Path) -> subprocess.Popen[bytes]:
    """Start `dvc repro` in a process group of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            ["dvc", "repro"],
            cwd=project.folder,
            env=clean_environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


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


def main() -> None:
    """Kill as often as asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts this in the background ignores it
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        reference = slow_toy(Path(folder) / "reference")
        began = time.monotonic()
        reference.run("dvc", "repro")
        whole = time.monotonic() - began
        project = slow_toy(Path(folder) / "killed")
        log = Path(folder) / "log"
        killed: Counter[str] = Counter()
        began = time.monotonic()
        while killed.total() < options.kills:
            process = start(project, log)
            target, number = chance.choice(ENDINGS)
            try:
                process.wait(chance.uniform(0, whole))
                # It was done before the kill came: begin anew, with nothing that DVC could restore.
                shutil.rmtree(project.folder / ".dvc/cache")
                for name in digests(project):
                    (project.folder / name).unlink()
            except subprocess.TimeoutExpired:
                end(process, target, number)
                killed[f"{target} {number.name}"] += 1
        process = start(project, log)
        code = process.wait()
        took = time.monotonic() - began
        same = digests(project) == digests(reference)
        text = log.read_text()
        runs = statuses(project)
        stopped_in = Counter(part.split("'")[0] for part in text.split("Running stage '")[1:])
        print(f"uninterrupted: {whole:.1f} s; {killed.total()} kills and what was done between them: {took:.1f} s")
        print("kills: " + ", ".join(f"{count} x {name}" for name, count in sorted(killed.items())))
        print("stages begun: " + ", ".join(f"{name} {count}" for name, count in stopped_in.items()))
        print(
            f"resumed from a checkpoint: {text.count('resumed at step')} times; tracebacks: {text.count('Traceback')}"
        )
        print(f"MLflow runs: {dict(runs)}; exit code at the end: {code}")
        print(f"files of the outputs: {len(digests(reference))}, {'all the same bytes' if same else 'THEY DIFFER'}")
        if not same or runs["RUNNING"] or code:
            print(text[-3000:])
            sys.exit(1)


if __name__ == "__main__":
    main()
