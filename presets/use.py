"""Take a preset as params.yaml, and make the CSV that it reads; `make repro PRESET=NAME` calls this first.

A params.yaml of your own is kept in the folder params.saved before it is replaced.
"""

import difflib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from presets.addition import ADDITION_FILE, write_addition
from presets.text_to_csv import TEXT_FILE, write_text_csv
from stages.artifacts.atomic import atomic_file
from stages.command_line import command_parser, run
from stages.errors import UserError
from stages.parameters import PARAMETERS_FILE

PRESETS_FOLDER = Path("presets")
SAVED_FOLDER = Path("params.saved")

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
        if ADDITION_FILE.exists():
            return f"{ADDITION_FILE} is there already: kept (delete it to have it written anew)"
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
    """Put a preset in place of params.yaml; return what was done, and how to undo it."""
    return replace_parameters(preset.read_bytes(), str(preset))


def replace_parameters(chosen: bytes, name: str) -> str:
    """Put a new content in place of params.yaml, whose present one is saved first unless it is kept elsewhere.

    Args:
        chosen: the new content.
        name: what it is, for people.

    Returns:
        what was done, and how to undo it.
    """
    current = PARAMETERS_FILE.read_bytes() if PARAMETERS_FILE.exists() else None
    if current == chosen:
        return f"{PARAMETERS_FILE} is {name} already"
    way_back = None if current is None else _way_back(current) or f"cp {_save(current)} {PARAMETERS_FILE}"
    with atomic_file(PARAMETERS_FILE) as file:
        file.write(chosen)
    message = f"{PARAMETERS_FILE} is now {name}"
    return f"{message}; to go back to yours: {way_back}" if way_back else message


def _way_back(content: bytes) -> str | None:
    """Return the command that brings a params.yaml back from where it is kept; None where it is kept nowhere."""
    for path in (*_saved_files(), *PRESETS_FOLDER.glob("*.yaml")):
        if _loses_nothing(content, path.read_bytes()):
            return f"cp {path} {PARAMETERS_FILE}"
    committed = _committed()
    if committed is not None and _loses_nothing(content, committed):
        return f"git checkout HEAD -- {PARAMETERS_FILE}"
    return None


def _loses_nothing(content: bytes, kept: bytes) -> bool:
    """Return whether ``kept`` has the values of ``content`` and all of its comments.

    `dvc exp run -S` writes the file anew, without some comments: that is no other content.
    """
    if content == kept:
        return True
    values = _values(content)
    return values is not None and values == _values(kept) and _comments(content) <= _comments(kept)


def _values(content: bytes) -> str | None:
    """Return what a YAML file says, as text in which 1, 1.0 and true differ; None where it is no YAML."""
    try:
        return repr(YAML(typ="safe").load(content))
    except (YAMLError, ValueError, RecursionError):
        return None


def _comments(content: bytes) -> set[bytes]:
    return {comment.strip() for comment in re.findall(rb"#.*", content)}


def _committed() -> bytes | None:
    """Return params.yaml as last committed; None without git, or where it never was."""
    command = ["git", "show", f"HEAD:./{PARAMETERS_FILE}"]
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout  # noqa: S603 - a fixed command
    except (OSError, subprocess.CalledProcessError):
        return None


def _saved_files() -> Iterator[Path]:
    """Yield the files that were saved, the newest last: 1.yaml, 2.yaml, ..."""
    number = 1
    while (path := SAVED_FOLDER / f"{number}.yaml").exists():
        yield path
        number += 1


def _save(content: bytes) -> Path:
    """Write ``content`` under the next number."""
    path = SAVED_FOLDER / f"{len(list(_saved_files())) + 1}.yaml"
    with atomic_file(path) as file:
        file.write(content)
    return path


if __name__ == "__main__":
    run(main)
