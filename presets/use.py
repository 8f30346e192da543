"""Take a preset as params.yaml, and make the CSV that it reads; `make repro PRESET=NAME` calls this first.

A params.yaml of your own is saved as params.saved.yaml before it is replaced.
"""

import difflib
import itertools
import subprocess
from pathlib import Path

from presets.addition import ADDITION_FILE, write_addition
from presets.text_to_csv import TEXT_FILE, write_text_csv
from stages.artifacts.atomic import atomic_file
from stages.command_line import command_parser, run
from stages.errors import UserError
from stages.parameters import PARAMETERS_FILE

PRESETS_FOLDER = Path("presets")

_READ_TEXT = ("characters", "gpt2")
_TINY_SHAKESPEARE = "https://github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt"


def main() -> None:
    """Take the preset that is named."""
    parser = command_parser(__doc__)
    parser.add_argument("preset", help=f"one of {', '.join(preset_names())}")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help=f"for {' and '.join(_READ_TEXT)}: the plain text to learn from, UTF-8"
    )
    arguments = parser.parse_args()
    preset = preset_path(arguments.preset)
    messages = [prepare_data(arguments.preset, arguments.text), take(preset)]
    if not arguments.quiet:
        print("\n".join(message for message in messages if message))


def preset_names() -> list[str]:
    """Return the presets that there are."""
    return sorted(path.stem for path in PRESETS_FOLDER.glob("*.yaml"))


def preset_path(name: str) -> Path:
    """Return the file of a preset.

    Raises:
        UserError: there is none of this name.
    """
    names = preset_names()
    if not names:
        raise UserError(f"{PRESETS_FOLDER}/: not found in {Path.cwd()}; run from the project's folder")
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1)
        meant = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(f"no preset {name!r}; {meant}allowed: {', '.join(names)}")
    return PRESETS_FOLDER / f"{name}.yaml"


def prepare_data(name: str, text: Path | None) -> str | None:
    """Make the CSV that a preset reads, where it has one of its own; return what was done, in words.

    Args:
        name: the preset.
        text: the text file to make it from.

    Raises:
        UserError: the preset reads a text and there is none, or reads none and there is one.
    """
    if name not in _READ_TEXT:
        if text is not None:
            raise UserError(f"--text {text}: the preset {name} reads no text; only {' and '.join(_READ_TEXT)} do")
        if name != "addition":
            return None
        write_addition(ADDITION_FILE)
        return f"wrote {ADDITION_FILE}"
    if text is not None:
        return f"wrote {TEXT_FILE}: {write_text_csv(text, TEXT_FILE):,} paragraphs of {text}"
    if not TEXT_FILE.exists():
        raise UserError(
            f"{TEXT_FILE}: not found: the preset {name} learns from a text of yours, UTF-8, with blank lines between "
            f"paragraphs; type `make repro PRESET={name} TEXT=path/to/input.txt`\n"
            f"(Tiny Shakespeare, 1.1 MB, is such a text: {_TINY_SHAKESPEARE})"
        )
    return f"{TEXT_FILE} is there already: kept (TEXT=path/to/input.txt replaces it)"


def take(preset: Path) -> str:
    """Put a preset in place of params.yaml, whose content is saved first unless it is to be had elsewhere.

    Returns:
        what was done, and how to undo it.
    """
    chosen = preset.read_bytes()
    current = PARAMETERS_FILE.read_bytes() if PARAMETERS_FILE.exists() else chosen
    if current == chosen and PARAMETERS_FILE.exists():
        return f"{PARAMETERS_FILE} is {preset} already"
    message = f"{PARAMETERS_FILE} is now {preset}"
    if not _is_kept_elsewhere(current):
        saved = _save(current)
        message += f"; yours is saved as {saved}, to go back type: cp {saved} {PARAMETERS_FILE}"
    with atomic_file(PARAMETERS_FILE) as file:
        file.write(chosen)
    return message


def _is_kept_elsewhere(content: bytes) -> bool:
    """Tell whether a preset or git's last commit has the same bytes."""
    presets = (path.read_bytes() for path in PRESETS_FOLDER.glob("*.yaml"))
    return content in presets or content == _committed()


def _committed() -> bytes | None:
    """Return params.yaml as last committed; None without git, or where it never was."""
    command = ["git", "show", f"HEAD:./{PARAMETERS_FILE}"]
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout  # noqa: S603 - a fixed command
    except (OSError, subprocess.CalledProcessError):
        return None


def _save(content: bytes) -> Path:
    """Write ``content`` under the first name that is free or holds the same."""
    for number in itertools.count(1):
        path = Path("params.saved.yaml" if number == 1 else f"params.saved-{number}.yaml")
        if not path.exists():
            with atomic_file(path) as file:
                file.write(content)
            return path
        if path.read_bytes() == content:
            return path
    raise AssertionError("names do not run out")


if __name__ == "__main__":
    run(main)
