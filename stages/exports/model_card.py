"""README.md of an export: what the model is, how to ask it, what it was made from. Its author fills in the licence."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any

from stages.report.markdown import cell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.artifacts.provenance_json import Provenance
    from stages.core.saved_model import SavedModel
    from stages.exports.proof import Proof

HOW_TO_ASK = {
    "huggingface": """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
output = model.generate(**inputs, max_new_tokens=TOKENS)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```
""",
    "gguf": """\
```console
llama-server --model model.gguf --host 127.0.0.1 --port 8080
curl -s http://127.0.0.1:8080/v1/completions -d REQUEST
```
""",
    "onnx": """\
```python
import numpy as np, onnxruntime, tokenizers

session, tokenizer = onnxruntime.InferenceSession("model.onnx"), tokenizers.Tokenizer.from_file("tokenizer.json")
empty = {each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32) for each in session.get_inputs()[1:]}
token_ids, cache, chosen = np.array([tokenizer.encode(PROMPT).ids]), empty, []
while len(chosen) < TOKENS and chosen[-1:] != [EOS_ID]:
    logits, *present = session.run(None, {"input_ids": token_ids, **cache})  # logits: [1, tokens, vocabulary]
    token_ids, cache = logits[:, -1:].argmax(axis=-1), dict(zip(empty, present))
    chosen.append(int(token_ids[0, 0]))
print(tokenizer.decode(chosen))
```
""",
}


def model_card(
    export: str,
    model: SavedModel,
    eos_id: int,
    provenance: Provenance,
    metrics: Mapping[str, Any],
    prompt: str,
    proof: Proof | None,
) -> str:
    """Write the card.

    Args:
        export: the kind of export, a key of HOW_TO_ASK.
        model: what was exported.
        eos_id: the token that ends its completions.
        provenance: what it was made from.
        metrics: its figures, by name.
        prompt: an example of what it is asked.
        proof: None where the export was not checked.
    """
    config = model.network.config
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    ends = "is ended by `<EOS>`, as in training" if model.prompts_end_with_eos else "is a text to be continued"
    start = provenance.parameters.get("train", {}).get("start_from")
    begun = f"from the weights of {cell(str(start))}" if start else "from scratch"
    rows = "prompts" if model.prompts_end_with_eos else "texts"
    tokens = config.context_length // 2
    # Who copies the command runs none of the data: the shell reads the request as one word.
    request = shlex.quote(json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0}))
    values = {"EOS_ID": str(eos_id), "TOKENS": str(tokens), "PROMPT": ascii(prompt), "REQUEST": request}
    usage = HOW_TO_ASK[export]
    usage = re.sub("|".join(values), lambda name: values[name[0]], usage)
    figures = "".join(f"| {name} | {value} |\n" for name, value in metrics.items())
    data = {path: digest for path, digest in provenance.dependencies.items() if not path.endswith(".py")}
    return f"""\
---
license:
tags: [text-generation, prompt-pipeline]
---

# {config.n_layers} layers, {parameters:,} parameters

Trained {begun} on a table of {rows}. Its context is {config.context_length:,} tokens, its vocabulary {config.vocabulary_size:,}. A prompt
{ends}; the tokenizer beside this file does so.

**Licence**: to be filled in above, by who owns the data.

## Ask it

{usage}
## Figures

| Figure | Value |
|---|---|
{figures or "| none were kept | |" + chr(10)}
## Made from

Training `{provenance.fingerprint}`.

| Data | md5 |
|---|---|
{"".join(f"| {cell(path)} | `{digest}` |{chr(10)}" for path, digest in data.items())}
```json
{json.dumps(provenance.parameters, indent=1, sort_keys=True)}
```

## Proof

{_describe(proof)}
"""


def _describe(proof: Proof | None) -> str:
    if proof is None:
        return "This export was not checked (`--no-check`)."
    tied = f", {proof.tied_completions:,} part at a tie" if proof.tied_completions else ""
    return (
        f"{proof.engine} opened this export. Of {proof.rows:,} prompts of the {proof.split} rows, {proof.equal_completions:,} "
        f"greedy completions are those of the original, token for token{tied}. At {proof.compared_positions:,} places the "
        f"log-probabilities differ by {proof.largest_difference:.1e} at most, as a share of the largest logit "
        f"(allowed: {proof.tolerance:g}). proof.json has the figures."
    )
