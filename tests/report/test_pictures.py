import io
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from stages.report.content import ReportContent
from stages.report.pictures import evaluation_pictures, model_pictures, write_pictures
from tests.report.conftest import make_content


def test_the_same_model_gives_the_same_pictures(content: ReportContent) -> None:
    pictures = model_pictures(content)
    assert pictures == model_pictures(make_content())
    assert {"token_embeddings.png", "position_encodings.png", "attention_1.png", "next_tokens_2.png"} <= set(pictures)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_every_kind_of_position_can_be_drawn(positions: str) -> None:
    assert "position_encodings.png" in model_pictures(make_content([("a", "b")], positions=positions))


def test_a_large_model_gives_small_pictures() -> None:
    long = [("\u4e2d " + " ".join(f"word{index}" for index in range(100)), "end")]
    content = make_content(long, context_length=128, n_layers=9, n_heads=8, d_model=16)
    for name, picture in model_pictures(content).items():
        assert len(picture) < 300_000, name
        assert max(Image.open(io.BytesIO(picture)).size) < 4000, name


def test_the_same_figures_give_the_same_pictures() -> None:
    def draw(accuracy: float = 1.0) -> dict[str, bytes]:
        return evaluation_pictures([(1, accuracy), (2, 0.5)], [("CNN", "what", 1)])

    pictures = draw()
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 20}):  # of a user's own
        assert draw() == pictures
    assert draw(0.25)["accuracy_by_position.png"] != pictures["accuracy_by_position.png"]


def test_an_evaluation_without_tokens_can_be_drawn() -> None:
    assert set(evaluation_pictures([], [])) == {"accuracy_by_position.png", "confusions.png"}


def test_the_pictures_of_an_earlier_evaluation_are_deleted(tmp_path: Path) -> None:
    write_pictures(tmp_path / "model", {"attention_1.png": b"1", "attention_2.png": b"2"})
    assert write_pictures(tmp_path / "model", {"attention_1.png": b"3"}) == [tmp_path / "model/attention_1.png"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == {"attention_1.png": b"3"}
