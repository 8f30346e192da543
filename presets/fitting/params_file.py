"""A params.yaml like presets/toy.yaml, with chosen values, and after each key's comment why it was chosen.

In block style and with blanks for null, so that ``dvc exp run -S``, which rewrites the file, loses nothing.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from presets.fitting.choice import Choice

_SECTION = re.compile(r"(\w+):$")
_COMMENT = re.compile(r"  # (.*)$")
_KEY = re.compile(r"  (\w+):(.*)$")
_PLAIN = re.compile(r"[A-Za-z_./][\w./ -]*")
_NOT_TEXT = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "~", ".inf", ".nan"}


def write_parameters(template: str, choices: Mapping[str, Choice[Any]], header: str) -> str:
    """Return ``template`` with the chosen values and their reasons.

    Args:
        template: a complete params.yaml in block style, a comment a key.
        choices: by dotted name, such as model.d_model.
        header: what stands above the first section, without #.

    Raises:
        KeyError: the template lacks a key that was chosen.
    """
    lines = [f"# {line}" for line in header.splitlines()]
    section, written, in_list = "", set(), False
    body = template.splitlines()
    start = next(number for number, line in enumerate(body) if _SECTION.match(line))
    before = start - 1 if body[start - 1].startswith("#") else start
    for line in ["", *body[before:]]:
        if match := _SECTION.match(line):
            section = match[1]
        if match := _KEY.match(line):
            name = f"{section}.{match[1]}"
            in_list = name in choices
            if in_list:
                comment = lines.pop()
                lines += [_with_reason(comment, choices[name].reason), f"  {match[1]}:{_value(choices[name].value)}"]
                written.add(name)
                continue
            line = re.sub(r": null$", ":", line)  # noqa: PLW2901
        elif in_list and line.startswith("  - "):
            continue
        lines.append(re.sub(r"\bnull\b", "blank", line) if line.startswith("  #") else line)
    if missing := set(choices) - written:
        raise KeyError(f"the template lacks {', '.join(sorted(missing))}")
    return "\n".join(lines) + "\n"


def _with_reason(comment: str, reason: str) -> str:
    stop = "" if comment.endswith((".", ":", "?")) else "."
    return f"{comment.replace('null', 'blank')}{stop} Here: {' '.join(reason.split())}"


def _value(value: Any) -> str:
    """Return a value as it stands after its key's colon."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(f"\n  - {item}" for item in value)
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT and value == value.strip()
        return f" {value if plain else json.dumps(value, ensure_ascii=False)}"
    return f" {json.dumps(value)}"
