"""The toy as one Lightning script with nothing around it: what the pipeline's start-up is measured against.

Same CSV, same model, same 30 epochs of batch size 1 as presets/toy.yaml, written as a student would.
"""

import csv
import logging
from pathlib import Path

import lightning
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Toy(lightning.LightningModule):
    """One masked attention layer of width 2."""

    positions: torch.Tensor

    def __init__(self, vocabulary_size: int, d_model: int = 2, context_length: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        angles = torch.arange(context_length)[:, None] / 10000 ** (torch.arange(0, d_model, 2) / d_model)
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        self.register_buffer("positions", table)
        self.queries = nn.Linear(d_model, d_model, bias=False)
        self.keys = nn.Linear(d_model, d_model, bias=False)
        self.values = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, vocabulary_size)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of each next token."""
        x = self.embedding(input_ids) + self.positions[: input_ids.shape[1]]
        scores = self.queries(x) @ self.keys(x).transpose(1, 2) / x.shape[-1] ** 0.5
        later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        x = x + scores.masked_fill(later, float("-inf")).softmax(-1) @ self.values(x)
        logits: torch.Tensor = self.output(x)
        return logits

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Return the loss."""
        input_ids, targets = batch
        loss = functional.cross_entropy(self(input_ids).flatten(0, 1), targets.flatten())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.1)


def main() -> None:
    """Read, train, complete both prompts."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lightning.seed_everything(42, verbose=False)
    with Path("data/prompts.csv").open(encoding="utf-8") as file:
        rows = [(row["prompt"].split(), row["completion"].split()) for row in csv.DictReader(file)]
    words = dict.fromkeys(word for prompt, completion in rows for word in [*prompt, *completion])
    ids = {word: number for number, word in enumerate([*words, "<EOS>"])}
    texts = [
        torch.tensor([ids[word] for word in [*prompt, "<EOS>", *completion, "<EOS>"]]) for prompt, completion in rows
    ]
    examples = TensorDataset(torch.stack([text[:-1] for text in texts]), torch.stack([text[1:] for text in texts]))
    loader = DataLoader(examples, batch_size=1, shuffle=True)
    model = Toy(len(ids))
    trainer = lightning.Trainer(
        max_epochs=30,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    names = list(ids)
    for prompt, _ in rows:
        read = [ids[word] for word in [*prompt, "<EOS>"]]
        with torch.no_grad():
            print(" ".join(prompt), "->", names[int(model(torch.tensor([read]))[0, -1].argmax())])


if __name__ == "__main__":
    main()
