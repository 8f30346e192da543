import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from stages.artifacts.dataset import read_metadata
from stages.artifacts.token_shards import open_shard
from stages.artifacts.vocabulary_json import read_vocabulary
from stages.core.split import SPLITS

REPOSITORY = Path(__file__).parents[1]
PARAMETERS = """
data: {csv: data/prompts.csv, files: null, prompt_column: prompt, completion_column: completion, delimiter: null}
split: {validation: 0.0, test: 0.0, seed: 0, column: null}
vocabulary: {tokenizer: word, size: 300, unknown_token: false}
dataset: {packing: rows, loss_on: all, stride: null}
runtime: {dask: null}
model: {context_length: 6}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prompts.csv").write_text("prompt,completion\nwhat is CNN,Great\nCNN is what,Great\n")
    (tmp_path / "params.yaml").write_text(PARAMETERS)
    return tmp_path


def run(project: Path, stage: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def build(project: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    assert run(project, "build_vocabulary", **environment).returncode == 0
    return run(project, "build_dataset", **environment)


def test_the_seeds_rows(project: Path) -> None:
    done = build(project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dataset: train 2 rows (12 tokens), validation 0 rows (0 tokens), test 0 rows")
    train = load_file(project / "data/dataset/train.safetensors")
    assert train["token_ids"].tolist() == [0, 1, 2, 4, 3, 4, 2, 1, 0, 4, 3, 4]
    assert train["row_offsets"].tolist() == [0, 6, 12]
    assert train["completion_starts"].tolist() == [4, 10]
    assert load_file(project / "data/dataset/test.safetensors")["token_ids"].tolist() == []
    metadata = read_metadata(project / "data/dataset")
    assert (metadata.vocabulary_size, metadata.eos_id) == (5, 4)
    counts = {"rows": 2, "tokens": 12, "scored_tokens": 10, "scored_bytes": 25}
    assert metadata.splits["train"].model_dump(exclude={"sha256"}) == counts
    assert {path.name for path in (project / "data/dataset").iterdir()} == {
        "metadata.json",
        *(f"{split}.safetensors" for split in SPLITS),
    }


@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
def test_every_row_is_in_one_split_and_the_bytes_do_not_depend_on_threads(project: Path, tokenizer: str) -> None:
    prompts = [f"prompt {n % 7} é {'long ' * (n % 9)}end" for n in range(400)]
    lines = "".join(f"{prompt},answer {n % 5}\n" for n, prompt in enumerate(prompts))
    (project / "data/prompts.csv").write_text(f"prompt,completion\n{lines}", encoding="utf-8")
    (project / "params.yaml").write_text(
        PARAMETERS.replace("tokenizer: word", f"tokenizer: {tokenizer}")
        .replace("validation: 0.0", "validation: 0.3")
        .replace("unknown_token: false", "unknown_token: true")
    )
    files = []
    for threads in ("1", "4"):
        done = build(project, RAYON_NUM_THREADS=threads, PYTHONHASHSEED=threads)
        assert done.returncode == 0, done.stderr
        files.append({path.name: path.read_bytes() for path in (project / "data").rglob("*.*") if path.is_file()})
    assert files[0] == files[1]
    vocabulary = read_vocabulary(project / "data/vocabulary.json")
    texts = []
    for split in SPLITS:
        shard = open_shard(project / f"data/dataset/{split}.safetensors")
        for begin, completion, end in zip(
            shard.row_offsets, shard.completion_starts, shard.row_offsets[1:], strict=False
        ):
            assert shard.token_ids[completion - 1] == shard.token_ids[end - 1] == vocabulary.eos_id
            texts.append(vocabulary.decode(shard.token_ids[begin:completion].tolist()))
    assert sorted(texts) == sorted(prompts)


def test_an_unknown_word_is_named_and_the_dataset_stays_as_it_was(project: Path) -> None:
    assert build(project).returncode == 0
    before = {path: path.read_bytes() for path in (project / "data/dataset").iterdir()}
    with (project / "data/prompts.csv").open("a") as file:
        file.write("what is RNN,Great\n")
    done = run(project, "build_dataset")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: data/prompts.csv, row 3, prompt: the word 'RNN' (word 3) is not in the vocabulary"
    )
    assert "nearest known: 'CNN'" in done.stderr
    assert {path: path.read_bytes() for path in (project / "data/dataset").iterdir()} == before


def test_a_missing_vocabulary_is_named(project: Path) -> None:
    done = run(project, "build_dataset")
    assert done.returncode == 1
    assert done.stderr.startswith("error: data/vocabulary.json: not found; build it with: dvc repro build_vocabulary")


def test_what_came_in_is_written_and_said(project: Path) -> None:
    rows = "".join(f"what is {n} of all the long things,Great\n" for n in "abcdef")
    (project / "data/mine").mkdir()
    (project / "data/mine/train.csv").write_text("prompt,completion\n" + rows)
    (project / "data/mine/test.csv").write_text(
        "prompt,completion\nWHAT is  a of all the long things,great\nwhat is f,Great\n"
    )
    parameters = PARAMETERS.replace("data/prompts.csv", "data/mine").replace(
        "unknown_token: false", "unknown_token: true"
    )
    (project / "params.yaml").write_text(parameters.replace("validation: 0.0", "validation: 0.3"))
    done = build(project)
    assert done.returncode == 0, done.stderr
    figures = json.loads((project / "metrics/data.json").read_text())
    train, drawn = (figures[split]["rows"] for split in ("train", "validation"))
    assert train + drawn == 6
    assert (project / "metrics/plots/rows_by_file.csv").read_text().splitlines() == [
        "file,split,rows",
        "test.csv,test,2",
        f"train.csv,train,{train}",
        f"train.csv,validation,{drawn}",
    ]
    assert figures["test"]["near_copies_of_train"] == 1
    said = done.stderr.splitlines()
    assert said[0].startswith(f"split.validation: 0.3 takes {drawn} of the 6 rows of the training files, although")
    assert said[1].startswith("7 of 8 rows are longer than model.context_length 6: their completions lose the prompt")
    assert "1 of 2 test rows are training rows too" in done.stderr
    assert "test tokens are <UNK>" in done.stderr
    lengths = (project / "metrics/plots/row_lengths.csv").read_text().splitlines()
    assert lengths[0] == "split,context_length,share_of_rows"
    assert {line.split(",")[0] for line in lengths[1:]} == {"train", "validation", "test"}


def test_a_test_file_of_training_rows_is_refused_and_the_dataset_stays_as_it_was(project: Path) -> None:
    assert build(project).returncode == 0
    before = {path: path.read_bytes() for path in (project / "data/dataset").iterdir()}
    (project / "data/mine").mkdir()
    for name in ("train", "test"):
        (project / f"data/mine/{name}.csv").write_bytes((project / "data/prompts.csv").read_bytes())
    (project / "params.yaml").write_text(PARAMETERS.replace("data/prompts.csv", "data/mine"))
    done = run(project, "build_dataset")
    assert done.returncode == 1
    assert done.stderr.startswith("error: data/mine/test.csv: all 2 test rows are training rows too")
    assert {path: path.read_bytes() for path in (project / "data/dataset").iterdir()} == before
