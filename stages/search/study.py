"""The study of a search: Optuna's journal on disk, from which a stopped search goes on."""

import os
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from stages.errors import UserError

FOLDER = Path(".search")
"""For each search its journal, from which it goes on, and its picture."""
SMALLER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "train_loss", "validation_loss")


def open_study(name: str, metric: str) -> optuna.Study:
    """Open the search of this name, or begin it; what a killed search left unfinished is tried again.

    Raises:
        UserError: it was begun for another metric.
    """
    storage = JournalStorage(JournalFileBackend(str(FOLDER / f"{name}.log")))
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
    return study


def _is_running(process: int | None) -> bool:
    try:
        os.kill(process or 0, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return process is not None


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial | None:
    """Return the best of the complete trials; None where there is none."""
    ranked = ranked_trials(study)
    return ranked[0] if ranked else None


def ranked_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the complete trials, the best first."""
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    return sorted(
        study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)),
        key=lambda trial: (sign * (trial.value or 0.0), trial.number),
    )
