"""The page: what a model sees in a picture, for a visitor without Python."""

from .page import build_page, launch, paint_examples, serve

__all__ = ["build_page", "launch", "paint_examples", "serve"]
