"""Encode every row of the table with data/vocabulary.json, into data/dataset/, and say in metrics/data.json what came in.

Reads the sections data, split and dataset of params.yaml, and model.context_length.
"""

import sys
from contextlib import ExitStack
from functools import partial

from stages.artifacts.dataset import (
    DATASET_FOLDER,
    DatasetMetadata,
    SplitMetadata,
    make_folder,
    start_writing,
    write_metadata,
)
from stages.artifacts.key_spool import KeySpool, open_key_spool
from stages.artifacts.metrics_json import DATA_METRICS, write_json
from stages.artifacts.prompts_table import DataParams, find_sources
from stages.artifacts.regular_file import hash_file
from stages.artifacts.stage_inputs import unchanged_inputs
from stages.artifacts.table_csv import ROW_LENGTHS, ROWS_BY_FILE, write_table
from stages.artifacts.token_shards import TokenShardWriter, open_shard_writer, shard_path
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, read_vocabulary
from stages.command_line import command_parser, run_stage
from stages.core.data_figures import RowCounts, count_copies, data_figures, fitting_rows, rows_by_file
from stages.core.prepared_rows import PreparedRows, prepare_rows
from stages.core.rows import Scored
from stages.core.split import SPLITS, SplitParams
from stages.core.text_keys import digest_key
from stages.core.windows import ContextParams, DatasetParams
from stages.parameters import read_section
from stages.partitions.engine import over_rows
from stages.partitions.engine_params import EngineParams
from stages.report.data_notes import data_notes, refuse_meaningless


@unchanged_inputs("build_dataset")
def main() -> None:
    """Run the stage."""
    quiet = command_parser(__doc__).parse_args().quiet
    data = read_section("data", DataParams)
    split_parameters = read_section("split", SplitParams)
    parameters = read_section("dataset", DatasetParams)
    context_length = read_section("model", ContextParams).context_length
    engine = read_section("runtime", EngineParams)
    vocabulary = read_vocabulary()
    sources = find_sources(data, split_parameters)
    near_copies = split_parameters.holds_out or len({source.split for source in sources}) > 1

    make_folder()
    with ExitStack() as stack:
        parts = {
            split: SplitPart(
                stack.enter_context(open_shard_writer(shard_path(DATASET_FOLDER, split), vocabulary.size)),
                stack.enter_context(open_key_spool(DATASET_FOLDER)),
            )
            for split in SPLITS
        }
        # Processes agree on the digests of texts, which take longer than Python's own hash.
        text_key = hash if engine.dask is None else digest_key
        prepare = partial(prepare_rows, vocabulary, parameters, text_key, near_copies=near_copies)
        for prepared in over_rows(prepare, data, split_parameters, engine, name="build_dataset", quiet=quiet):
            for split, rows in prepared.items():
                parts[split].add(rows)
        counts = {split: part.counts for split, part in parts.items()}
        copies = count_copies({split: part.keys for split, part in parts.items()})
        with_completions = data.completion_column is not None
        figures = data_figures(counts, copies, context_length, vocabulary, with_completions=with_completions)
        refuse_meaningless(figures, sources)
        start_writing()
    write_json(DATA_METRICS, figures)
    write_table(ROW_LENGTHS, ["split", "context_length", "share_of_rows"], fitting_rows(counts))
    write_table(ROWS_BY_FILE, ["file", "split", "rows"], rows_by_file(counts))
    metadata = DatasetMetadata(
        vocabulary_size=vocabulary.size,
        eos_id=vocabulary.eos_id,
        vocabulary_sha256=hash_file(VOCABULARY_FILE),
        parameters=parameters,
        splits={split: part.metadata() for split, part in parts.items()},
    )
    write_metadata(metadata)
    if not quiet:
        described = ", ".join(
            f"{split} {part.rows:,} rows ({part.tokens:,} tokens)" for split, part in metadata.splits.items()
        )
        print(f"dataset: {described} -> {DATASET_FOLDER}/")
        for note in data_notes(figures, split_parameters, parameters, sources):
            print(note, file=sys.stderr)


class SplitPart:
    """What is made of the rows of one split, frame by frame."""

    def __init__(self, writer: TokenShardWriter, keys: KeySpool) -> None:
        """Take where its tokens and its keys go."""
        self._writer = writer
        self._scored = Scored(0, 0)
        self.keys = keys
        self.counts = RowCounts()

    def add(self, rows: PreparedRows) -> None:
        """Append rows."""
        self._scored += rows.scored if self._writer.rows else rows.scored_as_first
        self._writer.append(rows.encoded.token_ids, rows.encoded.row_lengths, rows.encoded.prompt_lengths)
        self.counts += rows.counts
        self.keys.append(rows.keys)

    def metadata(self) -> SplitMetadata:
        """Return what metadata.json says of the split; its file is written."""
        return SplitMetadata(
            rows=self._writer.rows,
            tokens=self._writer.tokens,
            scored_tokens=self._scored.tokens,
            scored_bytes=self._scored.bytes,
            sha256=self._writer.sha256,
        )


if __name__ == "__main__":
    run_stage(main)
