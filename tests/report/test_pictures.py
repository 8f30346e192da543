import io

import matplotlib as mpl
import pytest
from PIL import Image

from stages.report.content import ReportContent
from stages.report.pictures import Curve, curve_pictures, model_pictures
from tests.report.conftest import make_content


def test_the_same_model_gives_the_same_pictures(shown: ReportContent) -> None:
    pictures = model_pictures(shown)
    assert pictures == model_pictures(make_content())
    assert {"token_embeddings.png", "position_encodings.png", "attention_1.png", "next_tokens_2.png"} <= set(pictures)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_every_kind_of_position_can_be_drawn(positions: str) -> None:
    assert "position_encodings.png" in model_pictures(make_content([("a", "b")], positions=positions))


def test_a_large_model_gives_small_pictures() -> None:
    long = [("\u4e2d " + " ".join(f"word{index}" for index in range(100)), "end")]
    shown = make_content(long, context_length=128, n_layers=9, n_heads=8, d_model=16)
    for name, content in model_pictures(shown).items():
        assert len(content) < 300_000, name
        assert max(Image.open(io.BytesIO(content)).size) < 4000, name


def test_the_same_curves_give_the_same_pictures() -> None:
    loss = [(step, 1 / step) for step in range(1, 31)]

    def draw(train_loss: Curve = loss) -> dict[str, bytes]:
        rates = [(step, 0.1) for step, _ in loss]
        return curve_pictures(train_loss, loss[::10], rates, [(1, 1.0), (2, 0.5)], [("CNN", "what", 1)])

    pictures = draw()
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 20}):  # of a user's own
        assert draw() == pictures
    assert draw(loss[1:])["loss.png"] != pictures["loss.png"]


def test_curves_that_are_empty_can_be_drawn() -> None:
    pictures = curve_pictures([(1, 2.0)], [], [(1, 0.1)], [], [])
    assert set(pictures) == {"loss.png", "learning_rate.png", "accuracy_by_position.png", "confusions.png"}
