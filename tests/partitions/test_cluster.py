"""The data prepared on Dask has the same bytes as prepared in one process, and a fault is told in the same words."""

import hashlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.artifacts.prompts_table import DataParams, find_sources
from stages.core.split import SplitParams
from stages.partitions import cluster, parts
from tests.project import ROOT

pytest.importorskip("distributed")

PARAMETERS = """
data: {csv: CSV, files: null, prompt_column: prompt, completion_column: completion, delimiter: null}
split: {validation: 0.2, test: 0.2, seed: 0, column: null}
vocabulary: {tokenizer: TOKENIZER, size: 270, unknown_token: true}
dataset: {packing: stream, loss_on: all, stride: null}
model: {context_length: 6}
runtime: {dask: DASK}
"""
STAGES = ("build_vocabulary", "build_dataset")
CELL = st.text(st.sampled_from('ab",; \n\u00e9'), max_size=12)
WRITERS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    ".parquet": lambda frame, path: frame.to_parquet(path, row_group_size=3),
}


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a scheduler with a worker of two threads in this process."""
    from distributed import LocalCluster  # noqa: PLC0415

    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
    ) as of_threads:
        yield of_threads.scheduler_address


@contextmanager
def working_in(folder: str | Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def prepare(csv: str, tokenizer: str, dask: str) -> str:
    """Run both stages in this process; return the hash of all that they wrote."""
    parameters = PARAMETERS.replace("CSV", csv).replace("TOKENIZER", tokenizer).replace("DASK", dask)
    Path("params.yaml").write_text(parameters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stage", "--quiet"])
        for stage in STAGES:
            runpy.run_module(f"stages.{stage}", run_name="__main__")
    return hash_of_outputs()


def hash_of_outputs() -> str:
    written = [
        Path("data/vocabulary.json"),
        *sorted(Path("data/dataset").iterdir()),
        *sorted(Path("metrics").rglob("*.*")),
    ]
    return hashlib.md5(b"".join(path.name.encode() + path.read_bytes() for path in written)).hexdigest()


@settings(max_examples=8)
@given(
    rows=st.lists(st.tuples(CELL, CELL).filter(lambda row: any(cell.strip() for cell in row)), min_size=4, max_size=20),
    ending=st.sampled_from(list(WRITERS)),
    files=st.integers(1, 2),
    part_bytes=st.integers(5, 100),
)
@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
def test_the_same_bytes(
    scheduler: str, tokenizer: str, rows: list[tuple[str, str]], ending: str, files: int, part_bytes: int
) -> None:
    training = [("a word to train on", "b"), ("A  word to train on", "b")]
    with TemporaryDirectory() as folder, working_in(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", part_bytes)
        Path("data/table").mkdir(parents=True)
        frame = pd.DataFrame(training + rows, columns=["prompt", "completion"])
        for number in range(files):
            WRITERS[ending](frame[number::files], Path(f"data/table/part-{number}{ending}"))
        try:
            on_one_machine = prepare("data/table", tokenizer, "null")
        except SystemExit as error:  # all held-out rows are copies, or unknown
            with pytest.raises(SystemExit, match=str(error)[:20]):
                prepare("data/table", tokenizer, scheduler)
        else:
            assert prepare("data/table", tokenizer, scheduler) == on_one_machine


@pytest.mark.parametrize(
    "faulty",
    ['fine,x\n"open,x\n', "fine,x\na <EOS> b,x\nc\n", "one\ntwo,2\n", "", "a,b\n\0,c\n"],
    ids=["quote", "word before cells", "cells", "no rows", "NUL"],
)
def test_a_fault_is_told_as_on_one_machine(
    scheduler: str, faulty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "PART_BYTES", 20)
    Path("data").mkdir()
    Path("data/p.csv").write_text("prompt,completion\n" + ("good,row\n" * 20 if faulty else "") + faulty)
    told = []
    for dask in ("null", scheduler):
        with pytest.raises(SystemExit) as ended:
            prepare("data/p.csv", "word", dask)
        told.append(ended.value.code)
    assert told[0] == told[1]
    assert str(told[0]).startswith("error: data/p.csv")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_a_wrong_address_is_named_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "_SECONDS", 1)
    Path("data").mkdir()
    Path("data/p.csv").write_text("prompt,completion\na,b\n")
    began = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        prepare("data/p.csv", "word", address := f"tcp://127.0.0.1:{free_port()}")
    assert str(ended.value.code).startswith(f"error: params.yaml: runtime.dask: no Dask scheduler answers at {address}")
    assert "\n" not in str(ended.value.code)
    assert time.monotonic() - began < 10


def test_a_worker_with_other_code_or_without_the_files_is_refused(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/p.csv").write_text("prompt,completion\na,b\n")
    here = cluster.surroundings()
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(cluster, "surroundings", iter([here | {"pyarrow": "1.0"}, here, here]).__next__)
        prepare("data/p.csv", "word", scheduler)
    assert f"a worker has pyarrow {here['pyarrow']}, not 1.0; start it anew" in str(ended.value.code)
    part = parts.SourcePart(find_sources(_data(), _split())[0], None)
    with pytest.raises(cluster.WorkerError, match=r"does not see .*p.csv as it is here"):
        cluster.make_part(list, part, 5, _data(), here)


def _data() -> DataParams:
    return DataParams(
        csv="data/p.csv", files=None, prompt_column="prompt", completion_column="completion", delimiter=None
    )


def _split() -> SplitParams:
    return SplitParams(validation=0.0, test=0.0, seed=0, column=None)


@pytest.mark.slow
def test_a_scheduler_and_two_workers_of_which_one_is_killed(tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    (tmp_path / "data").mkdir()
    rows = "".join(f'"what is {n} of\n{n % 977}, ""then""",{"abc"[n % 3]} {n % 31}\n' for n in range(200_000))
    (tmp_path / "data/p.csv").write_text("prompt,completion\n" + rows)

    def start(module: str, *arguments: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *arguments, "--no-dashboard"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    scheduler = start("dask_scheduler", "--host", "127.0.0.1", "--port", port)
    workers = [start("dask_worker", address, "--no-nanny", "--nthreads", "1") for _ in range(2)]
    killed = []

    def track_and_kill(batches: list[object], *, name: str, quiet: bool) -> Iterator[object]:
        assert len(batches) > 6
        for number, batch in enumerate(batches):
            if number == 3 and "build_dataset" in name:
                assert "2 Dask workers" in name
                workers[0].kill()
                killed.append(workers[0].wait())
            yield batch

    try:
        with working_in(tmp_path), pytest.MonkeyPatch.context() as patch:
            alone = prepare("data/p.csv", "bpe", "null")
            patch.setattr(parts, "PART_BYTES", 1 << 20)
            patch.setattr(cluster, "track", track_and_kill)
            patch.setattr(cluster, "_SECONDS", 60)  # of a machine that is busy with other tests
            wait_for_workers(address, 2)
            assert prepare("data/p.csv", "bpe", address) == alone
            assert killed == [-signal.SIGKILL]
    finally:
        for process in (scheduler, *workers):
            process.kill()
            process.wait()


def wait_for_workers(address: str, count: int) -> None:
    from distributed import Client  # noqa: PLC0415

    with Client(address, timeout=120) as client:
        client.wait_for_workers(count, timeout=120)
