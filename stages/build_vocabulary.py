"""Build data/vocabulary.json from the training rows of the table, or take a pretrained tokenizer for it.

Reads the sections data, split and vocabulary of params.yaml.
"""

from collections.abc import Iterator
from pathlib import Path

from stages.artifacts.pretrained import read_tokenizer
from stages.artifacts.prompts_table import DataParams, read_prompts
from stages.artifacts.stage_inputs import unchanged_inputs
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, write_vocabulary
from stages.command_line import command_parser, run_stage, with_progress
from stages.core.frames import Frame, UnusableTextError, place, rows_of
from stages.core.split import SplitParams
from stages.core.vocabulary import VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.errors import UserError
from stages.parameters import read_section


@unchanged_inputs("build_vocabulary")
def main() -> None:
    """Run the stage."""
    quiet = command_parser(__doc__).parse_args().quiet
    data = read_section("data", DataParams)
    split = read_section("split", SplitParams)
    parameters = read_section("vocabulary", VocabularyParams)
    if parameters.file is not None:
        vocabulary = read_tokenizer(Path(parameters.file), parameters)
        write_vocabulary(vocabulary)
        if not quiet:
            print(
                f"vocabulary: {vocabulary.size:,} tokens ({vocabulary.name}) of {parameters.file} -> {VOCABULARY_FILE}"
            )
        return
    frame: Frame = None
    rows = 0

    def training_rows() -> Iterator[Frame]:
        nonlocal frame, rows
        for read in with_progress(read_prompts(data, split), "build_vocabulary", quiet=quiet):
            frame = rows_of(read, "train")
            rows += len(frame)
            yield frame

    try:
        vocabulary = build_vocabulary(parameters, training_rows())
    except UnusableTextError as error:
        raise UserError(f"{place(frame, error.row, error.column)}: {error}") from None
    write_vocabulary(vocabulary)
    if not quiet:
        tokens = f"{vocabulary.size:,} tokens ({vocabulary.name})"
        print(f"vocabulary: {tokens} from {rows:,} training rows -> {VOCABULARY_FILE}")


if __name__ == "__main__":
    run_stage(main)
