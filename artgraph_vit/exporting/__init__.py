"""Models as ONNX, which predict without torch."""

from .comparison import compare_onnx
from .onnx import export_onnx

__all__ = ["compare_onnx", "export_onnx"]
