"""docs/finetune.md as a newcomer follows it: random models of transformers come in, are trained on, go out, and are opened."""

import json
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.artifacts.model_weights import read_model
from tests.project import Project

ROWS = [f"what is {number} plus one,{number + 1}" for number in range(20)]
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "config": {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2},
        "params": {"context_length: 1024": "context_length: 32", "d_model: 768": "d_model: 16", "n_layers: 12": "n_layers: 2", "n_heads: 12": "n_heads: 2"},
    },
    "llama": {
        "config": {
            "max_position_embeddings": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
        "params": {
            "context_length: 1024": "context_length: 32", "d_model: 768": "d_model: 16", "n_layers: 12": "n_layers: 2", "n_heads: 12": "n_heads: 4",
            "n_kv_heads: null": "n_kv_heads: 2", "d_ff: null": "d_ff: 24", "feed_forward: gelu_tanh": "feed_forward: swiglu", "norm: layer": "norm: rms",
            "positions: learned": "positions: rotary", "rope_theta: 10000.0": "rope_theta: 500000.0", "  bias: true": "  bias: false", "tie_embeddings: true": "tie_embeddings: false",
        },
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_in_ten_steps_of_dvc_repro_out_and_opened_again(kind: str, project: Project) -> None:
    transformers = pytest.importorskip("transformers")
    (project.folder / "data/prompts.csv").write_text("prompt,completion\n" + "\n".join(ROWS) + "\n", encoding="utf-8")
    tokenizer = byte_pairs()
    tokenizer.save(str(project.folder / "pretrained/tokenizers/gpt2.json"))
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=tokenizer.get_vocab_size(), eos_token_id=0, **MODELS[kind]["config"]
    )
    torch.manual_seed(5)
    start = transformers.AutoModelForCausalLM.from_config(config)
    folder = project.folder / "pretrained/models/gpt2"
    start.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))

    project.run("python", "-m", "presets.use", "finetune")
    for old, new in {**MODELS[kind]["params"], "epochs: 3": "epochs: null", "max_steps: null": "max_steps: 10"}.items():
        project.replace("params.yaml", old, new)
    project.run("dvc", "repro")
    project.run("python", "-m", "stages.commands.export", "huggingface", "exports/out")

    assert json.loads((project.folder / "metrics/train.json").read_text())["steps"] == 10
    proof = json.loads((project.folder / "exports/out/proof.json").read_text())
    assert proof["equal_completions"] + proof["tied_completions"] == proof["rows"] > 0
    model, _ = read_model(project.folder / "data/model", project.folder / "data/vocabulary.json")
    opened = transformers.AutoModelForCausalLM.from_pretrained(project.folder / "exports/out").eval()
    token_ids = torch.randint(tokenizer.get_vocab_size(), (3, 32))
    with torch.inference_mode():
        ours, theirs, before = model.network(token_ids), opened(token_ids).logits, start.eval()(token_ids).logits
    assert type(opened) is type(start)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert 0 < (ours - before).abs().max() < 1  # trained, from there


def byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(ROWS, trainer)
    return tokenizer
