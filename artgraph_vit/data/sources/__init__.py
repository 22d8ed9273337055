"""Where artworks come from: each reader gives the same raw rows (rows.py), and `load_artworks` finds the reader."""

from .load import load_artworks
from .rows import DataError

__all__ = ["DataError", "load_artworks"]
