"""The trials of a search: DVC experiments in temporary copies of the project, watched in MLflow."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import optuna
from ruamel.yaml import YAML

from stages.errors import UserError
from stages.search.space import Space, as_setting, format_value
from stages.search.study import FOLDER, best_trial
from stages.tracking.search_runs import SearchRun

METRICS_FILES = ("metrics/train.json", "metrics/evaluate.json")
POLL_SECONDS = 2.0


class TrialError(Exception):
    """A trial that failed; the search goes on."""


class Trials:
    """Runs trials as DVC experiments, in temporary copies of the project, and watches them in MLflow."""

    def __init__(self, space: Space, name: str, metric: str, parameters: dict[str, Any]) -> None:
        """Take what every trial has in common."""
        self._space = space
        self._name = name
        self._metric = metric
        self._data = str(parameters["data"]["csv"])
        self._seed = int(parameters["train"]["seed"])
        self._run = SearchRun(name)
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._starting = threading.Lock()
        self._stopping = False

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what still runs."""
        self._stopping = True
        for process in list(self._processes):
            _stop(process)

    def run(self, trial: optuna.Trial) -> float:
        """Run one trial, and return its metric.

        Raises:
            TrialError: it failed.
            optuna.TrialPruned: it was hopeless.
        """
        trial.set_user_attr("process", os.getpid())
        chosen = {name: trial._suggest(name, kind) for name, kind in self._space.ranges.items()}  # noqa: SLF001
        experiment = f"{self._name}-{trial.number}"
        trial.set_user_attr("experiment", experiment)
        return self._experiment(experiment, chosen, trial)

    def repeat_best(self, study: optuna.Study) -> float | None:
        """Train the best once more with another seed; return by how much its metric differs, None where that failed."""
        best = best_trial(study)
        if best is None:
            return None
        experiment = f"{self._name}-{best.number}-other-seed"
        again = study.user_attrs.get(experiment)
        if again is None:
            try:
                again = self._experiment(experiment, {**best.params, "train.seed": self._seed + 1}, None)
            except TrialError:
                return None
            study.set_user_attr(experiment, again)
        assert best.value is not None  # noqa: S101 - it is complete
        return abs(float(again) - best.value)

    def end(self, study: optuna.Study, picture: Path | None, *, finished: bool) -> None:
        """Record in MLflow what came out."""
        best = best_trial(study)
        figures = {} if best is None or best.value is None else {f"best_{self._metric}": best.value}
        self._run.end(figures, [picture] if picture else [], finished=finished)

    def _experiment(self, experiment: str, values: dict[str, Any], trial: optuna.Trial | None) -> float:
        settings = self._space.fixed | {name: as_setting(value) for name, value in values.items()}
        earlier = _read_metric(experiment, self._metric)
        if earlier is not None:
            _check_settings(experiment, settings)
            return earlier
        command = ["dvc", "exp", "run", "--temp", "--name", experiment]
        for name, value in settings.items():
            command += ["--set-param", f"{name}={value}"]
        if _is_untracked(self._data):
            command += ["--copy-paths", self._data]
        log = FOLDER / f"{experiment}.log"
        with log.open("wb") as output:
            with self._starting:  # DVC makes one copy of the project at a time
                if self._stopping:
                    raise TrialError("stopped")
                process = subprocess.Popen(  # noqa: S603 - the program of this environment
                    [str(Path(sys.executable).with_name(command[0])), *command[1:]],
                    stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
                self._processes.add(process)
            try:
                self._watch(process, experiment, trial)
            finally:
                _stop(process)
                self._processes.discard(process)
        figure = _read_metric(experiment, self._metric)
        if process.returncode or figure is None:
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if "rror" in line]
            print(f"{experiment} failed: {lines[0].strip() if lines else 'no result'} ({log})", file=sys.stderr)
            raise TrialError(experiment)
        settings_text = ", ".join(f"{name}={format_value(value)}" for name, value in values.items())
        print(f"{experiment}: {self._metric} {figure:.4f}  {settings_text}", flush=True)
        log.unlink()
        return figure

    def _watch(self, process: subprocess.Popen[bytes], experiment: str, trial: optuna.Trial | None) -> None:
        """Wait for the end, and meanwhile report its validation losses; stop what is hopeless."""
        run_id, seen = None, -1
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            run_id = run_id or self._run.adopt(experiment)
            if run_id is None or trial is None or self._metric != "validation_loss":
                continue
            for step, loss in self._run.curve(run_id, self._metric):
                if step > seen:
                    seen = step
                    trial.report(loss, step)
            if seen >= 0 and trial.should_prune():
                print(f"{experiment}: stopped at step {seen}, worse than half of the others at that step", flush=True)
                raise optuna.TrialPruned
        self._run.adopt(experiment)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a trial with all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_untracked(path: str) -> bool:
    """Return whether a file of the project is neither in git nor in DVC, so that a copy of the project lacks it."""
    if Path(path).is_absolute() or Path(f"{path}.dvc").exists():
        return False
    return not _git("ls-files", "--", path)


def _reference(experiment: str) -> str:
    """Return where git keeps an experiment of the present commit."""
    commit = _git("rev-parse", "HEAD")
    return f"refs/exps/{commit[:2]}/{commit[2:]}/{experiment}"


def _read_metric(experiment: str, metric: str) -> float | None:
    """Return a figure of a finished experiment; None where there is none."""
    for path in METRICS_FILES:
        text = _git("show", f"{_reference(experiment)}:{path}")
        if text and metric in (figures := json.loads(text)):
            return float(figures[metric])
    return None


def _check_settings(experiment: str, settings: dict[str, str]) -> None:
    """Check that an experiment which is there already is the trial that is wanted, as after a search was stopped.

    Raises:
        UserError: it has other values.
    """
    parse = YAML(typ="safe").load
    parameters = parse(_git("show", f"{_reference(experiment)}:params.yaml")) or {}
    for name, value in settings.items():
        section, key = name.split(".")
        found = parameters.get(section, {}).get(key)
        if found != parse(value):
            raise UserError(
                f"{experiment}: an experiment of this name is there already, with {name} {format_value(found)} where this search "
                f"has {value}; take another --name, or remove those: dvc exp remove {experiment} ..."
            )


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip() if done.returncode == 0 else ""
