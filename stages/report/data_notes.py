"""What a person should know of the data before a training: one line for each fact, and a refusal where no figure would mean anything."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.artifacts.prompts_table import Source
from stages.core.split import SPLITS, Split, SplitParams
from stages.core.windows import DatasetParams
from stages.errors import UserError

HELD_OUT: tuple[Split, ...] = SPLITS[1:]


def refuse_meaningless(figures: Mapping[str, Any], sources: Sequence[Source]) -> None:
    """Refuse held-out rows whose score would say nothing.

    Args:
        figures: those of metrics/data.json.
        sources: the files and what decides the split of their rows.

    Raises:
        UserError: all rows of a split are training rows too, or the vocabulary knows nothing in them.
    """
    for split in HELD_OUT:
        found = figures.get(split)
        if found is None:
            continue
        where = _files(sources, split)
        if found["near_copies_of_train"] == found["rows"]:
            raise UserError(
                f"{where}: all {found['rows']:,} {split} rows are training rows too, apart from case and white space, so that "
                f"their score would only say what was memorised; give other rows, or none, for {split}"
            )
        if found.get("unknown_tokens") and found["unknown_tokens"] == found["text_tokens"]:
            raise UserError(
                f"{where}: every word or character of the {found['rows']:,} {split} rows is unknown to the training rows, so that "
                "a model that always says <UNK> would be right; check the column (data.prompt_column), or use vocabulary.tokenizer: bpe"
            )


def data_notes(
    figures: Mapping[str, Any], split: SplitParams, dataset: DatasetParams, sources: Sequence[Source]
) -> list[str]:
    """Return one line for each fact of the data that a training would not say.

    Args:
        figures: those of metrics/data.json.
        split: what was asked for.
        dataset: how rows become windows.
        sources: the files and what decides the split of their rows.
    """
    asked = [_split_note(name, figures, split, sources) for name in HELD_OUT if getattr(split, name) > 0]
    cut = [_length_note(figures)] if dataset.packing == "rows" else []
    return [
        line
        for line in [*asked, *cut, *map(_copies_note, _held_out(figures)), *map(_unknown_note, _held_out(figures))]
        if line
    ]


def _split_note(name: Split, figures: Mapping[str, Any], split: SplitParams, sources: Sequence[Source]) -> str | None:
    setting = f"split.{name}: {getattr(split, name)}"
    if split.column is not None:
        return f"{setting} is not used: the column {split.column!r} (split.column) says the split of each row"
    named = {source.split for source in sources if isinstance(source.split, str)}
    if name in named:
        return f"{setting} is not used: {_files(sources, name)} has the {name} rows"
    if name not in figures:
        rows = sum(found["rows"] for _, found in _splits(figures))
        return f"{setting} takes none of the {rows:,} rows, so that there are no {name} rows; raise it, or set another split.seed"
    if named:
        rows = figures["train"]["rows"] + sum(
            figures[other]["rows"] for other in HELD_OUT if other in figures and other not in named
        )
        return (
            f"{setting} takes {figures[name]['rows']:,} of the {rows:,} rows of the training files, although the data come split; "
            f"to train on all of them: -S split.{name}=0.0"
        )
    return None


def _length_note(figures: Mapping[str, Any]) -> str | None:
    found = [of_split for _, of_split in _splits(figures)]
    rows, longer = (sum(of_split[name] for of_split in found) for name in ("rows", "longer_than_context"))
    if longer == 0:
        return None
    completions = sum(of_split["rows"] - of_split.get("empty_completions", of_split["rows"]) for of_split in found)
    effect = (
        "their completions lose the prompt" if completions else "they are cut into parts, which do not see each other"
    )
    p95, longest = (max(of_split["tokens_per_row"][name] for of_split in found) - 1 for name in ("p95", "longest"))
    return (
        f"{longer:,} of {rows:,} rows are longer than model.context_length {figures['context_length']}: {effect}; "
        f"95 of 100 rows fit in {p95:,}, all in {longest:,}"
    )


def _copies_note(of_split: tuple[Split, Mapping[str, Any]]) -> str | None:
    split, found = of_split
    if not found["near_copies_of_train"]:
        return None
    return (
        f"{found['near_copies_of_train']:,} of {found['rows']:,} {split} rows are training rows too, apart from case and white "
        "space: their score says what was memorised"
    )


def _unknown_note(of_split: tuple[Split, Mapping[str, Any]]) -> str | None:
    split, found = of_split
    if not found.get("unknown_tokens"):
        return None
    return f"{found['unknown_tokens']:,} of {found['text_tokens']:,} {split} tokens are <UNK>: no training row has their words or characters"


def _splits(figures: Mapping[str, Any]) -> list[tuple[Split, Mapping[str, Any]]]:
    return [(split, figures[split]) for split in SPLITS if split in figures]


def _held_out(figures: Mapping[str, Any]) -> list[tuple[Split, Mapping[str, Any]]]:
    return [(split, found) for split, found in _splits(figures) if split in HELD_OUT]


def _files(sources: Sequence[Source], split: Split) -> str:
    """Return the files that are of a split by their names, else all."""
    files = [str(source.path) for source in sources if source.split == split] or [
        str(source.path) for source in sources
    ]
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1:,} more"
