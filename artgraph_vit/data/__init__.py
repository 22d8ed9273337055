"""From a source of artworks to batches: sources -> vocabulary -> splits -> pictures -> batches."""

from ..model.pictures import read_picture
from .augmentation import Augmentation
from .batches import ArtGraphCollator, PictureTransform, PixelNormalizer, with_pixels
from .checking import find_bad_pictures, leave_out
from .options import DataArguments, read_artworks
from .sources import load_artworks
from .streaming import StreamedArtworks
from .vocabulary import build_vocabulary, encode_labels, known_row_count, label_counts

__all__ = [
    "ArtGraphCollator",
    "Augmentation",
    "DataArguments",
    "PictureTransform",
    "PixelNormalizer",
    "StreamedArtworks",
    "build_vocabulary",
    "encode_labels",
    "find_bad_pictures",
    "known_row_count",
    "label_counts",
    "leave_out",
    "load_artworks",
    "read_artworks",
    "read_picture",
    "with_pixels",
]
