import hashlib

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.split import SPLITS, Split, SplitParams
from stages.core.split import splits_of as split_codes_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def parameters(validation: float = 0.2, test: float = 0.1, seed: int = 0) -> SplitParams:
    return SplitParams(validation=validation, test=test, seed=seed, column=None)


def splits_of(texts: list[str], parameters: SplitParams) -> list[Split]:
    return [SPLITS[code] for code in split_codes_of(map(str.encode, texts), parameters)]


def test_fractions_are_kept() -> None:
    splits = splits_of([f"prompt {n}" for n in range(20_000)], parameters())
    assert splits.count("validation") / len(splits) == pytest.approx(0.2, abs=0.01)
    assert splits.count("test") / len(splits) == pytest.approx(0.1, abs=0.01)


def test_splits_are_the_same_on_every_platform_and_release() -> None:
    splits = splits_of([f"prompt {n}" for n in range(20)], parameters(0.3, 0.3))
    assert [n for n, split in enumerate(splits) if split == "validation"] == [1, 10, 14, 17]
    assert [n for n, split in enumerate(splits) if split == "test"] == [2, 4, 6, 8, 13, 15]


def test_another_seed_holds_out_other_rows() -> None:
    first, second = (splits_of([str(n) for n in range(1000)], parameters(seed=seed)) for seed in (0, 1))
    assert first != second


@given(TEXT, st.floats(0, 0.4), st.floats(0, 0.5))
def test_raising_the_test_fraction_moves_no_row_into_or_out_of_validation(
    text: str, validation: float, test: float
) -> None:
    (without,) = splits_of([text], parameters(validation, 0.0))
    (with_test,) = splits_of([text], parameters(validation, test))
    assert (with_test == "validation") == (without == "validation")


@given(TEXT)
def test_nothing_is_held_out_by_default(text: str) -> None:
    assert splits_of([text], parameters(0.0, 0.0)) == ["train"]


def test_the_fraction_is_a_keyed_blake2b_of_the_text() -> None:
    digest = hashlib.blake2b("é".encode(), digest_size=8, key=(7).to_bytes(8, "little")).digest()
    fraction = int.from_bytes(digest, "little") / 2**64
    assert splits_of(["é"], parameters(fraction + 1e-9, 0.0, seed=7)) == ["validation"]
    assert splits_of(["é"], parameters(fraction - 1e-9, 0.0, seed=7)) == ["train"]


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.9, 0.2), (-0.1, 0.0), (1.0, 0.0), (float("nan"), 0.0)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(validation: float, test: float) -> None:
    with pytest.raises(pydantic.ValidationError):
        parameters(validation, test)
