"""Train, validation and test: read where the source has them, else made.

A made split is stratified and depends on the names of the artworks and the seed alone, so that it does not change
when rows are re-ordered: within a stratum artworks are in the order of a hash of their names, and each goes to the
split that is furthest below its share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets

from .sources import DataError

SHARES = {"train": 0.70, "validation": 0.15, "test": 0.15}


def assign_splits(rows: Dataset, seed: int = 42) -> Dataset:
    """Gives each row its split, in the column `split`.

    Args:
        rows (`Dataset`): with the columns `name` and `split`. Splits that the source names are kept; those that it
            lacks are cut from its train rows (or from all, if it names none), 70/15/15 in proportion, and in
            proportion in each stratum if there is a column `stratum`, which is taken off.
        seed (`int`, *optional*, defaults to 42): of the hash.

    Raises:
        DataError: if two splits share an artwork.
    """
    split_of_row: list[str] = rows["split"][:]
    present = set(split_of_row) - {None}
    missing = [split for split in SHARES if split not in present]
    if missing and (not present or "train" in present):
        pool = [index for index, split in enumerate(split_of_row) if split in (None, "train")]
        shares = {split: SHARES[split] for split in dict.fromkeys(["train", *missing])}
        strata = rows["stratum"][:] if "stratum" in rows.column_names else [None] * len(rows)
        names = rows["name"][:]
        made = _assign([names[index] for index in pool], [strata[index] for index in pool], shares, seed)
        for index, split in zip(pool, made, strict=True):
            split_of_row[index] = split
    _refuse_overlap(rows["name"][:], split_of_row)
    kept = rows.remove_columns([name for name in ("split", "stratum") if name in rows.column_names])
    splits = Dataset.from_dict({"split": split_of_row}, features=Features({"split": Value("string")}))
    return concatenate_datasets([kept, splits], axis=1)


def divide_by_split(rows: Dataset) -> DatasetDict:
    """Train, validation and test rows, without the column `split` that says so.

    Raises:
        DataError: if a split is empty.
    """
    split_of_row = rows["split"][:]
    splits = {split: [i for i, name in enumerate(split_of_row) if name == split] for split in SHARES}
    for split, indices in splits.items():
        if not indices:
            raise DataError(
                f"The split {split!r} is empty: give it artworks, or leave all splits out to have them made."
            )
    kept = rows.remove_columns("split")
    return DatasetDict({split: kept.select(indices) for split, indices in splits.items()})


def split_artworks(rows: Dataset, seed: int = 42) -> DatasetDict:
    """[`assign_splits`], then [`divide_by_split`]."""
    return divide_by_split(assign_splits(rows, seed))


def _assign(names: Sequence[str], strata: Sequence, shares: dict[str, float], seed: int) -> list[str]:
    stratum_of = dict(zip(names, strata, strict=True))  # the same picture twice goes to one split

    def order(name: str) -> tuple[str, str]:
        return str(stratum_of[name]), hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()

    total = sum(shares.values())
    assigned = dict.fromkeys(shares, 0)
    split_of: dict[str, str] = {}
    for position, name in enumerate(sorted(stratum_of, key=order), start=1):
        split = max(shares, key=lambda split: shares[split] / total * position - assigned[split])
        assigned[split] += 1
        split_of[name] = split
    return [split_of[name] for name in names]


def _refuse_overlap(names: Sequence[str], splits: Sequence[str]) -> None:
    first: dict[str, tuple[str, int]] = {}
    for row, (name, split) in enumerate(zip(names, splits, strict=True)):
        other, other_row = first.setdefault(name, (split, row))
        if other != split:
            raise DataError(
                f"The artwork {name!r} is in two splits, {other!r} and {split!r} (rows {other_row} and {row} of all): "
                "keep it in one."
            )
