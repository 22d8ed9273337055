"""artgraph_vit: artist, style, genre, tags and media of an artwork from one Vision Transformer."""

from transformers import AutoConfig, AutoModelForImageClassification

from .configuration_artgraph_vit import ArtGraphViTConfig
from .modeling_artgraph_vit import ArtGraphViTForImageClassification, ArtGraphViTOutput
from .tasks import ARTGRAPH_TASKS, Task

__version__ = "0.1.0"
__all__ = [
    "ARTGRAPH_TASKS",
    "ArtGraphViTConfig",
    "ArtGraphViTForImageClassification",
    "ArtGraphViTOutput",
    "Task",
]

AutoConfig.register(ArtGraphViTConfig.model_type, ArtGraphViTConfig)
AutoModelForImageClassification.register(ArtGraphViTConfig, ArtGraphViTForImageClassification)
