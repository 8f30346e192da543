"""Search for better parameters with Optuna: each trial is a DVC experiment and an MLflow run under one parent.

  python -m stages.commands.search --trials 20 --minutes 60 -S 'train.learning_rate=log(0.0003,0.03)' -S 'model.n_layers=int(2,6)'

A range is log(low,high), float(low,high), int(low,high) or choice(one,other,...); any other value is the same in all trials.
Stopped with Ctrl-C, the same command goes on. It needs the extra `search`: pip install optuna scikit-learn.
"""

# ruff: noqa: PLC0415 - Optuna, MLflow and matplotlib take seconds, and --help needs none of them
from importlib.util import find_spec

from stages import command_line
from stages.errors import UserError
from stages.parameters import read_all


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
    check_installed()
    import optuna

    from stages.search.outcome import describe, draw
    from stages.search.space import check_space, parse_space
    from stages.search.study import FOLDER, open_study
    from stages.search.trials import TrialError, Trials

    space = parse_space(options.set_param)
    parameters = read_all()
    check_space(space, options.name, options.metric, parameters)
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


def check_installed() -> None:
    """Check that the optional library is there.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("optuna") is None:
        raise UserError("this command needs Optuna; install it with: pip install optuna scikit-learn")


if __name__ == "__main__":
    command_line.run(main)
