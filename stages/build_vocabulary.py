"""Build data/vocabulary.json from the training rows of the table, or take a pretrained tokenizer for it.

Reads the sections data, split and vocabulary of params.yaml.
"""

from functools import partial
from pathlib import Path

from stages.artifacts.pretrained import read_tokenizer
from stages.artifacts.prompts_table import DataParams
from stages.artifacts.stage_inputs import unchanged_inputs
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, write_vocabulary
from stages.command_line import command_parser, run_stage
from stages.core.split import SplitParams
from stages.core.vocabulary import VocabularyParams
from stages.core.vocabulary_building import find_training_pieces, vocabulary_of
from stages.parameters import read_section
from stages.partitions.engine import over_rows
from stages.partitions.engine_params import EngineParams


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
    engine = read_section("runtime", EngineParams)
    find = partial(find_training_pieces, parameters)
    parts = list(over_rows(find, data, split, engine, name="build_vocabulary", quiet=quiet))
    rows = sum(of_part for _, of_part in parts)
    vocabulary = vocabulary_of(parameters, [pieces for pieces, _ in parts])
    write_vocabulary(vocabulary)
    if not quiet:
        tokens = f"{vocabulary.size:,} tokens ({vocabulary.name})"
        print(f"vocabulary: {tokens} from {rows:,} training rows -> {VOCABULARY_FILE}")


if __name__ == "__main__":
    run_stage(main)
