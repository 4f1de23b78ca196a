"""How `saved_dataset` was made: by the real library, `datasets` 5.2.0.

python -m venv /tmp/v && /tmp/v/bin/pip install datasets==5.2.0
/tmp/v/bin/python tests/data/make_dataset.py
"""

from pathlib import Path

from datasets import Dataset, DatasetDict  # type: ignore[import-not-found]


def texts(count: int, word: str) -> list[str]:
    """As `tests/retnet_edge/data/test_sources.py` expects them."""
    return [f"{word} {i}: the naïve café was closed on day {i * 7}." for i in range(count)]


train = Dataset.from_dict({"id": list(range(40)), "text": texts(40, "Document")})
valid = Dataset.from_dict({"id": list(range(5)), "text": texts(5, "Held out")})
# shuffled and put in order again, so that what is written went through an indices mapping
train = train.shuffle(seed=0).sort("id")
DatasetDict({"train": train, "validation": valid}).save_to_disk(
    Path(__file__).parent / "saved_dataset", num_shards={"train": 3, "validation": 1}
)
