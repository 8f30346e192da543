"""The vocabulary: build one from training texts, encode text to token_ids, decode token_ids to text.

Three tokenizers, each stored as the tokenizers library's JSON:

* word: what stands between white space; an unknown word is an error, or ``<UNK>``.
* character: Unicode code points; round-trips any text made of known characters.
* bpe: byte-level byte pair encoding; round-trips any text.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain, islice
from operator import itemgetter
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pydantic
import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.core.params_model import ParamsModel
from stages.errors import UserError

EOS = "<EOS>"
UNKNOWN = "<UNK>"

TokenizerName = Literal["word", "character", "bpe"]
TokenIds = npt.NDArray[np.int32]

_BYTES = 256
_SMALLEST_BPE = _BYTES + 1  # every byte, and <EOS>
_NO_UNKNOWN = ""  # can be no token of a text, so that an unknown one is never taken for another
_CODE_POINTS = 0x110000
_CHARACTERS_AT_ONCE = 1 << 14
_ABSENT = -1
# Python's str.split takes these four for white space; Unicode and the tokenizers library do not.
_ONLY_PYTHON_SPACES = "\x1c\x1d\x1e\x1f"
_WORD = re.compile(rf"(?:\S|[{_ONLY_PYTHON_SPACES}])+")
# How GPT-2, and so the tokenizers library's ByteLevel, cuts text before merging bytes.
_GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_AFTER_TEXT = "\uffff"  # Unicode promises never to make it a character
_CORES = os.cpu_count() or 1
_SHARES_PER_CORE = 4  # of a batch's texts, since texts differ in length
_NEAREST = 3
_SEARCHED_FOR_NEAREST = 100_000  # words; comparing with more would take longer than a user waits for a message


class VocabularyParams(ParamsModel):
    """What a token is."""

    tokenizer: TokenizerName
    """word: what stands between white space; character: code points; bpe: byte-level byte pair encoding."""
    size: int = pydantic.Field(ge=1)
    """bpe only: how many tokens at most, with <EOS> and the 256 bytes."""
    unknown_token: bool
    """word and character only: add <UNK> for what the training rows do not hold; without it, that is an error."""

    @pydantic.model_validator(mode="after")
    def _hold_every_byte(self) -> Self:
        if self.tokenizer == "bpe" and self.size < _SMALLEST_BPE:
            raise ValueError(f"size: found {self.size}; bpe needs at least {_SMALLEST_BPE} (every byte, and {EOS})")
        return self


class UnusableTextError(UserError):
    """A text that a vocabulary cannot be built from, or that it cannot encode."""

    def __init__(self, message: str, index: int) -> None:
        """Keep ``index``, which of the given texts it is, so that the caller can name its row."""
        super().__init__(message)
        self.index = index


class Vocabulary:
    """Text to token_ids and back, by a tokenizer of the tokenizers library."""

    tokenizer: Tokenizer
    name: TokenizerName
    size: int
    """How many tokens there are; the ids are 0 to size - 1."""
    eos_id: int
    unknown_id: int | None
    """The id of <UNK>; None where unknown text is an error, and for bpe, which knows all text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take a tokenizer as ``build_vocabulary`` makes them.

        Raises:
            UserError: it is of another make.
        """
        eos_id = tokenizer.token_to_id(EOS)
        if eos_id is None:
            raise UserError(f"the tokenizer has no {EOS} token, so build_vocabulary did not make it")
        # A text that says <EOS> ends nothing: it is encoded as the characters it is made of.
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.name = _name(tokenizer)
        self.size = tokenizer.get_vocab_size()
        self.eos_id = eos_id
        self.unknown_id = None if self.name == "bpe" else tokenizer.token_to_id(tokenizer.model.unk_token)

    @cached_property
    def token_to_id(self) -> dict[str, int]:
        """Every token's id, in the order of the ids."""
        return dict(sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]))

    def encode(self, text: str) -> list[int]:
        """Give the token_ids of one text.

        Raises:
            UnusableTextError: a word or character is unknown and there is no <UNK>.
        """
        token_ids, _ = self.encode_batch([text])
        return [int(token_id) for token_id in token_ids[:-1]]

    def encode_batch(self, texts: Sequence[str]) -> tuple[TokenIds, npt.NDArray[np.int64]]:
        """Encode many texts at once, each ended by <EOS>.

        Returns:
            token_ids [tokens] of all texts, laid end to end, and lengths [texts], how many tokens each text has, <EOS>
            included.

        Raises:
            UnusableTextError: a word or character is unknown and there is no <UNK>.
        """
        match self.name:
            case "word":
                token_ids, lengths = self._encode_words(texts)
            case "character":
                token_ids, lengths = self._encode_characters(texts)
            case "bpe":
                return self._encode_bytes(texts)
        absent = token_ids == _ABSENT
        if absent.any():
            if self.unknown_id is None:
                first = int(np.argmax(absent))
                raise self._unknown_error(texts, lengths, first)
            token_ids[absent] = self.unknown_id
        return token_ids, lengths

    def decode(self, token_ids: Sequence[int]) -> str:
        """Give the text of token_ids; <EOS> is dropped, words are joined by a space."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def encode_prompt(self, text: str) -> list[int]:
        """Encode what a user typed: a word that is not known as it stands may differ in case from the only one meant.

        Raises:
            UnusableTextError: a word or character is unknown and there is no <UNK>, or the text is not Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # Python writes a byte that is not UTF-8, and JSON may write half of a pair, as a surrogate.
            found = f"character {error.start + 1} (U+{ord(text[error.start]):04X})"
            raise UnusableTextError(f"{found} is not text: give the prompt in UTF-8", 0) from None
        if self.name != "word":
            return self.encode(text)
        known = self._text_token_ids
        words = (word if word in known else self._only_match_in_another_case(word) for word in split_words(text))
        return self.encode(" ".join(words))

    def first_token_bytes(self, texts: Sequence[str], token_ids: TokenIds) -> int:
        """Count the UTF-8 bytes that the first tokens of texts stand for.

        ``token_ids`` [texts] are these tokens, <EOS> where a text has none.
        """
        match self.name:
            case "word":  # with the white space before it
                return sum(len(text[: word.end()].encode()) for text in texts if (word := _WORD.search(text)))
            case "character":
                return len("".join(map(itemgetter(slice(1)), texts)).encode())
            case "bpe":
                return int(self._byte_lengths[token_ids].sum())

    @cached_property
    def _byte_lengths(self) -> npt.NDArray[np.int64]:
        """[V] the bytes of each bpe token: the byte-level alphabet has one character a byte. <EOS> has none."""
        lengths = np.fromiter(map(len, self.token_to_id), np.int64, self.size)
        lengths[self.eos_id] = 0
        return lengths

    @cached_property
    def _text_token_ids(self) -> dict[str, int]:
        """What a word or character of a text may become: not <EOS>."""
        return {token: token_id for token, token_id in self.token_to_id.items() if token_id != self.eos_id}

    @cached_property
    def _code_point_ids(self) -> TokenIds:
        """[code points] the id of each character."""
        ids = np.full(_CODE_POINTS, _ABSENT, dtype=np.int32)
        for token, token_id in self._text_token_ids.items():
            if token_id != self.unknown_id:
                ids[ord(token)] = token_id
        return ids

    def _encode_words(self, texts: Sequence[str]) -> tuple[TokenIds, npt.NDArray[np.int64]]:
        _refuse_words(texts, {EOS})
        known = self._text_token_ids
        return _flatten([[*(known.get(word, _ABSENT) for word in split_words(text)), self.eos_id] for text in texts])

    def _encode_characters(self, texts: Sequence[str]) -> tuple[TokenIds, npt.NDArray[np.int64]]:
        token_ids = self._code_point_ids.take(_code_points(_AFTER_TEXT.join([*texts, ""])))
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)) + 1
        token_ids[np.cumsum(lengths) - 1] = self.eos_id
        return token_ids, lengths

    def _encode_bytes(self, texts: Sequence[str]) -> tuple[TokenIds, npt.NDArray[np.int64]]:
        size = -(-len(texts) // (_SHARES_PER_CORE * _CORES)) or 1
        shares = [texts[start : start + size] for start in range(0, len(texts), size)]
        encode = partial(self._encode_share, self._merges)
        if len(shares) == 1:
            encoded = [encode(texts)]
        else:
            with ThreadPoolExecutor(_CORES) as pool:
                encoded = list(pool.map(encode, shares))
        token_ids, lengths = zip(*encoded, strict=True) if encoded else ((), ())
        return np.concatenate([np.empty(0, np.int32), *token_ids]), np.concatenate([np.empty(0, np.int64), *lengths])

    def _encode_share(self, merges: tiktoken.Encoding, texts: Sequence[str]) -> tuple[TokenIds, npt.NDArray[np.int64]]:
        """Encode texts in one call, joined by what none of them holds: a call takes longer than a short text."""
        joined = _AFTER_TEXT.join([*texts, ""])
        if joined.count(_AFTER_TEXT) > len(texts):
            # Without special tokens, what a text holds is encoded as its characters.
            alone = [merges.encode(text, allowed_special=set(), disallowed_special=()) for text in texts]
            return _flatten([[*token_ids, self.eos_id] for token_ids in alone])
        token_ids = merges.encode_to_numpy(joined, allowed_special={_AFTER_TEXT}, disallowed_special=())
        return token_ids.astype(np.int32), np.diff(np.flatnonzero(token_ids == self.eos_id), prepend=-1)

    @cached_property
    def _merges(self) -> tiktoken.Encoding:
        """The byte pair encoding in tiktoken, which gives the same token_ids in a fraction of the time.

        tiktoken merges the pair whose joint token has the lowest id, the tokenizers library the pair whose merge was
        learned first. These agree because ids are in the order of the merges, and because training never learns two
        ways to one token: wherever its bytes stand between token boundaries, the earlier merges have cut them alike.
        """
        byte_of = {character: byte for byte, character in _byte_characters().items()}
        ranks = {
            bytes(byte_of[character] for character in token): token_id
            for token, token_id in self._text_token_ids.items()
        }
        return tiktoken.Encoding(
            "vocabulary", pat_str=_GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={_AFTER_TEXT: self.eos_id}
        )

    def _only_match_in_another_case(self, word: str) -> str:
        matches = self._words_without_case.get(word.casefold(), [])
        return matches[0] if len(matches) == 1 else word

    @cached_property
    def _words_without_case(self) -> dict[str, list[str]]:
        words: dict[str, list[str]] = {}
        for word in self._text_token_ids:
            words.setdefault(word.casefold(), []).append(word)
        return words

    def _unknown_error(self, texts: Sequence[str], lengths: npt.NDArray[np.int64], position: int) -> UnusableTextError:
        """Explain the unknown token at ``position`` in the token_ids of all texts."""
        ends = np.cumsum(lengths)
        index = int(np.searchsorted(ends, position, side="right"))
        nth = position - int(ends[index] - lengths[index])
        fix = "set vocabulary.unknown_token: true, or vocabulary.tokenizer: bpe, which knows all text"
        if self.name == "character":
            character = texts[index][nth]
            found = f"the character {character!r} (U+{ord(character):04X}, character {nth + 1})"
            return UnusableTextError(
                f"{found} is not in the vocabulary, which is that of the training rows; {fix}", index
            )
        word = split_words(texts[index])[nth]
        nearest = self._words_without_case.get(word.casefold(), []) or difflib.get_close_matches(
            word, islice(self._text_token_ids, _SEARCHED_FOR_NEAREST), n=_NEAREST
        )
        known = "nearest known: " + ", ".join(map(repr, nearest)) if nearest else "no known word is like it"
        found = f"the word {word!r} (word {nth + 1}) is not in the vocabulary, which is that of the training rows"
        return UnusableTextError(f"{found}; {known}; {fix}", index)


def build_vocabulary(parameters: VocabularyParams, batches: Iterable[Sequence[str]]) -> Vocabulary:
    """Build a vocabulary from training texts, which come in batches so that they need not fit into memory.

    Ids of words and characters are in the order of their first appearance; bpe's are the bytes, then the merges. Then
    comes ``<UNK>`` where asked for, and ``<EOS>`` last.

    Raises:
        UnusableTextError: a text holds a word with a meaning of its own, such as ``<EOS>``. Its index is the place
            within the batch that was read last.
    """
    if parameters.tokenizer == "bpe":
        return Vocabulary(_train_bpe(parameters.size, batches))
    added = [UNKNOWN, EOS] if parameters.unknown_token else [EOS]
    tokens: dict[str, None] = {}
    seen = np.zeros(_CODE_POINTS, np.bool_)
    for texts in batches:
        if parameters.tokenizer == "word":
            _refuse_words(texts, set(added))
            tokens |= dict.fromkeys(split_words("\n".join(texts)))
        else:
            tokens |= dict.fromkeys(_new_characters("".join(texts), seen))
    ids = {token: token_id for token_id, token in enumerate([*tokens, *added])}
    unknown = UNKNOWN if parameters.unknown_token else _NO_UNKNOWN
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    if parameters.tokenizer == "word":
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
    _add_eos(tokenizer)
    return Vocabulary(tokenizer)


def split_words(text: str) -> list[str]:
    """Split text at white space exactly as the tokenizers library's WhitespaceSplit does."""
    if any(space in text for space in _ONLY_PYTHON_SPACES):
        return _WORD.findall(text)
    return text.split()


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def _new_characters(text: str, seen: npt.NDArray[np.bool_]) -> Iterator[str]:
    """Give the characters of a text that are not ``seen`` [code points], by their first appearance, and mark them."""
    code_points = _code_points(text)
    # In parts, as a step of Python's is taken for whatever is new to a part: nearly all of a first one.
    for part in np.split(code_points, range(_CHARACTERS_AT_ONCE, len(code_points), _CHARACTERS_AT_ONCE)):
        new = list(dict.fromkeys(part[~seen.take(part)].tolist()))
        seen[new] = True
        yield from map(chr, new)


def _train_bpe(size: int, batches: Iterable[Sequence[str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,  # <EOS> comes last
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(batches, trainer)
    _add_eos(tokenizer)
    return tokenizer


def _add_eos(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken(EOS, special=True, normalized=False)])


def _byte_characters() -> dict[int, str]:
    """Give the character by which the tokenizers library writes each byte: itself where it can be printed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    characters = {ord(character): character for character in alphabet if ord(character) < _BYTES}
    unprintable = (byte for byte in range(_BYTES) if byte not in characters)
    return characters | dict(zip(unprintable, alphabet[len(characters) :], strict=True))


def _name(tokenizer: Tokenizer) -> TokenizerName:
    match tokenizer.model, tokenizer.pre_tokenizer:
        case models.WordLevel(), pre_tokenizers.WhitespaceSplit():
            return "word"
        case models.WordLevel(), pre_tokenizers.Split():
            return "character"
        case models.BPE(), pre_tokenizers.ByteLevel():
            return "bpe"
    raise UserError(
        "the tokenizer is neither of words, nor of characters, nor byte-level bpe: build_vocabulary did not make it"
    )


def _refuse_words(texts: Sequence[str], reserved: set[str]) -> None:
    for word in sorted(reserved):
        for index, text in enumerate(texts):
            # The first test is the quick one.
            if word in text and word in split_words(text):
                raise UnusableTextError(
                    f"the word {word} has a meaning of its own and cannot stand in a text; write it another way", index
                )


def _flatten(token_ids: list[list[int]]) -> tuple[TokenIds, npt.NDArray[np.int64]]:
    counts = np.fromiter(map(len, token_ids), dtype=np.int64, count=len(token_ids))
    return np.fromiter(chain.from_iterable(token_ids), dtype=np.int32, count=int(counts.sum())), counts
