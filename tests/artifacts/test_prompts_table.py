import os
import shlex
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.artifacts import table_text
from stages.artifacts.prompts_table import DataParams, find_tables, read_prompts
from stages.core.frames import place, rows_of
from stages.core.split import SPLITS, Split, SplitParams, splits_of
from stages.errors import UserError

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"
NOTHING_HELD_OUT = SplitParams(validation=0.0, test=0.0, seed=0, column=None)
HALF_HELD_OUT = SplitParams(validation=0.3, test=0.2, seed=0, column=None)
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")) | st.sampled_from(
    ["NA", "null", "None", "nan", "007", "1.50", '"', '""', ",", "\n", " ", "TRUE", "#", "=1", "\ufeff"]
)


Quoting = Literal[0, 1, 2]
QUOTING: tuple[Quoting, ...] = get_args(Quoting)  # csv.QUOTE_MINIMAL, QUOTE_ALL, QUOTE_NONNUMERIC


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def data(
    path: Path | str,
    prompt: str = "prompt",
    completion: str | None = "completion",
    delimiter: str | None = None,
    files: str | None = None,
) -> DataParams:
    return DataParams(
        csv=str(path), prompt_column=prompt, completion_column=completion, delimiter=delimiter, files=files
    )


def rows(frames: Iterator[pa.Table]) -> list[tuple[str, str]]:
    """The text of a file's frames, whose rows must be numbered."""
    read = [row for frame in frames for row in frame.to_pylist()]
    assert [row["row"] for row in read] == list(range(1, len(read) + 1))
    return [(row["prompt"], row["completion"]) for row in read]


def splits(frames: Iterator[pa.Table]) -> dict[str, Split]:
    return {row["prompt"]: row["split"] for frame in frames for row in frame.to_pylist()}


def read_bytes(content: bytes, split: SplitParams = NOTHING_HELD_OUT) -> list[tuple[str, str]]:
    Path("prompts.csv").write_bytes(content)
    return rows(read_prompts(data("prompts.csv"), split))


@given(
    cells=st.lists(st.tuples(CELL, CELL).filter(any), min_size=1),
    quoting=st.sampled_from(QUOTING),
    line_end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
    block_bytes=st.sampled_from([1, 5, 10_000]),
)
def test_what_pandas_writes_comes_back_row_for_row(
    cells: list[tuple[str, str]], quoting: Quoting, line_end: str, encoding: str, block_bytes: int
) -> None:
    frame = pd.DataFrame(cells, columns=["prompt", "completion"], dtype=object)
    frame.to_csv("prompts.csv", index=False, quoting=quoting, lineterminator=line_end, encoding=encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_text, "_BLOCK_BYTES", block_bytes)
        assert rows(read_prompts(data("prompts.csv"), NOTHING_HELD_OUT)) == cells


def write_text(frame: pd.DataFrame, path: Path, compression: Literal["infer", "gzip", "zstd", "bz2", "xz"]) -> None:
    if ".jsonl" in path.name:
        frame.to_json(path, orient="records", lines=True, force_ascii=False, compression=compression)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",", compression=compression)


def write_as(frame: pd.DataFrame, ending: str, path: Path) -> None:
    """Write a table as pandas users do; zstd by Arrow, as pandas needs another package for it."""
    if ending == ".parquet":
        frame.to_parquet(path)
    elif ending.endswith(".zst"):
        plain = path.with_suffix("")
        write_text(frame, plain, "infer")
        with pa.output_stream(path, compression="zstd") as file:
            file.write(plain.read_bytes())
        plain.unlink()
    else:
        write_text(frame, path, "infer")


ENDINGS = [
    text + compression for text in (".csv", ".tsv", ".jsonl") for compression in ("", ".gz", ".zst", ".bz2", ".xz")
]


@settings(max_examples=30)
@given(
    cells=st.lists(st.tuples(CELL, CELL, st.integers(-(10**30), 10**30)).filter(lambda row: any(row[:2])), min_size=1),
    parts=st.integers(1, 3),
    block_bytes=st.sampled_from([1, 10_000]),
)
@pytest.mark.parametrize("ending", [*ENDINGS, ".parquet"])
def test_the_same_rows_in_any_format_and_in_several_parts_are_the_same(
    ending: str, cells: list[tuple[str, str, int]], parts: int, block_bytes: int
) -> None:
    frame = pd.DataFrame(cells, columns=["question", "answer", "id"]).astype({"question": "str", "answer": "str"})
    frame["id"] = frame["id"].astype(str)
    with TemporaryDirectory(dir=".") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_text, "_BLOCK_BYTES", block_bytes)
        edges = [len(frame) * part // parts for part in range(parts + 1)]
        for part, (begin, end) in enumerate(pairwise(edges)):
            if end > begin:
                write_as(frame[begin:end], ending, Path(folder, f"part-{part:02}{ending}"))
        table = pa.concat_tables(read_prompts(data(folder, "question", "answer"), NOTHING_HELD_OUT))
        assert list(zip(table["prompt"].to_pylist(), table["completion"].to_pylist(), strict=True)) == [
            (question, answer) for question, answer, _ in cells
        ]


@given(st.lists(CELL.filter(bool), min_size=1))
def test_one_column_that_pandas_writes_comes_back(cells: list[str]) -> None:
    pd.DataFrame({"text": cells}, dtype=object).to_csv("prompts.csv", index=False)
    read = rows(read_prompts(data("prompts.csv", "text", None), NOTHING_HELD_OUT))
    assert read == [(cell, "") for cell in cells]


@given(st.lists(CELL.filter(bool), min_size=5, unique=True), st.lists(CELL.filter(bool)))
def test_a_row_keeps_its_split_when_rows_are_added(prompts: list[str], more: list[str]) -> None:
    def split_by_prompt(all_prompts: list[str]) -> dict[str, Split]:
        frame = pd.DataFrame({"prompt": all_prompts, "completion": "x"}, dtype=object)
        # The first one goes to train whatever the draw, since a CSV with no row to train on is refused.
        pd.concat([pd.DataFrame({"prompt": ["prompt 0"], "completion": ["x"]}), frame]).to_csv("p.csv", index=False)
        return splits(read_prompts(data("p.csv"), HALF_HELD_OUT))

    before, after = split_by_prompt(prompts), split_by_prompt([*more, *prompts])
    assert before == {prompt: after[prompt] for prompt in before}


def test_windows_line_ends_give_the_same_text() -> None:
    text = 'prompt,completion\na,"two\nlines"\n"b\n\nc",d\n'
    windows = text.replace("\n", "\r\n")
    assert (
        read_bytes(b"\xef\xbb\xbf" + windows.encode())
        == read_bytes(text.encode())
        == [("a", "two\nlines"), ("b\n\nc", "d")]
    )


def test_a_carriage_return_within_quotes_is_kept() -> None:
    assert read_bytes(b'prompt,completion\n"a\rb",c\n') == [("a\rb", "c")]


def test_blank_lines_are_no_rows() -> None:
    assert read_bytes(b"\nprompt,completion\n\na,b\n\n\nc,d\n\n") == [("a", "b"), ("c", "d")]


def test_a_last_line_without_a_line_end_counts() -> None:
    assert read_bytes(b"prompt,completion\na,b\nc,d") == [("a", "b"), ("c", "d")]


def test_a_cell_of_ten_megabytes() -> None:
    cell = "word " * 2_000_000
    assert read_bytes(f'prompt,completion\n"{cell}",x\n'.encode()) == [(cell, "x")]


def test_other_columns_are_passed_over() -> None:
    assert read_bytes(b"id,completion,,prompt\n1,b,,a\n2,d,,c\n") == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"prompt,completion\n", "no rows below the header"),
        (b"text,label\na,b\n", r"no column 'prompt' .*found: 'text', 'label'.*-S data\.prompt_column=text"),
        (b"prompt,label\na,b\n", r"no column 'completion'.*-S data\.completion_column=label"),
        (
            b"prompt, completion\na, b\n",
            r"no column 'completion'.*white space around ' completion'; remove .* \"data\.completion_column=' completion'\"",
        ),
        (b"12,34\n5,6\n", r"found: '12', '34'; the first line seems to be a row of data; put a line above it"),
        (b"1.5\n2\n", r"found: '1\.5'; the first line seems to be a row of data"),
        (b"0,1\na,b\n", r"found: '0', '1'; name the right one, e\.g\. with -S \"data\.prompt_column='0'\""),
        (b"what is CNN,Great\n", r"; if these are a row of data, put a line above it that names the columns"),
        (b"prompt,completion,prompt\na,b,c\n", "'prompt' .*stands 2 times in the header"),
        (b"prompt;completion\na;b\n", "separated by semicolons"),
        (b"prompt\tcompletion\na\tb\n", "separated by tabs"),
        (b"prompt,completion\na,b\nc,d\0\n", r"row 2 \(line 3\): a NUL byte at byte 25 of"),
        (b"\xef\xbb\xbfprompt,completion\na,b\nc,\xe9t\xe9\n", r"row 2 \(line 3\): not UTF-8: byte 0xe9 at byte 27 of"),
        ("prompt,completion\na,b\n".encode("utf-16"), "the file is UTF-16"),
        (b'prompt,completion\na,b\n"c,d\ne,f\n', r"row 2 \(line 3\): a double quote is opened here and never closed"),
        (b'prompt,completion\na,b\n"c"x,d\n', r"row 2 \(line 3\): text after a closing double quote"),
        (b"prompt,completion\na,b\nc,d,e\n", r"row 2 \(line 3\): found 3 cells where the header names 2 columns"),
        (b'prompt,completion\n"a\n",b\nc\n', r"row 2 \(line 4\): found 1 cells where the header names 2 columns"),
        (b"prompt,completion\na,b\n,\n", r"row 2 \(line 3\): neither a prompt nor a completion"),
        (b'prompt,completion\n"",""\n,\n', r"row 1 \(line 2\): neither a prompt nor a completion"),
        (b"prompt,completion\ra,b\r", r"header \(line 1\): a carriage return that ends no line"),
    ],
)
def test_what_is_wrong_is_named(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=rf"^prompts\.csv.*{message}"):
        read_bytes(content)


def test_what_goes_on_and_on_is_not_read_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_text, "_LONGEST", 1000)
    with pytest.raises(UserError, match=r"row 1 .*a line of more than 1,000 bytes"):
        read_bytes(b"prompt,completion\n" + b"a" * 2000 + b",b\n")
    with pytest.raises(
        UserError, match=r"row 1 \(line 2\): a cell of more than 1,000 characters; is a double quote left"
    ):
        read_bytes(b'prompt,completion\n"a,b\n' + b"c,d\n" * 1000)


@given(size=st.integers(100, 950), before=st.integers(0, 20), quote=st.sampled_from(["", 'x"y,z\n']))
def test_rows_after_a_cell_that_is_nearly_the_longest_allowed(size: int, before: int, quote: str) -> None:
    cell = ("line\n" * size)[:size]
    rows_before, rows_after = "a,b\n" * before, "c,d\n" * 300
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_text, "_LONGEST", 1000)
        patch.setattr(table_text, "_BLOCK_BYTES", 64)
        read = read_bytes(f'prompt,completion\n{rows_before}{quote}"{cell}",x\n{rows_after}'.encode())
    odd = [('x"y', "z")] if quote else []
    assert read == [*[("a", "b")] * before, *odd, (cell, "x"), *[("c", "d")] * 300]


@pytest.mark.parametrize("path", ["../prompts.csv", "data/../../prompts.csv", ".."])
def test_a_relative_path_out_of_the_project_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"lies outside of the project"):
        rows(read_prompts(data(path), NOTHING_HELD_OUT))


def test_a_table_of_a_folder_that_is_a_link_out_of_the_project_is_refused(tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.csv"
    outside.write_text("prompt,completion\na,b\n")
    Path("data/mine").mkdir(parents=True)
    Path("data/mine/part-1.csv").symlink_to(outside)
    with pytest.raises(
        UserError, match=r"data\.csv: data/mine/part-1\.csv lies outside of the project \(.*-outside\.csv\)"
    ):
        rows(read_prompts(data("data/mine"), NOTHING_HELD_OUT))
    assert rows(read_prompts(data(str(tmp_path / "data/mine")), NOTHING_HELD_OUT)) == [("a", "b")]


def test_an_absolute_path_and_dots_within_the_project_are_fine(tmp_path: Path) -> None:
    (tmp_path / "..p.csv").write_text("prompt,completion\na,b\n")
    Path("data").mkdir()
    for path in ("..p.csv", "data/../..p.csv", str(tmp_path / "..p.csv")):
        assert rows(read_prompts(data(path), NOTHING_HELD_OUT)) == [("a", "b")]


def test_a_missing_file_is_named_with_what_is_there() -> None:
    Path("other.csv").touch()
    with pytest.raises(UserError, match=r"^prompts.csv: not found; tables there: other.csv; set data.csv"):
        rows(read_prompts(data("prompts.csv"), NOTHING_HELD_OUT))


@pytest.mark.parametrize("path", ["-", "/dev/stdin", "/dev/fd/63", "/dev/fd/N", "/proc/self/fd/N"])
def test_standard_input_is_refused_also_where_it_comes_from_a_file(path: str) -> None:
    Path("in.csv").write_text("prompt,completion\na,b\n")
    with Path("in.csv").open() as file:
        given = path.replace("N", str(file.fileno()))
        with pytest.raises(UserError, match=rf"^data\.csv: {given} is what comes in by a pipe.*; save it to a file"):
            rows(read_prompts(data(given), NOTHING_HELD_OUT))


@pytest.mark.parametrize("address", ["s3://bucket/x.csv", "https://example.com/x.csv", "hf://datasets/a/b.parquet"])
def test_an_address_is_told_how_to_fetch_it(address: str) -> None:
    with pytest.raises(
        UserError, match=rf"^data\.csv: {address} is an address; fetch it first: dvc import-url {address}"
    ):
        rows(read_prompts(data(address), NOTHING_HELD_OUT))


def test_white_space_in_the_header_teaches_no_prompt_as_its_answer() -> None:
    """The name that the message gives reads the answers; the fix that it once suggested read the prompts twice."""
    Path("p.csv").write_text("prompt, completion\na, b\n")
    assert rows(read_prompts(data("p.csv", "prompt", " completion"), NOTHING_HELD_OUT)) == [("a", " b")]
    with pytest.raises(ValueError, match="prompts would be learnt as their own answers"):
        data("p.csv", "prompt", "prompt")


def write_folder(**files: list[str]) -> None:
    for name, prompts in files.items():
        lines = "".join(f"{prompt},x\n" for prompt in prompts)
        Path(f"{name}.csv").write_text(f"prompt,completion\n{lines}")


def test_in_a_folder_the_names_say_the_splits() -> None:
    prompts = [f"prompt {n}" for n in range(100)]
    write_folder(simple_train=prompts, test=["a", "b"])
    read = splits(read_prompts(data("."), HALF_HELD_OUT))
    assert read["a"] == read["b"] == "test"
    # There is a test file, so that only validation rows are drawn from the training file.
    of_training_file = HALF_HELD_OUT.model_copy(update={"test": 0.0})
    drawn = splits_of(map(str.encode, prompts), of_training_file)
    assert [read[prompt] for prompt in prompts] == [SPLITS[code] for code in drawn]


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev", "my_val", "dev-0001"])
def test_every_usual_name_of_a_validation_file_is_taken(name: str) -> None:
    write_folder(**{"train": ["a"], name: ["b"]})
    assert splits(read_prompts(data("."), HALF_HELD_OUT.model_copy(update={"test": 0.0}))) == {
        "a": "train",
        "b": "validation",
    }


def test_several_validation_files_are_read_one_after_the_other_by_name() -> None:
    write_folder(val=["v"], dev=["d"], train=["t"])
    read = [
        (row["file"], row["prompt"], row["split"])
        for frame in read_prompts(data("."), NOTHING_HELD_OUT)
        for row in frame.to_pylist()
    ]
    assert read == [("train.csv", "t", "train"), ("dev.csv", "d", "validation"), ("val.csv", "v", "validation")]


def test_a_folder_whose_names_do_not_say_the_splits_is_refused() -> None:
    write_folder(test=["a"])
    with pytest.raises(UserError, match="no training file"):
        rows(read_prompts(data("."), NOTHING_HELD_OUT))
    write_folder(train=["a"], latest=["a"])
    with pytest.raises(
        UserError, match=r"latest\.csv: the name does not say which split .*validation \(or valid, val, dev\) or test"
    ):
        rows(read_prompts(data("."), NOTHING_HELD_OUT))


def test_a_pattern_chooses_files_of_a_folder() -> None:
    write_folder(b=["b"], a10=["a10"], a9=["a9"], c=["c"])
    chosen = data(".", files="[ab]*.csv")
    read = [row["prompt"] for frame in read_prompts(chosen, NOTHING_HELD_OUT) for row in frame.to_pylist()]
    assert read == ["a9", "a10", "b"]
    with pytest.raises(
        UserError, match=r"no table here has a name like '\*\.parquet' \(data.files\); found: a10.csv, a9.csv"
    ):
        rows(read_prompts(data(".", files="*.parquet"), NOTHING_HELD_OUT))
    with pytest.raises(UserError, match=r"^data.files: found '\*', but data.csv \(b.csv\) is one file"):
        rows(read_prompts(data("b.csv", files="*"), NOTHING_HELD_OUT))


@pytest.mark.parametrize("pattern", ["parts/*.csv", "parts/a?.csv", "parts/[ab].csv"])
def test_a_pattern_as_data_csv_says_what_to_type(pattern: str) -> None:
    Path("parts").mkdir()
    Path("parts/a1.csv").write_text("prompt,completion\na,b\n")
    name = pattern.removeprefix("parts/")
    with pytest.raises(UserError) as refused:
        rows(read_prompts(data(pattern), NOTHING_HELD_OUT))
    assert str(refused.value).startswith(
        f"{pattern}: not found; DVC takes no patterns: name the folder, and the files in it: "
    )
    typed = shlex.split(str(refused.value).partition("in it: ")[2])
    assert typed == ["-S", "data.csv=parts", "-S", f"data.files='{name}'"]
    assert rows(read_prompts(data("parts", files=name.replace("[ab]", "a1")), NOTHING_HELD_OUT)) == [("a", "b")]


def test_a_column_says_the_splits() -> None:
    by_column = SplitParams(validation=0.9, test=0.0, seed=0, column="part")
    Path("p.csv").write_text("prompt,part,completion\na,train,x\nb,test,x\nc,validation,x\n")
    assert splits(read_prompts(data("p.csv"), by_column)) == {"a": "train", "b": "test", "c": "validation"}
    Path("p.csv").write_text("prompt,part,completion\na,train,x\nb,dev,x\n")
    with pytest.raises(
        UserError, match=r"row 2 \(line 3\): column 'part' .*found 'dev'; allowed: train, validation, test"
    ):
        splits(read_prompts(data("p.csv"), by_column))
    Path("p.csv").write_text("prompt,part,completion\na,test,x\n")
    with pytest.raises(UserError, match=r"no row to train on, of 1: column 'part'"):
        splits(read_prompts(data("p.csv"), by_column))


def test_nothing_left_to_train_on_names_the_fractions() -> None:
    with pytest.raises(
        UserError, match=r"no row to train on, of 1: split.validation \(0.9999\) and split.test \(0.0\)"
    ):
        read_bytes(b"prompt,completion\na,b\n", SplitParams(validation=0.9999, test=0.0, seed=0, column=None))


def test_parts_know_their_places() -> None:
    Path("p.csv").write_text("prompt,part,completion\na,train,\nb,test,x\nc,train,y\n")
    (frame,) = read_prompts(data("p.csv"), SplitParams(validation=0.0, test=0.0, seed=0, column="part"))
    for same in (frame, frame.to_pandas()):
        assert pd.Series(rows_of(same, "train")["prompt"]).tolist() == ["a", "c"]
        assert place(rows_of(same, "train"), 1, "completion") == "p.csv, row 3, completion"
        assert place(rows_of(same, "test"), 0, "prompt") == "p.csv, row 2, prompt"


@pytest.mark.parametrize(
    ("name", "prompt", "completion"),
    [
        ("banking77", "text", "category"),
        ("chatgpt_prompts", "act", "prompt"),
        ("gsm8k", "prompt", "completion"),
        ("mingpt_adder2", "prompt", "completion"),
        ("names", "prompt", "completion"),
        ("scan", "prompt", "completion"),
        ("xquad", "prompt", "completion"),
    ],
)
def test_real_files_are_read_as_pandas_reads_them(name: str, prompt: str, completion: str) -> None:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    files = sorted(path.glob("*.csv"), key=lambda file: "test" in file.name)
    frame = pd.concat([pd.read_csv(file, dtype=str, keep_default_na=False) for file in files])
    read = [
        (row["prompt"], row["completion"])
        for frame in read_prompts(data(path if len(files) > 1 else files[0], prompt, completion), NOTHING_HELD_OUT)
        for row in frame.to_pylist()
    ]
    as_pandas_reads_them = zip(frame[prompt], frame[completion], strict=True)
    assert read == [(p.replace("\r\n", "\n"), c.replace("\r\n", "\n")) for p, c in as_pandas_reads_them]


@pytest.mark.parametrize("kind", ["a loop", "in a loop", "a pipe", "a socket", "a folder named as a table"])
def test_a_path_that_is_no_file_is_told_and_not_waited_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = "x.csv"
    match kind:
        case "a loop":
            Path(named).symlink_to(named)
        case "in a loop":
            Path("x").symlink_to("x")
            named = "x/y.csv"
        case "a pipe":
            os.mkfifo(named)
        case "a socket":
            socket.socket(socket.AF_UNIX).bind(named)
        case _:
            Path(named).mkdir()
    with pytest.raises(UserError, match=named):
        find_tables(named)
