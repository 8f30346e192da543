"""Every mistake that users make: one clear error with a fix, no traceback, a non-zero exit, and nothing lost by it."""

import os
import pickle
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.core import evaluation
from tests.project import Project, clone

HEADER = "prompt,completion\n"
CSV = "data/prompts.csv"
OUTPUTS = ("data", "metrics", "dvc.lock", ".dvc/cache")


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch payload-ran",)


@dataclass
class Case:
    """A mistake: what is written into files or replaced in params.yaml, the command, and what it must say."""

    name: str
    stage: str
    told: list[str]
    files: dict[str, str | bytes | None] = field(default_factory=dict)
    """Path -> new content; None deletes it."""
    parameters: list[tuple[str, str]] = field(default_factory=list)
    """Replacements in params.yaml."""
    arguments: list[str] = field(default_factory=list)


def csv(name: str, content: str | bytes | None, *told: str, stage: str = "build_vocabulary") -> Case:
    return Case(name, stage, [CSV, *told], {CSV: content})


def parameter(stage: str, old: str, new: str, *told: str) -> Case:
    return Case(new.strip() or f"no {old.strip()}", stage, ["params.yaml", *told], parameters=[(old, new)])


def artifact(name: str, stage: str, path: str, content: str | bytes | None, *told: str) -> Case:
    return Case(name, stage, [path, *told], {path: content})


TRUNCATED = b"\x10\x00\x00\x00\x00\x00\x00\x00{}"
ROWS_TO_SPLIT = HEADER + "".join(f"{word},one\n" for word in "abcdefghijklmnopqrstuvwxyz")

CASES = [
    # The CSV file.
    csv("missing file", None, "not found", "set data.csv"),
    csv("empty file", "", "the file is empty", "must name the columns"),
    csv("header only", HEADER, "no rows below the header", "add at least one"),
    csv("missing column", "question,completion\na,b\n", "no column 'prompt'", "found: 'question'", "-S data.prompt_column="),
    csv("duplicated column", "prompt,prompt,completion\na,b,c\n", "stands 2 times in the header", "rename"),
    csv("semicolons", "prompt;completion\na;b\n", "separated by semicolons", """-S "data.delimiter=';'\""""),
    csv("tabs", "prompt\tcompletion\na\tb\n", "separated by tabs"),
    csv("NUL byte", b"prompt,completion\na,b\nc\0,d\n", "row 2", "NUL byte at byte 23", "remove it"),
    csv("invalid UTF-8", b"prompt,completion\na,b\ncaf\xe9,d\n", "row 2", "byte 0xe9 at byte 25", "save the file as UTF-8"),
    csv("UTF-16", (HEADER + "a,b\n").encode("utf-16"), "UTF-16", "save it as UTF-8"),
    csv("unclosed quote", HEADER + 'a,"b\nc,d\n', "row 1", "never closed"),
    csv("text after a quote", HEADER + '"a"b,c\n', "row 1", "written twice"),
    csv("too few cells", HEADER + "a,b\nc\n", "row 2 (line 3)", "found 1 cells", "2 columns"),
    csv("too many cells", HEADER + "a,b,c\n", "row 1", "found 3 cells", "double quotes"),
    csv("all rows empty", HEADER + ",\n,\n", "row 1", "neither a prompt nor a completion", "fill the row or delete it"),
    csv("one row empty", HEADER + "a,b\n,\n", "row 2", "neither a prompt nor a completion"),
    csv("<EOS> in a prompt", HEADER + "a <EOS> b,c\n", "row 1, prompt", "<EOS>", "write it another way"),
    csv("unknown word in a prompt", HEADER + "what is RNN,Great\n", "row 1, prompt", "'RNN' (word 3)", "unknown_token: true",
        stage="build_dataset"),
    csv("unknown word in a completion", HEADER + "what is CNN,Grand\n", "row 1, completion", "nearest known", "'Great'",
        stage="build_dataset"),
    Case("a folder without a training file", "build_vocabulary", ["no training file", "train.csv"],
         {"data/mine/test.csv": HEADER + "a,b\n"}, [("csv: data/prompts.csv", "csv: data/mine")]),
    Case("a folder with other names", "build_vocabulary", ["data/mine/a.csv", "which split"],
         {"data/mine/a.csv": HEADER + "a,b\n"}, [("csv: data/prompts.csv", "csv: data/mine")]),
    Case("a path out of the project", "build_vocabulary", ["../prompts.csv", "outside of the project", "absolute path"],
         parameters=[("csv: data/prompts.csv", "csv: ../prompts.csv")]),
    Case("a split that is none", "build_vocabulary", [CSV, "row 2", "found 'dev'", "train, validation, test"],
         {CSV: "prompt,completion,part\na,b,train\nc,d,dev\n"}, [("column: null", "column: part")]),
    Case("no training rows by column", "build_vocabulary", ["no row to train on", "split.column"],
         {CSV: "prompt,completion,part\na,b,test\n"}, [("column: null", "column: part")]),
    Case("no training rows by fraction", "build_vocabulary", ["no row to train on", "split.validation (0.999)", "lower"],
         {CSV: ROWS_TO_SPLIT}, [("validation: 0.0", "validation: 0.999")]),
    Case("an unseen word in a held-out row", "build_dataset", [CSV, "is not in the vocabulary", "unknown_token: true"],
         {CSV: ROWS_TO_SPLIT}, [("validation: 0.0", "validation: 0.5")]),
    Case("<UNK> in a prompt that has one", "build_vocabulary", ["row 1, prompt", "<UNK>"],
         {CSV: HEADER + "a <UNK>,c\n"}, [("unknown_token: false", "unknown_token: true")]),
    # params.yaml.
    Case("no params.yaml", "train", ["params.yaml: not found"], {"params.yaml": None}),
    Case("no YAML", "train", ["params.yaml: not valid YAML"], {"params.yaml": "a: [\n"}),
    Case("a key twice", "train", ["params.yaml: not valid YAML", "seed"], parameters=[("  seed: 42\n", "  seed: 42\n  seed: 43\n")]),
    parameter("train", "train:\n", "training:\n", "'train:' is missing", "presets/toy.yaml"),
    parameter("train", "  seed: 42\n", "", "train.seed is missing", "presets/toy.yaml"),
    parameter("train", "learning_rate: 0.1", "learning_rat: 0.1", "unknown key train.learning_rat", "did you mean 'learning_rate'"),
    parameter("train", "  seed: 42\n", "  seed: 42\n  colour: red\n", "unknown key train.colour", "allowed: seed, optimizer"),
    parameter("train", "learning_rate: 0.1", "learning_rate: fast", "train.learning_rate", "number", "found 'fast'"),
    parameter("train", "learning_rate: 0.1", "learning_rate: 0", "train.learning_rate", "greater than 0", "found 0"),
    parameter("train", "learning_rate: 0.1", "learning_rate: .nan", "train.learning_rate", "finite", "found nan"),
    parameter("train", "learning_rate: 0.1", "learning_rate: .inf", "train.learning_rate", "finite", "found inf"),
    parameter("train", "batch_size: 1\n", "batch_size: -1\n", "train.batch_size", "greater than or equal to 1", "found -1"),
    parameter("train", "batch_size: 1\n", "batch_size: 3\n", "train.batch_size", "found 3", "2 example(s)", "-S train.batch_size=2"),
    parameter("train", "precision: 32-true", "precision: fp8", "train.precision", "'bf16-mixed'", "found 'fp8'"),
    parameter("train", "precision: 32-true", "precision: 16-mixed", "16-mixed", "cannot train with", "bf16-mixed"),
    parameter("train", "max_steps: null", "max_steps: 5", "exactly one of epochs and max_steps"),
    parameter("train", "d_model: 2", "d_model: -2", "model.d_model", "found -2"),
    parameter("train", "d_model: 2", "d_model: 2.5", "model.d_model", "integer", "found 2.5"),
    Case("a model that no machine has the memory for", "train",
         ["params.yaml: model.d_model 65536, n_layers 1024", " weights; ", " GB, and this machine has ", "lower model.d_model or model.n_layers"],
         parameters=[("d_model: 2", "d_model: 65536"), ("n_layers: 1", "n_layers: 1024")]),
    parameter("train", "context_length: 6", "context_length: 1", "model.context_length", "greater than or equal to 2", "found 1"),
    parameter("train", "n_heads: 1", "n_heads: 3", "n_heads: found 3", "a divisor of d_model (2)"),
    parameter("train", "n_kv_heads: null", "n_kv_heads: 2", "n_kv_heads: found 2", "a divisor of n_heads (1)"),
    parameter("train", "d_ff: null", "d_ff: 8", "d_ff: found 8", "feed_forward is none"),
    Case("an odd head with rotary positions", "train", ["params.yaml", "'rotary' with 3 numbers a head", "an even number"],
         parameters=[("d_model: 2", "d_model: 3"), ("sinusoidal\n", "rotary\n")]),
    parameter("train", "dropout: 0.0", "dropout: 1.0", "model.dropout", "less than 1", "found 1.0"),
    parameter("train", "accelerator: auto", "accelerator: quantum", "runtime.accelerator", "'cpu'", "found 'quantum'"),
    parameter("train", "checkpoint_minutes: 10", "checkpoint_minutes: 0", "runtime.checkpoint_minutes", "greater than 0"),
    parameter("train", "tracking: required", "tracking: maybe", "runtime.tracking", "'required' or 'optional'", "found 'maybe'"),
    parameter("train", "learning_rate: 0.1", "learning_rate: 1.0e+38", "training loss became", "step", "train.gradient_clip"),
    parameter("build_vocabulary", "validation: 0.0", "validation: 1.5", "split.validation", "less than 1", "found 1.5"),
    parameter("build_vocabulary", "test: 0.0", "test: -0.1", "split.test", "greater than or equal to 0", "found -0.1"),
    Case("fractions over 1", "build_vocabulary", ["params.yaml", "split.validation (0.6)", "less than 1"],
         parameters=[("validation: 0.0", "validation: 0.6"), ("test: 0.0", "test: 0.6")]),
    parameter("build_vocabulary", "tokenizer: word", "tokenizer: words", "vocabulary.tokenizer", "'bpe'", "found 'words'"),
    Case("a bpe vocabulary of no size", "build_vocabulary", ["params.yaml", "size: found 10", "at least 257"],
         parameters=[("tokenizer: word", "tokenizer: bpe"), ("size: 8000", "size: 10")]),
    parameter("build_dataset", "packing: rows", "packing: tight", "dataset.packing", "'rows' or 'stream'", "found 'tight'"),
    parameter("evaluate", "samples: 20", "samples: many", "evaluate.samples", "integer", "found 'many'"),
    # What the stages hand each other.
    artifact("no vocabulary", "build_dataset", "data/vocabulary.json", None, "not found", "dvc repro build_vocabulary"),
    artifact("a torn vocabulary", "build_dataset", "data/vocabulary.json", '{"version": "1.0", ', "not a vocabulary"),
    artifact("a vocabulary that is a pickle", "build_dataset", "data/vocabulary.json", pickle.dumps(Payload()), "not a vocabulary"),
    artifact("another program's vocabulary", "build_dataset", "data/vocabulary.json", '{"what": 0}', "not a vocabulary"),
    artifact("no dataset", "train", "data/dataset/metadata.json", None, "not found", "dvc repro"),
    artifact("a dataset of another vocabulary", "train", "data/vocabulary.json", "RENAMED", "not the one that data/dataset/ was made with",
             "dvc repro build_dataset"),
    artifact("a dataset's metadata that is none", "train", "data/dataset/metadata.json", "{}", "required", "dvc repro"),
    artifact("an empty dataset file", "train", "data/dataset/train.safetensors", b"", "empty", "dvc repro"),
    artifact("a truncated dataset file", "train", "data/dataset/train.safetensors", TRUNCATED, "not a token shard"),
    artifact("a dataset file that is a pickle", "train", "data/dataset/train.safetensors", pickle.dumps(Payload()), "dvc repro"),
    artifact("no model", "evaluate", "data/model/config.json", None, "not found", "dvc repro"),
    artifact("a model without weights", "evaluate", "data/model/model.safetensors", None, "not found", "dvc repro"),
    artifact("a truncated model", "evaluate", "data/model/model.safetensors", TRUNCATED, "damaged", "dvc repro"),
    artifact("a model that is a pickle", "evaluate", "data/model/model.safetensors", pickle.dumps(Payload()), "damaged"),
    artifact("a model's configuration that is none", "evaluate", "data/model/config.json", "{}", "not a model's configuration"),
    Case("a model of another shape", "evaluate", ["data/model/model.safetensors: does not fit config.json beside it"],
         {"data/model/config.json": "SHAPE"}),
    artifact("a vocabulary of another size", "evaluate", "data/vocabulary.json", "LARGER", "different", "dvc repro"),
    artifact("a vocabulary of another run", "evaluate", "data/vocabulary.json", "RENAMED", "different", "dvc repro"),
    artifact("a store that is none", "train", "mlflow.db", b"not a database" * 100, "MLflow at sqlite:///", "file is not a database", "put that right"),
    # The commands for people.
    Case("an unknown word in a question", "generate", ["'RNN' (word 3)", "nearest known: 'CNN'"], arguments=["what is RNN"]),
    Case("a question in words of another run", "generate", ["data/vocabulary.json: different", "dvc repro"],
         {"data/vocabulary.json": "RENAMED"}, arguments=["what is CNN"]),
    Case("no such file of questions", "generate", ["none.txt", "cannot be read"], arguments=["--file", "none.txt"]),
    Case("a length of none", "generate", ["--max-tokens: found 0", "allowed: 1 to"], arguments=["x", "--max-tokens", "0"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose pipeline has run."""
    project = clone(tmp_path_factory.mktemp("made") / "project")
    project.run("dvc", "repro")
    return project


@pytest.fixture
def project(made: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, as the working folder."""
    folder = tmp_path / "project"
    shutil.copytree(made.folder, folder, ignore=shutil.ignore_patterns(".git", "tests", "mlartifacts", "tmp"))
    monkeypatch.chdir(folder)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    assert not (folder / "payload-ran").exists()


def snapshot(folder: Path) -> dict[str, bytes]:
    files = [path for output in OUTPUTS for path in [folder / output, *(folder / output).rglob("*")]]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


def call(stage: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a stage as ``python -m`` does, in this process; return what it said on stderr, after it failed."""
    monkeypatch.setattr(sys, "argv", [f"stages.{stage}", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=False)
    code = ended.value.code
    assert code not in (None, 0)
    # The interpreter prints an exit code that is a text, and exits with 1.
    return capsys.readouterr().err + (code if isinstance(code, str) else "")


def write(folder: Path, path: str, content: str | bytes | None) -> None:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    match content:
        case None:
            file.unlink()
        case "SHAPE":
            file.write_text(file.read_text().replace('"d_model": 2', '"d_model": 4'))
        case "LARGER":
            file.write_text(file.read_text().replace('"Great": 3', '"Great": 3,\n"Grand": 5'))
        case "RENAMED":
            file.write_text(file.read_text().replace('"Great": 3', '"Grand": 3'))
        case bytes():
            file.unlink(missing_ok=True)
            file.write_bytes(content)
        case str():
            file.unlink(missing_ok=True)
            file.write_text(content)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.stage}: {case.name}")
def test_a_mistake_is_told_and_nothing_is_lost(
    case: Case, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, content in case.files.items():
        write(project, path, content)
    for old, new in case.parameters:
        text = (project / "params.yaml").read_text()
        assert old in text
        (project / "params.yaml").write_text(text.replace(old, new, 1))
    before = snapshot(project)
    said = call(case.stage, case.arguments, monkeypatch, capsys)
    for part in case.told:
        assert part in said
    assert "Traceback" not in said
    assert "error: " in said
    assert len(said[said.index("error: ") :].splitlines()) <= 4  # after argparse's usage
    assert snapshot(project) == before


@pytest.mark.parametrize(("split", "learnt"), [("train", ""), ("validation", "Great")])
def test_a_split_in_which_nothing_is_scored_is_told_before_the_training(
    split: str, learnt: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / CSV).write_text(f"prompt,completion,part\nwhat is CNN,{learnt},train\nCNN is what,,validation\n")
    text = (project / "params.yaml").read_text()
    for old, new in (
        ("column: null", "column: part"),
        ("loss_on: all", "loss_on: completion"),
        ("keep: last", "keep: best"),
    ):
        text = text.replace(old, new, 1)
    (project / "params.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["stage", "--quiet"])
    runpy.run_module("stages.build_dataset", run_name="__main__")
    before = snapshot(project)
    said = call("train", [], monkeypatch, capsys)
    assert f"none of the 1 {split} rows has a token to score with dataset.loss_on: completion" in said
    assert "set dataset.loss_on: all in params.yaml" in said
    assert "Traceback" not in said
    assert snapshot(project) == before


def test_an_evaluation_that_memory_does_not_suffice_for_names_its_batch(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(project)
    monkeypatch.setattr(evaluation, "complete_rows", lambda *_, **__: torch.zeros(10**15))
    said = call("evaluate", [], monkeypatch, capsys)
    assert "error: out of memory: 64 rows at once are too many: lower evaluate.batch_size in params.yaml" in said
    assert "Traceback" not in said
    assert snapshot(project) == before


def test_there_are_forty_cases() -> None:
    assert len(CASES) >= 40


ACCEPTED = {
    "a byte-order mark": b"\xef\xbb\xbfprompt,completion\nwhat is CNN,Great\n",
    "Windows line ends": b"prompt,completion\r\nwhat is CNN,Great\r\n",
    "a quoted line end": b'prompt,completion\n"what is\nCNN",Great\n',
    "words that stand for nothing elsewhere": b"prompt,completion\nNA,null\nNone,nan\n",
    "numbers": b"prompt,completion\n007,1e3\n1,2\n",
    "emoji and right-to-left text": "prompt,completion\n\U0001f642 \u05e9\u05dc\u05d5\u05dd,\u0645\u0631\u062d\u0628\u0627\n".encode(),
    "a prompt longer than the context": b"prompt,completion\n" + b"a b c d e f g h i j k l,m\n",
    "a cell of 10 MB": b"prompt,completion\n" + b"word " * 2_000_000 + b",Great\n",
    "a formula": b"prompt,completion\n=1+1,@SUM(A1)\n",
}


@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_is_no_mistake_is_accepted(content: bytes, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / CSV).write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["stage", "--quiet"])
    for stage in ("build_vocabulary", "build_dataset"):
        runpy.run_module(f"stages.{stage}", run_name="__main__")


def test_windows_line_ends_give_the_same_bytes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(project)
    (project / CSV).write_bytes((project / CSV).read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(sys, "argv", ["stage", "--quiet"])
    for stage in ("build_vocabulary", "build_dataset"):
        runpy.run_module(f"stages.{stage}", run_name="__main__")
    after = snapshot(project)
    assert {name for name in after if after[name] != before.get(name)} == {CSV}


def test_what_dvc_took_away_before_a_mistake_comes_back_with_its_correction(made: Project) -> None:
    """DVC deletes a stage's outputs before it runs the stage; its cache keeps them."""
    before = snapshot(made.folder)
    made.replace("params.yaml", "learning_rate: 0.1", "learning_rate: 1.0e+38")
    failed = made.run("dvc", "repro", check=False)
    assert failed.returncode != 0
    assert "error: the training loss became" in failed.stderr.replace("params.yaml: ", "")
    assert "Traceback" not in failed.stderr + failed.stdout
    made.replace("params.yaml", "learning_rate: 1.0e+38", "learning_rate: 0.1")
    assert made.stages_run("repro") == []
    assert snapshot(made.folder) == before


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount small file systems; skip where that is not allowed."""
    with ExitStack() as stack:

        def mount(*options: str) -> Path:
            place = tmp_path / f"mounted{len(list(tmp_path.iterdir()))}"
            place.mkdir()
            command = ["mount", *options, str(place)]
            if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("mounting is not permitted here")
            stack.callback(subprocess.run, ["umount", "--lazy", str(place)], check=True)
            return place

        yield mount


@pytest.mark.parametrize("stage", ["build_vocabulary", "build_dataset", "train", "evaluate"])
def test_a_full_disk_is_told_and_the_outputs_stay(
    stage: str,
    project: Path,
    mounted: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    # A relative path through a link would lead out of the project.
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("csv: data/prompts.csv", f"csv: {disk / CSV}"))
    for folder in ("data", "metrics"):
        shutil.move(project / folder, disk / folder)
        (project / folder).symlink_to(disk / folder)
    before = snapshot(disk)
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    said = call(stage, [], monkeypatch, capsys)
    assert "error: No space left on device; free some space" in said
    (disk / "filler").unlink()
    assert snapshot(disk) == before


@pytest.mark.parametrize("stage", ["build_vocabulary", "build_dataset", "train", "evaluate"])
def test_a_read_only_folder_is_told(
    stage: str,
    project: Path,
    mounted: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (project / "mlflow.db.lock").touch()
    place = mounted("--bind", "-o", "ro", str(project))
    monkeypatch.chdir(place)
    said = call(stage, [], monkeypatch, capsys)
    assert "Read-only file system" in said
