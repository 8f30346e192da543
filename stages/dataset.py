"""Open one split of data/dataset/ as examples for a model."""

from stages.artifacts.token_shards import DATASET_FOLDER, DatasetMetadata, open_shard, shard_path
from stages.core.examples import Examples
from stages.core.split import Split
from stages.core.windows import DatasetParameters


def open_examples(split: Split, metadata: DatasetMetadata, context_length: int) -> Examples | None:
    """Return the examples of a split, read as they are needed; None where it has no rows.

    Raises:
        UserError: the file is absent or damaged.
    """
    shard = open_shard(shard_path(DATASET_FOLDER, split))
    if not shard.rows:
        return None
    parameters = DatasetParameters(packing=metadata.packing, loss_on=metadata.loss_on, stride=metadata.stride)
    return Examples(shard.token_ids, shard.row_spans, parameters, context_length, metadata.eos_id)
