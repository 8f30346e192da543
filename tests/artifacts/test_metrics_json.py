import os
from pathlib import Path

import pytest

from stages.artifacts.metrics_json import read_json
from stages.errors import UserError

DAMAGED: dict[str, str | bytes] = {
    "deep": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "many digits": f'{{"a": {"9" * 5000}}}',
    "a list": "[]",
    "half": '{"a": 1',
    "no UTF-8": b"\xff\xfe\xfa",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_object_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    content = DAMAGED[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"file\.json: .*make it again with `dvc repro --force`$") as error:
        read_json(path)
    assert len(str(error.value)) < 300


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: expected a file"):
        read_json(tmp_path / "pipe")
