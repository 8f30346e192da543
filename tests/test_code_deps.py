"""The tool that keeps the code deps of dvc.yaml, so that no person must; and dvc.lock, which a person commits with them."""

import hashlib
import random
import re

from ruamel.yaml import YAML

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


def test_the_committed_results_are_of_the_committed_code() -> None:
    """A change of the code without ``dvc repro`` would leave a clone whose first `dvc status` is not clean."""
    project = DVC_FILE.parent
    stages = YAML(typ="safe").load(project / "dvc.lock")["stages"].values()
    locked = {
        each["path"]: each["md5"] for stage in stages for each in stage["deps"] if each["path"].startswith("stages/")
    }
    assert len(locked) > 40
    assert locked == {path: hashlib.md5((project / path).read_bytes()).hexdigest() for path in locked}
