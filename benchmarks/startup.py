"""Start-up: the toy's pipeline beside one bare Lightning script, and a pipeline with nothing to do."""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import summarise, write_table
from tests.project import clean_environment, clone

MODULES = ("stages.build_vocabulary", "stages.build_dataset", "stages.train", "stages.evaluate", "stages.generate")


def main() -> None:
    """Measure, the commands taking turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    dvc = str(Path(sys.executable).parent / "dvc")
    with tempfile.TemporaryDirectory() as name:
        project, empty = Path(name) / "project", Path(name) / "empty"
        clone(project)
        empty.mkdir()
        (empty / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
        start_repository(empty, dvc)
        commands = {
            "one bare Lightning script (benchmarks/bare_toy.py)": ([sys.executable, "benchmarks/bare_toy.py"], project),
            "`dvc repro --force`, the toy": ([dvc, "repro", "--force", "--quiet"], project),
            "`dvc repro`, nothing to do": ([dvc, "repro", "--quiet"], project),
            "`dvc repro`, an empty pipeline": ([dvc, "repro", "--quiet"], empty),
            **{
                f"`python -m {module} --help`": ([sys.executable, "-m", module, "--help"], project)
                for module in MODULES
            },
        }
        wall: dict[str, list[float]] = {what: [] for what in commands}
        processor: dict[str, list[float]] = {what: [] for what in commands}
        for turn in range(rounds + 1):
            for what, (command, folder) in commands.items():
                took, used = run(command, folder)
                if turn:
                    wall[what].append(took)
                    processor[what].append(used)
    rows = [
        [what, f"{summarise(wall[what]).median:.2f}", f"{summarise(processor[what]).median:.2f}"] for what in commands
    ]
    write_table("startup", f"medians of {rounds} rounds", ["", "s", "s of processor time"], rows)


def start_repository(folder: Path, dvc: str) -> None:
    """Make a DVC repository."""
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([dvc, "init", "--quiet"], cwd=folder, check=True)


def run(command: list[str], folder: Path) -> tuple[float, float]:
    """Return the seconds a command took, and the processor's."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, check=True)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
