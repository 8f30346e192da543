"""data/vocabulary.json: the vocabulary in the tokenizers library's own format.

It opens with ``tokenizers.Tokenizer.from_file`` and with ``transformers.PreTrainedTokenizerFast(tokenizer_file=...)``.
"""

import logging
from pathlib import Path

from tokenizers import Tokenizer

from stages.artifacts.atomic import atomic_file
from stages.artifacts.regular_file import check_file
from stages.core.vocabulary import Vocabulary
from stages.errors import UserError

LOG = logging.getLogger(__name__)

VOCABULARY_FILE = Path("data/vocabulary.json")


def write_vocabulary(vocabulary: Vocabulary, path: Path = VOCABULARY_FILE) -> None:
    """Write ``path`` anew; the same vocabulary gives the same bytes."""
    with atomic_file(path) as file:
        file.write(vocabulary.tokenizer.to_str(pretty=True).encode() + b"\n")


def read_vocabulary(path: Path = VOCABULARY_FILE) -> Vocabulary:
    """Read what ``write_vocabulary`` wrote.

    Raises:
        UserError: the file is absent, damaged, or another program's.
    """
    LOG.info("reading %s", path)
    check_file(path, "build it with: dvc repro build_vocabulary")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: not a vocabulary (not UTF-8 text); build it anew with: dvc repro build_vocabulary"
        ) from None
    try:
        return Vocabulary(Tokenizer.from_str(text))
    except UserError as error:
        raise UserError(f"{path}: {error}; build it anew with: dvc repro build_vocabulary") from None
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a damaged file
        raise UserError(f"{path}: not a vocabulary ({error}); build it anew with: dvc repro build_vocabulary") from None
