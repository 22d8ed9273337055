"""Train, validation and test: read where the source has them, else made.

A made split is stratified and depends on the names of the artworks and the seed alone, so that it does not change
when rows are re-ordered: within a stratum artworks are in the order of a hash of their names, and each goes to the
split that is furthest below its share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from datasets import Dataset, DatasetDict, Value

from ..errors import UserError

SHARES = {"train": 0.70, "validation": 0.15, "test": 0.15}


def assign_splits(rows: Dataset, seed: int = 42) -> Dataset:
    """Gives each row its split, in the column `split`.

    Args:
        rows (`Dataset`): with the columns `name` and `split`. Splits that the source names are kept; those that it
            lacks are cut from its train rows (or from all, if it names none), 70/15/15 in proportion, and in
            proportion in each stratum if there is a column `stratum`, which is taken off.
        seed (`int`, *optional*, defaults to 42): of the hash.

    Raises:
        UserError: if two splits share an artwork.
    """
    names, splits = rows["name"][:], rows["split"][:]
    present = set(splits) - {None}
    missing = [split for split in SHARES if split not in present]
    if missing and (not present or "train" in present):
        strata = rows["stratum"][:] if "stratum" in rows.column_names else [None] * len(rows)
        is_cut = [split in (None, "train") for split in splits]
        # By name: the same picture twice goes to one split.
        stratum_of = {name: str(stratum) for name, stratum, cut in zip(names, strata, is_cut, strict=True) if cut}
        split_of = _cut(stratum_of, ["train", *(split for split in missing if split != "train")], seed)
        splits = [split_of[name] if cut else split for name, split, cut in zip(names, splits, is_cut, strict=True)]
    first: dict[str, str] = {}
    for name, split in zip(names, splits, strict=True):
        if first.setdefault(name, split) != split:
            raise UserError(f"The artwork {name!r} is in two splits, {first[name]!r} and {split!r}: keep it in one.")
    kept = rows.remove_columns([name for name in ("split", "stratum") if name in rows.column_names])
    return kept.add_column("split", splits, feature=Value("string"))


def _cut(stratum_of: Mapping[str, str], splits: list[str], seed: int) -> dict[str, str]:
    def order(name: str) -> tuple[str, str]:
        return stratum_of[name], hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()

    total = sum(SHARES[split] for split in splits)
    assigned = dict.fromkeys(splits, 0)
    split_of: dict[str, str] = {}
    for position, name in enumerate(sorted(stratum_of, key=order), start=1):
        split = max(splits, key=lambda split: SHARES[split] / total * position - assigned[split])
        assigned[split] += 1
        split_of[name] = split
    return split_of


def divide_by_split(rows: Dataset) -> DatasetDict:
    """Train, validation and test rows, without the column `split` that says so.

    Raises:
        UserError: if a split is empty.
    """
    split_of_row, kept = rows["split"][:], rows.remove_columns("split")
    parts = DatasetDict()
    for split in SHARES:
        parts[split] = kept.select([row for row, other in enumerate(split_of_row) if other == split])
        if not len(parts[split]):
            raise UserError(f"The split {split!r} is empty: give it artworks, or leave all out to have them made.")
    return parts
