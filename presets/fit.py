"""Look at your data, measure this machine, and write the params.yaml of a good model for a budget in minutes.

`make repro CSV=data/mine.csv MINUTES=10` calls this first, and then trains. A params.yaml of your own is kept.
"""

from pathlib import Path

from presets.fitting.advisor import Fitted, fit, forecast_of
from presets.fitting.params_file import write_parameters
from presets.fitting.report import describe_fit, describe_forecast
from presets.use import replace_parameters
from stages.command_line import command_parser, run
from stages.errors import UserError
from stages.parameters import PARAMETERS_FILE, read_all

TEMPLATE = Path("presets/toy.yaml")
LEAST_MINUTES = 0.5


def main() -> None:
    """Fit, or forecast what params.yaml asks for."""
    parser = command_parser(__doc__)
    parser.add_argument("data", nargs="?", help="a table of prompts, or a folder of them, as data.csv takes it")
    parser.add_argument("--minutes", type=float, default=10, help="for the whole pipeline (default: %(default)s)")
    parser.add_argument("--prompt", metavar="COLUMN", help="the column of prompts; alone, it is plain text")
    parser.add_argument("--completion", metavar="COLUMN", help="the column of completions")
    parser.add_argument("--dry-run", action="store_true", help="print the forecast alone, and write nothing")
    parser.add_argument("--forecast", action="store_true", help="say what params.yaml as it is will take")
    arguments = parser.parse_args()
    if arguments.forecast:
        if arguments.data:
            raise UserError("--forecast reads what params.yaml names; leave the data out, or --forecast")
        print(describe_forecast(forecast_of(PARAMETERS_FILE)))
        return
    if not arguments.data:
        raise UserError("name your data: python -m presets.fit data/mine.csv --minutes 10")
    if not arguments.minutes >= LEAST_MINUTES:
        raise UserError(f"--minutes {arguments.minutes:g}: allowed: {LEAST_MINUTES} or more; starting up takes as long")
    machine = read_all(PARAMETERS_FILE if PARAMETERS_FILE.exists() else TEMPLATE)["runtime"]
    fitted = fit(arguments.data, arguments.minutes, arguments.prompt, arguments.completion, TEMPLATE, machine)
    if not arguments.quiet:
        print(describe_fit(fitted))
    if not arguments.dry_run:
        message = replace_parameters(content_of(fitted, arguments.minutes), f"fitted to {arguments.data}")
        if not arguments.quiet:
            print(message)


def content_of(fitted: Fitted, minutes: float) -> bytes:
    """Return the params.yaml of what was fitted."""
    header = (
        "What to compute. Change a value, type `dvc repro`: only the stages that it touches run again.\n"
        f"Written by `python -m presets.fit {fitted.csv} --minutes {minutes:g}`. Behind Here: stands why a value was chosen\n"
        "(docs/fit.md has the rules); a blank means none."
    )
    return write_parameters(TEMPLATE.read_text(encoding="utf-8"), fitted.choices, header).encode()


if __name__ == "__main__":
    run(main)
