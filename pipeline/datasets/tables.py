"""Tables on disk: one Parquet file per split, a column `input` of equally long lists and a column `target`."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.manifest import Artifact
from pipeline.artifacts.publishing import Draft


def write(draft: Draft, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes `(input (rows, width), target (rows,))` of each split, as float32, and the facts that readers need."""
    for split, (rows, target) in splits.items():
        flat = pa.array(np.ascontiguousarray(rows, dtype=np.float32).reshape(-1))
        table = pa.table(
            {
                "input": pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]),
                "target": pa.array(np.asarray(target, dtype=np.float32)),
            }
        )
        pq.write_table(table, draft.path(f"{split}.parquet"))
    width = next(iter(splits.values()))[0].shape[1]
    draft.facts |= {"form": "table", "width": width, "rows": {split: len(target) for split, (_, target) in splits.items()}}


def read(dataset: Artifact, split: str) -> tuple[np.ndarray, np.ndarray]:
    """`input (rows, width)` and `target (rows,)` of a split, float32."""
    table = pq.read_table(dataset.file(f"{split}.parquet")).combine_chunks()
    rows = table["input"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return rows.reshape(-1, dataset.facts["width"]).copy(), table["target"].to_numpy().copy()
