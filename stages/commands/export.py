"""Write the model for other programs, and prove that they compute the same: transformers, llama.cpp or ONNX Runtime.

An example: `python -m stages.commands.export huggingface exports/huggingface`.
"""

import argparse
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages import command_line
from stages.artifacts.dataset import DATASET_FOLDER, open_held_out, read_metadata
from stages.artifacts.metrics_json import read_json, write_json
from stages.artifacts.model_weights import read_model
from stages.artifacts.provenance_json import MODEL_FOLDER, Provenance, md5, read_provenance
from stages.artifacts.vocabulary_json import VOCABULARY_FILE
from stages.core.saved_model import SavedModel
from stages.core.vocabulary import Vocabulary
from stages.errors import UserError
from stages.exports.engines import Engine
from stages.exports.huggingface import Transformers, write_huggingface
from stages.exports.llama_cpp import LlamaCpp, write_gguf
from stages.exports.model_card import model_card
from stages.exports.onnx_runtime import OnnxRuntime, write_onnx
from stages.exports.proof import PROOF_FILE, Proof, Question, ask_split, prove
from stages.parameters import read_section
from stages.tracking.exports import fetch_model, log_proof, logged_figures
from stages.training.runtime import RuntimeParams

CARD_FILE = "README.md"
FIGURES = (Path("metrics/evaluate.json"), Path("metrics/train.json"))


@dataclass(frozen=True)
class Format:
    """A kind of export: how it is written, and what opens it, in every way that it is run."""

    write: Callable[[Path, SavedModel, Vocabulary], None]
    engines: tuple[Callable[[Path, Vocabulary], Engine], ...]

    def open(self, folder: Path, vocabulary: Vocabulary) -> list[Engine]:
        """Return the engine, with the folder opened, for each way."""
        return [engine(folder, vocabulary) for engine in self.engines]


FORMATS = {
    "huggingface": Format(write_huggingface, (Transformers,)),
    "gguf": Format(write_gguf, (LlamaCpp,)),
    "onnx": Format(write_onnx, (OnnxRuntime, partial(OnnxRuntime, cached=False))),
}


def main() -> None:
    """Export data/model/, or a run's model."""
    options = parse_options()
    refuse_used_folder(options.folder)
    runtime = read_section("runtime", RuntimeParams)
    runtime.limit_threads()
    with ExitStack() as until_end:
        model_folder, vocabulary_file, metrics = MODEL_FOLDER, VOCABULARY_FILE, read_figures()
        if options.run:
            fetched = Path(until_end.enter_context(TemporaryDirectory()))
            model_folder, vocabulary_file = fetch_model(options.run, fetched)
            metrics = logged_figures(model_folder)
        model, vocabulary = read_model(model_folder, vocabulary_file)
        provenance = read_provenance(model_folder)
        partial = options.folder.with_name(options.folder.name + ".partial")
        until_end.callback(shutil.rmtree, partial, ignore_errors=True)
        proof = export(options.format, partial, model, vocabulary, provenance, metrics, check=options.check)
        if options.folder.exists():
            options.folder.rmdir()  # it is empty
        partial.replace(options.folder)
    if proof is not None:
        required = runtime.tracking == "required"
        log_proof(provenance.fingerprint, options.folder / PROOF_FILE, options.format, required=required)
    if not options.quiet:
        print(describe(options.folder, proof))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line.command_parser(__doc__)
    parser.add_argument("format", choices=FORMATS, help="what is to open it: transformers, llama.cpp or ONNX Runtime")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder to write")
    parser.add_argument(
        "--run", help="an MLflow run's model: its id, or the address models:/ID or models:/NAME/VERSION"
    )
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="do not compare: the other program is not needed"
    )
    return parser.parse_args()


def export(
    name: str,
    folder: Path,
    model: SavedModel,
    vocabulary: Vocabulary,
    provenance: Provenance,
    metrics: Mapping[str, Any],
    *,
    check: bool,
) -> Proof | None:
    """Write an export with its card and, where it is checked, its proof, which is returned.

    Raises:
        UserError: the format has no place for the model, a program is not installed, the data of the training are not
            here, or the other program computes something else.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    split, questions = questions_of(model, provenance) if check else ("", [])
    FORMATS[name].write(folder, model, vocabulary)
    proof = None
    if check:
        engines = FORMATS[name].open(folder, vocabulary)
        proof = prove(
            engines, model, vocabulary, questions, export=name, fingerprint=provenance.fingerprint, split=split
        )
        if not proof.holds:
            raise UserError(
                f"{proof.engine} computes something else, so that nothing was exported: {proof.model_dump_json()}"
            )
        write_json(folder / PROOF_FILE, proof.model_dump())
    prompt = vocabulary.decode(questions[0].prompt) if questions else ""
    card = model_card(name, model, vocabulary.eos_id, provenance, metrics, prompt, proof)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return proof


def questions_of(model: SavedModel, provenance: Provenance) -> tuple[str, list[Question]]:
    """Return the scored split of the training's data, and its prompts.

    Raises:
        UserError: data/dataset/ is not what the model was trained from.
    """
    metadata = read_metadata()
    if provenance.dependencies.get(DATASET_FOLDER.as_posix()) != md5(DATASET_FOLDER):
        raise UserError(
            f"{DATASET_FOLDER}/: not what the model was trained from, so it cannot be checked on its rows; bring them "
            "back with `dvc repro build_dataset` for the run's params.yaml and data, or give --no-check"
        )
    context_length = model.network.config.context_length
    split, examples = open_held_out(metadata, context_length)
    return split, ask_split(examples, context_length)


def read_figures() -> dict[str, Any]:
    """Return the figures under metrics/, as far as there are any."""
    return {name: value for path in FIGURES if path.exists() for name, value in read_json(path).items()}


def refuse_used_folder(folder: Path) -> None:
    """Let an export delete nothing.

    Raises:
        UserError: there is something already.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise UserError(f"{folder}: exists already, allowed: a new folder; name another, or delete it")


def describe(folder: Path, proof: Proof | None) -> str:
    """Return what was done as a line for people."""
    if proof is None:
        return f"exported, not checked -> {folder}/"
    tied = f" and {proof.tied_completions:,} at a tie" if proof.tied_completions else ""
    return (
        f"exported and checked by {proof.engine}: {proof.equal_completions:,} of {proof.rows:,} completions are equal{tied}, "
        f"largest difference {proof.largest_difference:.1e} -> {folder}/"
    )


if __name__ == "__main__":
    command_line.run(main)
