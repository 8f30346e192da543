import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stages.artifacts import model_weights
from stages.artifacts.metrics_json import read_json, write_json
from stages.artifacts.model_weights import read_model, write_model
from stages.artifacts.provenance_json import MODEL_FOLDER, Provenance, md5, read_provenance
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, write_vocabulary
from stages.core.saved_model import SavedModel
from stages.core.vocabulary import VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.errors import UserError
from tests.frames import frame_of_texts
from tests.training.conftest import network

CHARACTERS = VocabularyParams(tokenizer="character", size=8000, unknown_token=False)


class Killed(BaseException):
    """Ends a write as a signal would."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the vocabulary of the letters a to j."""
    monkeypatch.chdir(tmp_path)
    write_letters("abcdefghij")


def write_letters(letters: str, path: Path = VOCABULARY_FILE) -> None:
    write_vocabulary(build_vocabulary(CHARACTERS, [frame_of_texts([letters])]), path)


def write(value: float) -> None:
    """Write a model whose parameters are all ``value``, of a run that is named by it."""
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    dependencies = {str(VOCABULARY_FILE): md5(VOCABULARY_FILE)}
    provenance = Provenance(fingerprint=f"{int(value):016x}", dependencies=dependencies, parameters={})
    write_model(MODEL_FOLDER, SavedModel(model, prompts_end_with_eos=value > 1), provenance)


def read() -> tuple[float, bool, str]:
    """Return what tells the models of ``write`` apart, from each of the files."""
    model, _ = read_model()
    first_weight = float(model.network.output.weight[0, 0])
    return first_weight, model.prompts_end_with_eos, read_provenance(MODEL_FOLDER).fingerprint[-1]


def test_a_write_that_is_killed_leaves_the_old_model_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before each of the three files takes its name."""
    replace = Path.replace

    def kill_before(nth: int) -> None:
        places: Iterator[int] = iter(range(3))

        def replace_or_die(self: Path, target: Path) -> Path:
            if next(places) == nth:
                raise Killed
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", replace_or_die)

    for nth in range(3):
        write(1.0)
        kill_before(nth)
        with pytest.raises(Killed):
            write(2.0)
        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(UserError, match=r"model\.safetensors: not found; make it with `dvc repro`"):
            read()
    write(2.0)
    assert read() == (2.0, True, "2")


def test_a_disk_that_is_full_of_weights_leaves_the_old_model(monkeypatch: pytest.MonkeyPatch) -> None:
    write(1.0)

    def fail(_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_weights, "save", fail)
    with pytest.raises(OSError, match="No space"):
        write(2.0)
    assert read() == (1.0, False, "1")


@pytest.mark.parametrize("letters", ["abcdefghix", "abc"])
def test_a_vocabulary_that_the_model_was_not_trained_with_is_refused(letters: str) -> None:
    write(1.0)
    write_letters(letters, Path("other.json"))
    with pytest.raises(UserError, match=r"^other\.json: different .* data/model/ .*; give the model's own"):
        read_model(MODEL_FOLDER, Path("other.json"))
    assert read()
    write_letters(letters)
    with pytest.raises(UserError, match=r"^data/vocabulary\.json: different .* data/model/ .*; type `dvc repro`"):
        read()


def test_every_flipped_bit_of_the_weights_is_found() -> None:
    write(1.0)
    path = MODEL_FOLDER / "model.safetensors"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 997):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"^data/model/model\.safetensors: damaged: its SHA-256"):
            read()


def test_a_model_from_before_its_hash_was_written_is_read() -> None:
    write(1.0)
    config = read_json(MODEL_FOLDER / "config.json")
    del config["weights_sha256"]
    write_json(MODEL_FOLDER / "config.json", config)
    assert read() == (1.0, False, "1")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "provenance.json", "../vocabulary.json"])
def test_a_pipe_is_not_waited_for(name: str) -> None:
    write(1.0)
    (MODEL_FOLDER / name).unlink()
    os.mkfifo(MODEL_FOLDER / name)
    with pytest.raises(UserError, match=rf"{Path(name).name}: expected a file"):
        read()


def test_a_model_is_read_from_elsewhere_with_its_vocabulary(tmp_path: Path) -> None:
    write(1.0)
    Path("data").rename("elsewhere")
    model, vocabulary = read_model(tmp_path / "elsewhere/model", Path("elsewhere/vocabulary.json"))
    assert model.network.config.vocabulary_size == vocabulary.size


@pytest.mark.parametrize(("name", "value"), [("norm_eps", 0.5), ("rope_theta", 5.0), ("dropout", 0.5)])
def test_a_configuration_that_changes_figures_but_no_weight_is_refused(name: str, value: object) -> None:
    write(1.0)
    provenance, config = read_json(MODEL_FOLDER / "provenance.json"), read_json(MODEL_FOLDER / "config.json")
    provenance["parameters"] = {"model": {key: config["architecture"][key] for key in ("d_model", name)}}
    write_json(MODEL_FOLDER / "provenance.json", provenance)
    assert read() == (1.0, False, "1")
    config["architecture"][name] = value
    write_json(MODEL_FOLDER / "config.json", config)
    with pytest.raises(
        UserError, match=rf"config\.json: architecture\.{name}: found '?{value}'?, but provenance\.json"
    ):
        read()


@pytest.mark.parametrize(("key", "value"), [("d_model", "2"), ("n_layers", -1), ("rope_theta", "x")])
def test_what_is_wrong_in_a_configuration_is_named_with_its_key(key: str, value: object) -> None:
    write(1.0)
    config = read_json(MODEL_FOLDER / "config.json")
    config["architecture"][key] = value
    write_json(MODEL_FOLDER / "config.json", config)
    with pytest.raises(
        UserError, match=rf"config\.json: not a model's configuration: architecture\.{key}: Input .*; type"
    ):
        read()


@pytest.mark.parametrize("size", ["n_layers", "d_model", "context_length", "vocabulary_size", "d_ff"])
@pytest.mark.parametrize("value", [3, 10**6, 10**12, 10**19])
def test_a_configuration_that_describes_another_model_takes_no_memory(size: str, value: int) -> None:
    write(1.0)
    config = read_json(MODEL_FOLDER / "config.json")
    config["architecture"][size] = value
    write_json(MODEL_FOLDER / "config.json", config)
    with pytest.raises(UserError, match=r"^data/model/(model\.safetensors: does not fit|config\.json: not a model's)"):
        read()
