"""Trials that never ran, for tests of what is made of them."""

import optuna


def add_trial(study: optuna.Study, value: float, rate: float) -> None:
    number = len(study.trials)
    study.add_trial(
        optuna.trial.create_trial(
            params={"train.learning_rate": rate},
            distributions={"train.learning_rate": optuna.distributions.FloatDistribution(0.001, 1, log=True)},
            value=value,
            user_attrs={"experiment": f"search-{number}"},
        )
    )
