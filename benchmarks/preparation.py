"""CSV to tensors: the two preparation stages in a folder of their own, beside the usual ways to prepare a text."""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import summarise, write_table

ROOT = Path(__file__).parents[1]
PARAMETERS = (ROOT / "presets/toy.yaml").read_text(encoding="utf-8")
PEERS = {
    "word": """
import pandas, numpy
texts = pandas.read_csv("data/prompts.csv").stack().str.split()
ids = {}
for words in texts:
    for word in words:
        ids.setdefault(word, len(ids))
numpy.concatenate([numpy.array([ids[word] for word in words], dtype=numpy.uint16) for words in texts]).tofile("peer.bin")
""",
    "character": """
import pandas, pickle, numpy
text = "\\n".join(pandas.read_csv("data/prompts.csv").stack())
stoi = {character: number for number, character in enumerate(sorted(set(text)))}
numpy.array([stoi[character] for character in text], dtype=numpy.uint16).tofile("peer.bin")
""",
    "bpe": """
import os, pandas, numpy
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast(tokenizer_file="data/vocabulary.json")
frame = pandas.read_csv("data/prompts.csv")
numpy.concatenate([numpy.concatenate([numpy.array(ids, dtype=numpy.uint16) for ids in tokenizer(frame[column].tolist())["input_ids"]]) for column in frame]).tofile("peer.bin")
""",
}
PEER_NAMES = {
    "word": "pandas, `str.split` and a dictionary: vocabulary and encoding",
    "character": "pandas, `[stoi[c] for c in text]`: vocabulary and encoding",
    "bpe": "pandas, transformers' fast tokenizer: encoding",
}
STAGES = ("build_vocabulary", "build_dataset")
BOTH = "both stages"
ROUNDS = 3
LARGE = 100  # megabytes; more would not fit into memory as the peers use it


def main() -> None:
    """Measure each tokenizer at each size, with its peer beside it, and how many times as fast this project is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[8, 64, 1000], help="sizes of the generated CSV")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    rows = []
    for tokenizer in PEERS:
        for megabytes in given.megabytes:
            with tempfile.TemporaryDirectory() as folder:
                rounds = 1 if megabytes > LARGE else given.rounds
                rows += measure(Path(folder), tokenizer, megabytes, rounds)
    caption = (
        f"{os.cpu_count()} cores; medians of {given.rounds} rounds, start-up of Python included; "
        f"one round and no peers for more than {LARGE} MB"
    )
    columns = [
        "tokenizer",
        "CSV",
        "",
        "MB a second",
        "MB a second of processor time",
        "times the peer, in both",
        "peak memory, MB",
    ]
    write_table("preparation", caption, columns, rows)


def measure(folder: Path, tokenizer: str, megabytes: int, rounds: int) -> list[list[str]]:
    """Measure one tokenizer on one size of CSV."""
    (folder / "data").mkdir()
    parameters = PARAMETERS.replace("tokenizer: word", f"tokenizer: {tokenizer}")
    (folder / "params.yaml").write_text(parameters, encoding="utf-8")
    size = write_csv(folder / "data/prompts.csv", megabytes)
    commands = {stage: [sys.executable, "-m", f"stages.{stage}", "--quiet"] for stage in STAGES}
    if megabytes <= LARGE:
        commands[PEER_NAMES[tokenizer]] = [sys.executable, "-c", PEERS[tokenizer]]
    taken: dict[str, list[tuple[float, float, int]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            taken[name].append(run(command, folder))
    both = zip(*(taken[stage] for stage in STAGES), strict=True)
    taken[BOTH] = [(first[0] + then[0], first[1] + then[1], max(first[2], then[2])) for first, then in both]
    seconds = {name: summarise([took for took, _, _ in runs]).median for name, runs in taken.items()}
    processor = {name: summarise([used for _, used, _ in runs]).median for name, runs in taken.items()}
    peer = PEER_NAMES[tokenizer]
    return [
        [
            tokenizer,
            f"{size / 1e6:.0f} MB",
            name,
            f"{size / 1e6 / seconds[name]:.1f}",
            f"{size / 1e6 / processor[name]:.1f}",
            f"{seconds[peer] / seconds[name]:.1f}, {processor[peer] / processor[name]:.1f}" if peer in taken else "",
            f"{max(kilobytes for _, _, kilobytes in runs) / 1000:,.0f}",
        ]
        for name, runs in taken.items()
    ]


def run(command: list[str], folder: Path) -> tuple[float, float, int]:
    """Run a command; return its seconds, the processor's, and its peak resident memory in kB."""
    watcher = (
        "import json, resource, subprocess, sys, time\nstart = time.perf_counter()\n"
        "subprocess.run(sys.argv[1:], check=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss]))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", watcher, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    took, used, kilobytes = json.loads(done.stdout.splitlines()[-1])
    return took, used, kilobytes


def write_csv(path: Path, megabytes: int) -> int:
    """Write rows of made-up words, the frequent ones short; return the file's size."""
    source = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkqjxzäöü"
    words = [
        "".join(source.choices(letters, range(29, 0, -1), k=1 + number // 700 + source.randrange(6)))
        for number in range(8000)
    ]
    weights = [1 / (1 + number) for number in range(len(words))]
    with path.open("w", encoding="utf-8") as file:
        file.write("prompt,completion\n")
        while file.tell() < megabytes * 1_000_000:
            chosen = iter(source.choices(words, weights, k=150_000))
            for prompt in zip(*[chosen] * 15, strict=True):
                file.write(f"{' '.join(prompt[:10])},{' '.join(prompt[10:])}\n")
    return path.stat().st_size


if __name__ == "__main__":
    main()
