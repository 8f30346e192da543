"""The most memory that the two preparation stages take, whatever the rows look like, in a folder and a process of their own."""

import argparse
import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measuring import write_table
from benchmarks.preparation import PARAMETERS, STAGES, run

TOKENIZERS = ("word", "character", "bpe")
MEGABYTE = 1_000_000
LARGE_CELL = 60 * MEGABYTE
COLUMNS = 100_000
_WORDS = 8000


def short_rows(text: Iterator[str]) -> Iterator[str]:
    """Yield lines of 15 words."""
    yield "prompt,completion\n"
    while True:
        yield f"{_take(text, 10)},{_take(text, 5)}\n"


def quoted_paragraphs(text: Iterator[str]) -> Iterator[str]:
    """Yield cells of 40 lines, with quotes and commas in them."""
    yield "prompt,completion\n"
    while True:
        paragraphs = ('\n"", '.join(_take(text, 10) for _ in range(40)) for _ in range(2))
        yield '"{}","{}"\n'.format(*paragraphs)


def one_large_cell(text: Iterator[str]) -> Iterator[str]:
    """Yield a cell of 60 MB, of lines, among short rows."""
    yield "prompt,completion\n"
    for _ in range(1000):
        yield f"{_take(text, 10)},{_take(text, 5)}\n"
    lines = "\n".join(_take(text, 12) for _ in range(10_000))
    yield '"' + "\n".join([lines] * (LARGE_CELL // len(lines))) + '",x\n'
    yield from itertools.islice(short_rows(text), 1, None)


def many_columns(text: Iterator[str]) -> Iterator[str]:
    """Yield rows of 100,000 cells."""
    yield ",".join(["prompt", "completion", *(f"c{number}" for number in range(COLUMNS - 2))]) + "\n"
    rest = ",".join(str(number % 10_000) for number in range(COLUMNS - 2))
    while True:
        yield f"{_take(text, 10)},{_take(text, 5)},{rest}\n"


SHAPES: dict[str, Callable[[Iterator[str]], Iterator[str]]] = {
    "short rows": short_rows,
    "quoted paragraphs": quoted_paragraphs,
    "one cell of 60 MB": one_large_cell,
    "100,000 columns": many_columns,
}


def _take(text: Iterator[str], words: int) -> str:
    return " ".join(itertools.islice(text, words))


def made_up_words() -> Iterator[str]:
    """Yield words of small letters without an end, the frequent ones short."""
    source = random.Random(0)
    words = [
        "".join(source.choices("etaoinshrdlu", k=1 + number // 900 + source.randrange(5))) for number in range(_WORDS)
    ]
    weights = list(itertools.accumulate(1 / (1 + number) for number in range(len(words))))
    while True:
        yield from source.choices(words, cum_weights=weights, k=10_000)


def write_shape(path: Path, shape: str, megabytes: int) -> None:
    """Write a table of one shape, of at least this size."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for part in SHAPES[shape](made_up_words()):
            size += file.write(part)
            if size >= megabytes * MEGABYTE:
                return


def peak_megabytes(folder: Path, tokenizer: str, held_out: float) -> dict[str, float]:
    """Run both stages in a folder with data/prompts.csv; return the most memory that each took, in MB."""
    parameters = PARAMETERS.replace("tokenizer: word", f"tokenizer: {tokenizer}")
    parameters = parameters.replace("  test: 0.0", f"  test: {held_out}").replace(
        "unknown_token: false", "unknown_token: true"
    )
    (folder / "params.yaml").write_text(parameters, encoding="utf-8")
    commands = {stage: [sys.executable, "-m", f"stages.{stage}", "--quiet"] for stage in STAGES}
    return {stage: run(command, folder)[2] * 1024 / MEGABYTE for stage, command in commands.items()}


def main() -> None:
    """Measure every shape with every tokenizer, a tenth of the rows held out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256, help="the size of each generated CSV")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    given = parser.parse_args()
    rows = []
    for shape in given.shapes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "data").mkdir()
            write_shape(folder / "data/prompts.csv", shape, given.megabytes)
            for tokenizer in TOKENIZERS:
                peaks = peak_megabytes(folder, tokenizer, 0.1)
                rows.append([shape, tokenizer, *(f"{peak:,.0f}" for peak in peaks.values())])
                print(*rows[-1], sep=" | ", flush=True)
    caption = f"CSV of {given.megabytes} MB, a tenth of the rows held out; peak resident memory, MB"
    write_table("preparation memory", caption, ["shape", "tokenizer", *STAGES], rows)


if __name__ == "__main__":
    main()
