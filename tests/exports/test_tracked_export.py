"""The optional fifth stage that docs/export.md shows, as a user would add it."""

import json
import re
import sys

import pytest

from tests.project import ROOT, Project

BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/export.md").read_text(encoding="utf-8"), re.DOTALL)
LLAMA = {
    "feed_forward: none": "feed_forward: swiglu", "norm: none": "norm: rms", "positions: sinusoidal": "positions: rotary",
    "output_bias: true": "output_bias: false", "  d_model: 2\n": "  d_model: 16\n",
    "learning_rate: 0.1": "learning_rate: 0.01",
}  # fmt: skip


@pytest.mark.slow
def test_the_fifth_stage_is_tracked_pulled_and_loaded(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stage, artifact = BLOCKS
    project.replace("dvc.yaml", "\n# `dvc artifacts get", f"\n{stage}\n# `dvc artifacts get")
    project.replace("dvc.yaml", "artifacts:\n", f"artifacts:\n{artifact}")
    for old, new in LLAMA.items():
        project.replace("params.yaml", old, new)
    stages = ["build_vocabulary", "build_dataset", "train", "evaluate", "export"]
    assert project.stages_run("repro") == stages
    folder = project.folder / "exports/huggingface"
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["equal_completions"] == proof["rows"] == 2
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert project.stages_run("repro") == []
    assert project.stages_run("repro", "--force", "--single-item", "export") == ["export"]  # to the same bytes
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    remote = tmp_path_factory.mktemp("remote")
    project.run("dvc", "remote", "add", "--default", "team", str(remote))
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "Export")
    project.run("dvc", "push", "--quiet")
    project.run("git", "tag", "--annotate", "huggingface@v1.0.0", "--message", "First")
    colleague = Project(tmp_path_factory.mktemp("colleague") / "project")
    project.run("git", "clone", "--quiet", ".", str(colleague.folder))
    colleague.run("dvc", "pull", "--quiet", "exports/huggingface")
    program = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, tokenizer = (kind.from_pretrained('exports/huggingface') for kind in (AutoModelForCausalLM, AutoTokenizer))\n"
        "inputs = tokenizer('what is CNN', return_tensors='pt', return_token_type_ids=False)\n"
        "output = model.generate(**inputs, max_new_tokens=2)[0, inputs['input_ids'].shape[1]:]\n"
        "print(tokenizer.decode(output, skip_special_tokens=True))"
    )
    assert colleague.run(sys.executable, "-c", program).stdout == "Great\n"
    program = "from stages.load import load; print(load('exports/huggingface').complete(['CNN is what']))"
    assert colleague.run(sys.executable, "-c", program).stdout == "['Great']\n"
    colleague.run("dvc", "artifacts", "get", str(project.folder), "huggingface", "--out", "served")
    assert (colleague.folder / "served/config.json").read_bytes() == before["config.json"]
