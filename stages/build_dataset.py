"""Encode every row of the CSV with data/vocabulary.json, into data/dataset/.

Reads the sections data, split and dataset of params.yaml.
"""

from contextlib import ExitStack

from stages.artifacts.dataset import (
    DATASET_FOLDER,
    DatasetMetadata,
    SplitMetadata,
    make_folder,
    start_writing,
    write_metadata,
)
from stages.artifacts.prompts_table import DataParams, read_prompts
from stages.artifacts.token_shards import open_shard_writer, shard_path
from stages.artifacts.vocabulary_json import read_vocabulary
from stages.command_line import command_parser, run_stage, with_progress
from stages.core.frames import UnusableTextError, place, rows_of
from stages.core.rows import Scored, count_scored, encode_rows
from stages.core.split import SPLITS, SplitParams
from stages.core.windows import DatasetParams
from stages.errors import UserError
from stages.inputs import unchanged_inputs
from stages.parameters import read_section


@unchanged_inputs("build_dataset")
def main() -> None:
    """Run the stage."""
    quiet = command_parser(__doc__).parse_args().quiet
    data = read_section("data", DataParams)
    split_parameters = read_section("split", SplitParams)
    parameters = read_section("dataset", DatasetParams)
    vocabulary = read_vocabulary()

    scored = dict.fromkeys(SPLITS, Scored(0, 0))
    make_folder()
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(open_shard_writer(shard_path(DATASET_FOLDER, split), vocabulary.size))
            for split in SPLITS
        }
        for frame in with_progress(read_prompts(data, split_parameters), "build_dataset", quiet=quiet):
            for split, writer in writers.items():
                part = rows_of(frame, split)
                if len(part) == 0:
                    continue
                try:
                    rows = encode_rows(vocabulary, part)
                except UnusableTextError as error:
                    raise UserError(f"{place(part, error.row, error.column)}: {error}") from None
                scored[split] += count_scored(vocabulary, part, rows, parameters, begins_split=writer.rows == 0)
                writer.append(rows.token_ids, rows.row_lengths, rows.prompt_lengths)
        start_writing()
    metadata = DatasetMetadata(
        vocabulary_size=vocabulary.size,
        eos_id=vocabulary.eos_id,
        parameters=parameters,
        splits={
            split: SplitMetadata(
                rows=writer.rows,
                tokens=writer.tokens,
                scored_tokens=scored[split].tokens,
                scored_bytes=scored[split].bytes,
                sha256=writer.sha256,
            )
            for split, writer in writers.items()
        },
    )
    write_metadata(metadata)
    if not quiet:
        counts = ", ".join(
            f"{split} {part.rows:,} rows ({part.tokens:,} tokens)" for split, part in metadata.splits.items()
        )
        print(f"dataset: {counts} -> {DATASET_FOLDER}/")


if __name__ == "__main__":
    run_stage(main)
