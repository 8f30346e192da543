"""What comes in from pretrained/ is what DVC knows the stage by."""

from pathlib import Path

import pytest

from stages.artifacts.pretrained import MODELS, TOKENIZERS, check_tracked
from stages.errors import UserError


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (MODELS, TOKENIZERS, Path("elsewhere/gpt2")):
        folder.mkdir(parents=True)
    Path("elsewhere/gpt2/tokenizer.json").write_text("{}")


def test_a_link_to_a_folder_is_refused_as_dvc_does_not_follow_it() -> None:
    """DVC's hash of pretrained/models stays the same when the folder behind the link changes."""
    for folder in (MODELS, TOKENIZERS):
        (folder / "gpt2").symlink_to(Path("elsewhere/gpt2").resolve())
    with pytest.raises(
        UserError, match=r"train\.start_from: pretrained/models/gpt2: a link to a folder.*&& cp -r /.*/gpt2"
    ):
        check_tracked(MODELS / "gpt2", MODELS, "train.start_from")
    with pytest.raises(UserError, match=r"vocabulary\.file: pretrained/tokenizers/gpt2: a link to a folder"):
        check_tracked(TOKENIZERS / "gpt2/tokenizer.json", TOKENIZERS, "vocabulary.file")


def test_a_link_to_a_file_is_fine_as_dvc_reads_it() -> None:
    (TOKENIZERS / "tokenizer.json").symlink_to(Path("elsewhere/gpt2/tokenizer.json").resolve())
    check_tracked(TOKENIZERS / "tokenizer.json", TOKENIZERS, "vocabulary.file")
    (MODELS / "gpt2").mkdir()
    check_tracked(MODELS / "gpt2", MODELS, "train.start_from")


@pytest.mark.parametrize(
    "path", ["elsewhere/gpt2", "/etc", "pretrained/models", "pretrained/models/../../elsewhere/gpt2", ".."]
)
def test_what_is_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="allowed: a folder in pretrained/models/"):
        check_tracked(Path(path), MODELS, "train.start_from")


def test_the_fix_can_be_typed_whatever_the_path_is_called() -> None:
    with pytest.raises(UserError, match=r"put it there: cp -r '/tmp/my models/\$\(x\)' pretrained/models/$"):
        check_tracked(Path("/tmp/my models/$(x)"), MODELS, "train.start_from")
