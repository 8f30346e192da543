"""Build a vocabulary from training texts."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.core.frames import (
    Frame,
    UnusableTextError,
    find_unusable_text,
    joined_texts,
    place,
    rows_of,
    text_column,
    text_data,
)
from stages.core.text_cuts import (
    CODE_POINTS,
    END,
    FIRST_NOT_ASCII,
    cut_characters,
    cut_pieces,
    distinct_chunks,
    distinct_words,
    split_words,
    to_code_points,
)
from stages.core.vocabulary import EOS, UNKNOWN, Vocabulary, VocabularyParams, refuse_words
from stages.errors import UserError

_NO_UNKNOWN = ""  # can be no token of a text, so that an unknown one is never taken for another
_CHARACTERS_AT_ONCE = 1 << 14
_REPEATED_AT_ONCE = 1 << 12


Pieces = dict[str, int]
"""What a vocabulary is built from, by first appearance: words, characters, or chunks for bpe, with how often each of these is there."""


def build_vocabulary(parameters: VocabularyParams, frames: Iterable[Frame]) -> Vocabulary:
    """Build a vocabulary from frames of training rows, which need not fit into memory together: see ``vocabulary_of``.

    Raises:
        UnusableTextError: a text holds a word with a meaning of its own, such as ``<EOS>``; the error names its row in the frame.
    """
    return vocabulary_of(parameters, [find_pieces(parameters, frames)])


def find_training_pieces(parameters: VocabularyParams, frames: Iterable[Frame]) -> Iterator[tuple[Pieces, int]]:
    """Yield once the pieces of the training rows of some frames, and how many rows these are.

    Raises:
        UserError: as ``build_vocabulary``; the message names the place of the text.
    """
    training: Frame = None
    rows = 0

    def training_rows() -> Iterator[Frame]:
        nonlocal training, rows
        for frame in frames:
            training = rows_of(frame, "train")
            rows += len(training)
            yield training

    try:
        pieces = find_pieces(parameters, training_rows())
    except UnusableTextError as error:
        raise UserError(f"{place(training, error.row, error.column)}: {error}") from None
    yield pieces, rows


def find_pieces(parameters: VocabularyParams, frames: Iterable[Frame]) -> Pieces:
    """Return the distinct pieces of the text of training rows.

    Raises:
        UnusableTextError: as ``build_vocabulary``.
    """
    reserved = _added(parameters)
    pieces: Pieces = {}
    chunks: Counter[str] = Counter()
    seen = np.zeros(CODE_POINTS, np.bool_)
    for frame in frames:
        if parameters.tokenizer == "bpe":
            for text in cut_pieces(joined_texts(frame, END)):
                distinct, indices = distinct_chunks(text)
                chunks.update(dict(zip(distinct, np.bincount(indices, minlength=len(distinct)).tolist(), strict=True)))
        elif parameters.tokenizer == "word":
            for text in cut_pieces(joined_texts(frame, " ")):
                words, _ = distinct_words(text)
                if not {f"{word} " for word in reserved}.isdisjoint(words):
                    find_unusable_text(frame, lambda text: refuse_words(split_words(text), reserved))
                pieces |= dict.fromkeys(words, 0)
        elif _has_new_characters(frame, seen):
            for text in cut_characters(joined_texts(frame, "")):
                pieces |= dict.fromkeys(_new_characters(str(text, "utf-8"), seen), 0)
    return pieces or chunks


def vocabulary_of(parameters: VocabularyParams, parts: Iterable[Pieces]) -> Vocabulary:
    """Build a vocabulary from the pieces of successive parts of the training rows.

    Ids of words and characters are in the order of their first appearance; bpe's are the bytes, then the merges. Then
    comes ``<UNK>`` where asked for, and ``<EOS>`` last.
    """
    if parameters.tokenizer == "bpe":
        chunks: Counter[str] = Counter()
        for part in parts:
            chunks.update(part)
        return Vocabulary(_train_bpe(parameters.size, chunks))
    tokens: Pieces = {}
    for part in parts:
        tokens |= part
    if parameters.tokenizer == "word":
        tokens = dict.fromkeys((word.removesuffix(" ") for word in tokens if word != " "), 0)
    ids = {token: token_id for token_id, token in enumerate([*tokens, *_added(parameters)])}
    unknown = UNKNOWN if parameters.unknown_token else _NO_UNKNOWN
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    if parameters.tokenizer == "word":
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
    _add_eos(tokenizer)
    return Vocabulary(tokenizer)


def _added(parameters: VocabularyParams) -> list[str]:
    return [UNKNOWN, EOS] if parameters.unknown_token else [EOS]


def _has_new_characters(frame: Frame, seen: npt.NDArray[np.bool_]) -> bool:
    """Return whether a frame has characters that are not ``seen`` [code points]; ASCII is sorted out as bytes."""
    known = bytes(np.flatnonzero(seen[:FIRST_NOT_ASCII]).tolist())
    for name in ("prompt", "completion"):
        for text in cut_characters(text_data(text_column(frame, name))):
            left = bytes(text).translate(None, known)
            if left and not seen.take(to_code_points(left.decode())).all():
                return True
    return False


def _new_characters(text: str, seen: npt.NDArray[np.bool_]) -> Iterator[str]:
    """Yield the characters of a text that are not ``seen`` [code points], by their first appearance, and mark them."""
    code_points = to_code_points(text)
    # In parts, as a step of Python's is taken for whatever is new to a part: nearly all of a first one.
    for part in np.split(code_points, range(_CHARACTERS_AT_ONCE, len(code_points), _CHARACTERS_AT_ONCE)):
        new = list(dict.fromkeys(part[~seen.take(part)].tolist()))
        seen[new] = True
        yield from map(chr, new)


def _train_bpe(size: int, chunks: Counter[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,  # <EOS> comes last
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Half of the library's time is cutting text. Words are cut here, each once, and repeated for it to count.
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    tokenizer.train_from_iterator(_repeated_words(chunks), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _add_eos(tokenizer)
    return tokenizer


def _repeated_words(chunks: Counter[str]) -> Iterator[str]:
    """Yield every word of byte-level BPE as often as it stands in the text, with spaces between, which no word has."""
    del chunks[END]
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for word, _ in cut.pre_tokenize_str(chunk):
            words[word] += count
    for word, count in words.items():
        for done in range(0, count, _REPEATED_AT_ONCE):
            yield f"{word} " * min(count - done, _REPEATED_AT_ONCE)


def _add_eos(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken(EOS, special=True, normalized=False)])
