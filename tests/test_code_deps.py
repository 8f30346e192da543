"""The tool that keeps the code deps of dvc.yaml, so that no person must."""

import random
import re

from tests.code_deps import DVC_FILE, with_code_deps

TEXT = DVC_FILE.read_text(encoding="utf-8")


def test_dvc_yaml_is_what_the_tool_writes() -> None:
    assert with_code_deps(TEXT) == TEXT


def test_wrong_and_missing_files_are_put_right() -> None:
    lines = TEXT.splitlines(keepends=True)
    code = [number for number, line in enumerate(lines) if re.fullmatch(r"    - stages/\S+\.py\n", line)]
    after_another = [number for number in code if number - 1 in code]
    assert len(after_another) > 40
    chosen = random.Random(0).sample(after_another, 20)
    for number in chosen[:10]:
        lines[number] = "    - stages/no_such_file.py\n"
    for number in chosen[10:]:
        lines[number] = ""
    assert "".join(lines) != TEXT
    assert with_code_deps("".join(lines)) == TEXT
