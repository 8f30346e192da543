import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PARAMETERS = """
data: {csv: data/prompts.csv, files: null, prompt_column: prompt, completion_column: completion, delimiter: null}
split: {validation: 0.0, test: 0.0, seed: 0, column: null}
vocabulary: {tokenizer: word, size: 300, unknown_token: false}
dataset: {packing: rows, loss_on: all, stride: null}
runtime: {dask: null}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prompts.csv").write_text("prompt,completion\nwhat is CNN,Great\nCNN is what,Great\n")
    (tmp_path / "params.yaml").write_text(PARAMETERS)
    return tmp_path


def build(project: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "stages.build_vocabulary", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_seeds_vocabulary(project: Path) -> None:
    done = build(project)
    assert done.stdout == "vocabulary: 5 tokens (word) from 2 training rows -> data/vocabulary.json\n"
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads((project / "data/vocabulary.json").read_text())
    assert written["model"]["vocab"] == {"what": 0, "is": 1, "CNN": 2, "Great": 3, "<EOS>": 4}
    assert build(project, "--quiet").stdout == ""


def test_held_out_rows_give_no_words(project: Path) -> None:
    (project / "data/prompts.csv").write_text("prompt,completion,part\nwhat is CNN,Great,train\nunseen,words,test\n")
    (project / "params.yaml").write_text(PARAMETERS.replace("column: null", "column: part"))
    assert "from 1 training rows" in build(project).stdout
    assert "unseen" not in (project / "data/vocabulary.json").read_text()


def test_a_mistake_is_told_in_one_line_with_its_row_and_leaves_what_was_there(project: Path) -> None:
    build(project)
    before = (project / "data/vocabulary.json").read_bytes()
    with (project / "data/prompts.csv").open("a") as file:
        file.write("fine,an <EOS> here\n")
    done = build(project)
    assert done.returncode == 1
    assert done.stderr.startswith("error: data/prompts.csv, row 3, completion: the word <EOS> has a meaning of its own")
    assert done.stderr.count("\n") == 1
    assert (project / "data/vocabulary.json").read_bytes() == before


@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
def test_a_mistake_in_the_csv_is_told_by_every_tokenizer(project: Path, tokenizer: str) -> None:
    (project / "params.yaml").write_text(PARAMETERS.replace("tokenizer: word", f"tokenizer: {tokenizer}"))
    with (project / "data/prompts.csv").open("a") as file:
        file.write("one,two,three\n")
    done = build(project)
    assert done.returncode == 1
    assert done.stderr.startswith("error: data/prompts.csv, row 3 (line 4): found 3 cells")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stage", ["build_vocabulary", "build_dataset"])
def test_the_stage_imports_no_more_than_it_needs(stage: str) -> None:
    listing = f"import sys, stages.{stage}; print(*{{name.split('.')[0] for name in sys.modules}})"
    imported = subprocess.run(
        [sys.executable, "-c", listing], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "lightning", "mlflow", "pandas", "safetensors", "transformers", "distributed"} & set(imported)


def test_a_pretrained_tokenizer_is_taken_with_its_ids(project: Path) -> None:
    folder = project / "pretrained/tokenizers"
    folder.mkdir(parents=True)
    build(project)
    ready = (project / "data/vocabulary.json").read_text().replace('"CNN": 2', '"RNN": 2')
    (folder / "mine.json").write_text(ready)
    name = PARAMETERS.replace("unknown_token: false", "unknown_token: false, file: pretrained/tokenizers/mine.json")
    (project / "params.yaml").write_text(name)
    done = build(project)
    assert done.stdout == "vocabulary: 5 tokens (word) of pretrained/tokenizers/mine.json -> data/vocabulary.json\n"
    assert (project / "data/vocabulary.json").read_text() == ready

    for old, new, message in (
        ("mine.json", "absent.json", "params.yaml: vocabulary.file: pretrained/tokenizers/absent.json: not found; put it there"),
        ("pretrained/tokenizers/mine.json", "mine.json", "put it there: cp mine.json pretrained/tokenizers/"),
        ("pretrained/tokenizers/mine.json", "pretrained/tokenizers/../../data/vocabulary.json", "allowed: a file in pretrained/tokenizers/"),
        ("tokenizer: word", "tokenizer: bpe", "vocabulary.tokenizer: found bpe, but pretrained/tokenizers/mine.json is of the kind word"),
        ("mine.json", "mine.json, eos_token: <END>", "no token <END>, which ends a text; name it as vocabulary.eos_token"),
        ("file: pretrained/tokenizers/mine.json", "eos_token: <END>", "eos_token: found '<END>'; allowed without a file: null"),
        ("mine.json", "broken.json", "broken.json: not a tokenizer.json of the tokenizers library"),
    ):  # fmt: skip
        (folder / "broken.json").write_text('{"model": 7}')
        (project / "params.yaml").write_text(name.replace(old, new))
        done = build(project)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
        assert (project / "data/vocabulary.json").read_text() == ready
