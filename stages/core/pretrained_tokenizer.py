"""Take a tokenizer that others trained as the vocabulary, with its ids unchanged, or name what cannot be taken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, processors

from stages.core.vocabulary import EOS, Vocabulary, byte_characters
from stages.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

# What ends a text in GPT-2 and Qwen, Llama 3, SentencePiece's line, Gemma's line, BERT's.
USUAL_ENDS = (EOS, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")
# Bytes that UTF-8 has nowhere, so that some vocabularies do without them.
_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


def take_tokenizer(content: str, eos_token: str | None) -> Vocabulary:
    """Return a vocabulary of the tokens of a tokenizer.json, under their own ids.

    Args:
        content: of the file, the tokenizers library's JSON.
        eos_token: the token that stands for <EOS>; None: the first of USUAL_ENDS that it has.

    Raises:
        UserError: the tokenizer is of a kind that is not supported; the message names the part.
        Exception: the tokenizers library cannot read the file.
    """
    tokenizer = Tokenizer.from_str(content)
    _refuse_gap(tokenizer, json.loads(content))
    parts = json.loads(tokenizer.to_str())  # older files lack some keys
    end = _find_end(tokenizer, eos_token)
    if parts["model"]["type"] == "BPE":
        _refuse_pairs(parts["model"])
        _refuse_normalizer(parts.get("normalizer"))
        _refuse_cutting(parts.get("pre_tokenizer"))
        tokenizer.decoder = decoders.ByteLevel()
    elif end != EOS:
        raise UserError(
            f"model: found {parts['model']['type']}, allowed: BPE of bytes, or a data/vocabulary.json of this project"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if end != EOS:  # by this the vocabulary knows its end where it is read again
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", end], pair=None, special_tokens=[(end, tokenizer.token_to_id(end))]
        )
    return Vocabulary(tokenizer)


def _refuse_gap(tokenizer: Tokenizer, parts: dict[str, Any]) -> None:
    """Compare the ids of special tokens with those of the library, which closes a gap before them without a word."""
    for token in parts.get("added_tokens") or []:
        if tokenizer.token_to_id(token["content"]) != token["id"]:
            raise UserError(
                f"added_tokens: found {token['content']} under {token['id']}, after a gap; allowed: ids 0 to n - 1"
            )


def _find_end(tokenizer: Tokenizer, eos_token: str | None) -> str:
    wanted = USUAL_ENDS if eos_token is None else (eos_token,)
    found = next((token for token in wanted if tokenizer.token_to_id(token) is not None), None)
    if found is None:
        added = ", ".join(sorted({token.content for token in tokenizer.get_added_tokens_decoder().values()})) or "none"
        raise UserError(
            f"no token {', '.join(wanted)}, which ends a text; name it as vocabulary.eos_token in params.yaml; "
            f"its special tokens: {added}"
        )
    if found not in {token.content for token in tokenizer.get_added_tokens_decoder().values()}:
        raise UserError(
            f"vocabulary.eos_token: found {found}, which is a part of texts; allowed: one of the tokenizer's special tokens"
        )
    return found


def _refuse_pairs(model: dict[str, Any]) -> None:
    for name, allowed in (
        ("dropout", None), ("unk_token", None), ("continuing_subword_prefix", None), ("end_of_word_suffix", None),
        ("byte_fallback", False),
    ):  # fmt: skip
        if model.get(name) not in (allowed, "", None):
            raise UserError(f"model.{name}: found {model[name]!r}, allowed: {allowed!r}, as in byte-level BPE")
    absent = [
        byte for byte, character in byte_characters().items()
        if character not in model["vocab"] and byte not in _NEVER_IN_UTF8
    ]  # fmt: skip
    if absent:
        raise UserError(
            f"model.vocab: no token of the byte {absent[0]:#04x}, allowed: byte-level BPE, which has all bytes"
        )


def _refuse_normalizer(normalizer: dict[str, Any] | None) -> None:
    """Let NFC pass, which changes no text that can be seen; others lose letters' case, accents or spaces."""
    kinds = [part["type"] for part in _parts(normalizer, "normalizers")]
    if set(kinds) - {"NFC"}:
        raise UserError(f"normalizer: found {', '.join(kinds)}, allowed: none, or NFC")


def _refuse_cutting(pre_tokenizer: dict[str, Any] | None) -> None:
    """Let cuts pass that lose no text, and end as bytes."""
    parts = list(_parts(pre_tokenizer, "pretokenizers"))
    kinds = [part["type"] for part in parts]
    allowed = "allowed: Split and Digits that keep all text, then ByteLevel"
    if set(kinds) - {"Split", "Digits", "ByteLevel"} or kinds[-1:] != ["ByteLevel"] or kinds.count("ByteLevel") > 1:
        raise UserError(f"pre_tokenizer: found {', '.join(kinds) or 'none'}, {allowed}")
    for part in parts:
        if part.get("add_prefix_space"):
            raise UserError(f"pre_tokenizer: found ByteLevel with add_prefix_space, which adds to the text; {allowed}")
        if part.get("behavior") == "Removed":
            raise UserError(f"pre_tokenizer: found Split with behavior Removed, {allowed}")


def _parts(component: dict[str, Any] | None, members: str) -> Iterator[dict[str, Any]]:
    """Yield a component, or those that a Sequence of them has."""
    if component is None:
        return
    if component["type"] == "Sequence":
        for member in component[members]:
            yield from _parts(member, members)
    else:
        yield component
