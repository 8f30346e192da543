import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer

from stages.artifacts.vocabulary_json import read_vocabulary, write_vocabulary
from stages.core.vocabulary import TokenizerName, VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.errors import UserError
from tests.frames import frame_of_texts

TEXTS = ["what is CNN", "Great", "the then there <b> \n\n été 2002"]

WRITE_BPE = """
import sys
from pathlib import Path
import pyarrow as pa
from stages.artifacts.vocabulary_json import write_vocabulary
from stages.core.vocabulary import VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
texts = [f"{n} {n * n} the quick brown fox {chr(192 + n % 300)}" for n in range(3000)]
parameters = VocabularyParams(tokenizer="bpe", size=600, unknown_token=False)
frames = [pa.table({"prompt": part, "completion": part}) for part in (texts[:1000], texts[1000:])]
write_vocabulary(build_vocabulary(parameters, frames), Path(sys.argv[1]))
"""


@pytest.mark.parametrize("name", ["word", "character", "bpe"])
def test_it_round_trips_and_opens_with_other_libraries(tmp_path: Path, name: TokenizerName) -> None:
    path = tmp_path / "vocabulary.json"
    vocabulary = build_vocabulary(
        VocabularyParams(tokenizer=name, size=280, unknown_token=False), [frame_of_texts(TEXTS)]
    )
    write_vocabulary(vocabulary, path)
    read = read_vocabulary(path)
    assert (read.name, read.size, read.eos_id, read.unknown_id) == (name, vocabulary.size, vocabulary.eos_id, None)
    assert read.token_to_id == vocabulary.token_to_id
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="<EOS>")
    for text in TEXTS:
        ids = vocabulary.encode(text)
        assert read.encode(text) == Tokenizer.from_file(str(path)).encode(text).ids == fast.encode(text) == ids
    assert fast.eos_token_id == vocabulary.eos_id


def test_bpe_gives_the_same_bytes_whatever_the_hash_seed_and_threads(tmp_path: Path) -> None:
    written = set()
    for seed, threads in (("0", "1"), ("1", "2"), ("2", "7")):
        path = tmp_path / f"{seed}.json"
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", WRITE_BPE, path], check=True, env=environment)
        written.add(path.read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"[1]", b"\xff\xfe", b'{"version":"1.0","model":{"type":"WordLevel"}}']
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"vocabulary\.json: not a vocabulary .*dvc repro build_vocabulary"):
        read_vocabulary(path)


def test_another_programs_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text('{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{},"merges":[]}}')
    with pytest.raises(UserError, match=r"vocabulary\.json: .*build_vocabulary did not make it"):
        read_vocabulary(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocabulary\.json: not found"):
        read_vocabulary(tmp_path / "vocabulary.json")
