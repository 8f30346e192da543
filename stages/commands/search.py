"""Search for better parameters with Optuna: each trial is a DVC experiment and an MLflow run under one parent.

  python -m stages.commands.search --trials 20 --minutes 60 -S 'train.learning_rate=log(0.0003,0.03)' -S 'model.n_layers=int(2,6)'

A range is log(low,high), float(low,high), int(low,high) or choice(one,other,...); any other value is the same in all trials.
Stopped with Ctrl-C, the same command goes on. It needs the extra `search`: pip install optuna scikit-learn.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages import command_line
from stages.errors import UserError
from stages.parameters import read_all

if TYPE_CHECKING:
    import optuna
    from optuna import Study

    from stages.tracking.search_runs import SearchRun

FOLDER = Path(".search")
"""For each search its journal, from which it goes on, and its picture."""
METRICS_FILES = ("metrics/train.json", "metrics/evaluate.json")
SMALLER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "train_loss", "validation_loss")
POLL_SECONDS = 2.0
_RANGE = re.compile(r"(log|float|int|choice)\((.+)\)")
_NAME = re.compile(r"[A-Za-z][\w-]*")
_SETTING = re.compile(r"([a-z_]+\.[a-z0-9_]+)=(.*)", re.DOTALL)
_FEWEST_TO_DRAW = 4


@dataclass(frozen=True)
class Space:
    """What a search may change."""

    ranges: dict[str, optuna.distributions.BaseDistribution]
    """By the dotted name of a parameter."""
    fixed: dict[str, str]
    """Settings of every trial, as they were typed."""


def main() -> None:
    """Search, or go on with a search."""
    parser = command_line.command_parser(__doc__)
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="NAME=RANGE",
        help="a range, or a value for all trials",
    )
    parser.add_argument("--trials", type=int, default=20, help="end after so many, earlier ones counted (default 20)")
    parser.add_argument("--minutes", type=float, help="begin no trial after so many minutes")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once (default 1)")
    parser.add_argument("--metric", default="validation_loss", help="of metrics/*.json (default validation_loss)")
    parser.add_argument("--name", default="search", help="of the search; its trials are NAME-0, NAME-1, ...")
    options = parser.parse_args()
    optuna = import_optuna()
    space = parse_space(options.set_param)
    parameters = read_all()
    check(space, options.name, options.metric, parameters)
    FOLDER.mkdir(exist_ok=True)
    study = open_study(options.name, options.metric)
    interrupted = False
    with Trials(space, options.name, options.metric, parameters) as trials:
        begun = sum(trial.state != optuna.trial.TrialState.FAIL for trial in study.trials)
        waiting = sum(trial.state == optuna.trial.TrialState.WAITING for trial in study.trials)
        seconds = None if options.minutes is None else 60 * options.minutes
        try:
            left = max(0, options.trials - begun + waiting)
            if left:
                study.optimize(trials.run, n_trials=left, timeout=seconds, n_jobs=options.jobs, catch=(TrialError,))
            noise = trials.repeat_best(study)
        except KeyboardInterrupt:
            interrupted, noise = True, None
        picture = draw(study, FOLDER / f"{options.name}.png")
        trials.end(study, picture, finished=not interrupted)
    print(describe(study, options.name, options.metric, noise, picture))
    if interrupted:
        raise KeyboardInterrupt


class TrialError(Exception):
    """A trial that failed; the search goes on."""


def import_optuna() -> Any:
    """Return the library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna  # noqa: PLC0415 - an extra
    except ImportError:
        raise UserError("this command needs Optuna; install it with: pip install optuna scikit-learn") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def parse_space(settings: list[str]) -> Space:
    """Read ``train.learning_rate=log(0.0003,0.03)`` and the like.

    Raises:
        UserError: a setting is no such thing, or none is a range.
    """
    ranges: dict[str, Any] = {}
    fixed: dict[str, str] = {}
    for setting in settings:
        match = _SETTING.fullmatch(setting)
        if match is None:
            raise UserError(f"-S {setting}: expected section.key=value, such as 'train.learning_rate=log(0.0003,0.03)'")
        name, value = match.groups()
        if name in ranges or name in fixed:
            raise UserError(f"-S {setting}: {name} is given twice; leave one out")
        if found := _RANGE.fullmatch(value.strip()):
            ranges[name] = _distribution(setting, *found.groups())
        else:
            fixed[name] = value
    if not ranges:
        raise UserError(
            "no parameter has a range; give at least one, such as -S 'train.learning_rate=log(0.0003,0.03)', "
            "-S 'model.n_layers=int(2,6)' or -S 'model.norm=choice(layer,rms)'"
        )
    return Space(ranges, fixed)


def _distribution(setting: str, kind: str, inner: str) -> Any:
    distributions = import_optuna().distributions
    parts = [part.strip() for part in inner.split(",")]
    if kind == "choice":
        try:
            return distributions.CategoricalDistribution([YAML(typ="safe").load(part) for part in parts])
        except YAMLError:
            raise UserError(f"-S {setting}: a choice is not a value of YAML") from None
    try:
        low, high = (int(part) if kind == "int" else float(part) for part in parts)
    except ValueError:
        numbers = "whole numbers" if kind == "int" else "numbers"
        raise UserError(f"-S {setting}: expected two {numbers}, as in {kind}(1,8)") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (kind != "log" or low > 0)):
        above = " above 0" if kind == "log" else ""
        raise UserError(f"-S {setting}: expected two numbers{above}, the smaller one first")
    if kind == "int":
        return distributions.IntDistribution(int(low), int(high))
    return distributions.FloatDistribution(low, high, log=kind == "log")


def check(space: Space, name: str, metric: str, parameters: dict[str, Any]) -> None:
    """Refuse what would fail in every trial.

    Raises:
        UserError: a name is unknown, or the metric will not be there.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"--name {name}: allowed: a letter, then letters, digits, - and _")
    known = {f"{section}.{key}" for section, keys in parameters.items() if isinstance(keys, dict) for key in keys}
    for setting in (*space.ranges, *space.fixed):
        if setting not in known:
            raise UserError(f"-S {setting}: params.yaml has no such key")
    split = parameters["split"]
    nothing_held_out = not split["validation"] and not split["column"] and Path(parameters["data"]["csv"]).is_file()
    if metric == "validation_loss" and nothing_held_out and "split.validation" not in space.fixed:
        raise UserError(
            "--metric validation_loss needs validation rows, of which params.yaml holds none out; add -S split.validation=0.1"
        )


def open_study(name: str, metric: str) -> optuna.Study:
    """Open the search of this name, or begin it; what a killed search left unfinished is tried again.

    Raises:
        UserError: it was begun for another metric.
    """
    optuna = import_optuna()
    journal = optuna.storages.journal
    storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(FOLDER / f"{name}.log")))
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        load_if_exists=True,
        direction="minimize" if metric in SMALLER_IS_BETTER else "maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0),
    )
    # The seed makes a search repeatable with one job, and differs where it goes on; constant_liar keeps jobs apart.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), multivariate=True, constant_liar=True)
    begun_for = study.user_attrs.get("metric", metric)
    if begun_for != metric:
        raise UserError(f"--name {name}: was begun for {begun_for}; take another --name for {metric}")
    study.set_user_attr("metric", metric)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        if _is_running(trial.user_attrs.get("process")):
            continue  # another terminal works on the same search
        study.enqueue_trial(trial.params)
        storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)  # noqa: SLF001 - Optuna's own way
    return cast("Study", study)


def _is_running(process: int | None) -> bool:
    try:
        os.kill(process or 0, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return process is not None


class Trials:
    """Runs trials as DVC experiments, in temporary copies of the project, and watches them in MLflow."""

    def __init__(self, space: Space, name: str, metric: str, parameters: dict[str, Any]) -> None:
        """Take what every trial has in common."""
        from stages.tracking.search_runs import SearchRun  # noqa: PLC0415 - takes a second

        self._space = space
        self._name = name
        self._metric = metric
        self._data = str(parameters["data"]["csv"])
        self._seed = int(parameters["train"]["seed"])
        self._run: SearchRun = SearchRun(name)
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
        best = _best(study)
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
        best = _best(study)
        figures = {} if best is None or best.value is None else {f"best_{self._metric}": best.value}
        self._run.end(figures, [picture] if picture else [], finished=finished)

    def _experiment(self, experiment: str, values: dict[str, Any], trial: optuna.Trial | None) -> float:
        earlier = _read_metric(experiment, self._metric)
        if earlier is not None:
            return earlier
        settings = self._space.fixed | {name: _as_setting(value) for name, value in values.items()}
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
        shown = ", ".join(f"{name}={_in_short(value)}" for name, value in values.items())
        print(f"{experiment}: {self._metric} {figure:.4f}  {shown}", flush=True)
        log.unlink()
        return figure

    def _watch(self, process: subprocess.Popen[bytes], experiment: str, trial: optuna.Trial | None) -> None:
        """Wait for the end, and meanwhile report its validation losses; stop what is hopeless."""
        optuna = import_optuna()
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


def _as_setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _in_short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _as_setting(value)


def _is_untracked(path: str) -> bool:
    """Return whether a file of the project is neither in git nor in DVC, so that a copy of the project lacks it."""
    if Path(path).is_absolute() or Path(f"{path}.dvc").exists():
        return False
    return not _git("ls-files", "--", path)


def _read_metric(experiment: str, metric: str) -> float | None:
    """Return a figure of a finished experiment; None where there is none."""
    found = [line.split() for line in _git("for-each-ref", "--format=%(refname)", "refs/exps").splitlines()]
    reference = next((name for (name,) in found if name.endswith(f"/{experiment}")), None)
    if reference is None:
        return None
    for path in METRICS_FILES:
        text = _git("show", f"{reference}:{path}")
        if text and metric in (figures := json.loads(text)):
            return float(figures[metric])
    return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip() if done.returncode == 0 else ""


def _best(study: optuna.Study) -> optuna.trial.FrozenTrial | None:
    ranked = _ranked(study)
    return ranked[0] if ranked else None


def _ranked(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the complete trials, the best first."""
    optuna = import_optuna()
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    return sorted(
        study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)),
        key=lambda trial: (sign * (trial.value or 0.0), trial.number),
    )


def draw(study: optuna.Study, path: Path) -> Path | None:
    """Draw what mattered: how much of the differences each parameter explains, and each parameter's values."""
    ranked = _ranked(study)
    if len(ranked) < _FEWEST_TO_DRAW or len({trial.value for trial in ranked}) == 1:
        return None
    import matplotlib as mpl  # noqa: PLC0415 - takes a second

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    optuna = import_optuna()
    names = sorted(ranked[0].params)
    importances = optuna.importance.get_param_importances(study) if len(names) > 1 else dict.fromkeys(names, 1.0)
    figure, axes = plt.subplots(1, len(names) + 1, figsize=(3.2 * (len(names) + 1), 3.2), layout="constrained")
    axes[0].barh(list(importances)[::-1], list(importances.values())[::-1])
    axes[0].set_xlabel("share of the differences")
    for axis, name in zip(axes[1:], names, strict=True):
        values = [trial.params[name] for trial in ranked]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        axis.plot(values if numbers else list(map(str, values)), [trial.value for trial in ranked], "o")
        axis.set_xlabel(name)
        axis.set_ylabel(study.user_attrs["metric"])
        if getattr(ranked[0].distributions[name], "log", False):
            axis.set_xscale("log")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def describe(study: optuna.Study, name: str, metric: str, noise: float | None, picture: Path | None) -> str:
    """Return what came out, and what to type next."""
    ranked = _ranked(study)
    states = [trial.state.name.lower() for trial in study.trials]
    counts = ", ".join(f"{states.count(state)} {word}" for state, word in
                       (("complete", "complete"), ("pruned", "stopped early"), ("fail", "failed")) if state in states)  # fmt: skip
    if not ranked:
        return f"{name}: no trial is complete ({counts or 'none was begun'})"
    best = ranked[0]
    lines = [f"{name}: {counts}; best: {best.user_attrs['experiment']} with {metric} {best.value:.4f}"]
    lines += [f"  {key}: {_in_short(value)}" for key, value in sorted(best.params.items())]
    if len(ranked) > 1:
        gap = abs(float(ranked[1].value or 0) - float(best.value or 0))
        second = f"the second, {ranked[1].user_attrs['experiment']}, is {gap:.4f} worse"
        if noise is None:
            lines.append(f"{second}; how much another seed changes is not known")
        elif gap <= noise:
            lines.append(
                f"WARNING: {second}, and another seed changes the best by {noise:.4f}: within noise of each other"
            )
        else:
            lines.append(f"{second}, and another seed changes the best by {noise:.4f}")
    if picture:
        lines.append(f"what mattered: {picture}")
    lines.append(f"take the best: dvc exp apply {best.user_attrs['experiment']}")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run(main)
