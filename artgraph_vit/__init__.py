"""artgraph_vit: artist, style, genre, tags and media of an artwork from one Vision Transformer."""

from transformers import AutoConfig, AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_artgraph_vit import ArtGraphViTConfig
from .model.modeling_artgraph_vit import ArtGraphViTForImageClassification, ArtGraphViTOutput
from .model.museum_label import describe
from .model.pipeline_artgraph_vit import PIPELINE_TASK, ArtGraphPipeline
from .model.tasks import ARTGRAPH_TASKS, Task

__version__ = "0.2.0"
__all__ = [
    "ARTGRAPH_TASKS",
    "ArtGraphPipeline",
    "ArtGraphViTConfig",
    "ArtGraphViTForImageClassification",
    "ArtGraphViTOutput",
    "Task",
    "describe",
]

AutoConfig.register(ArtGraphViTConfig.model_type, ArtGraphViTConfig)
AutoModelForImageClassification.register(ArtGraphViTConfig, ArtGraphViTForImageClassification)
PIPELINE_REGISTRY.register_pipeline(
    PIPELINE_TASK, pipeline_class=ArtGraphPipeline, pt_model=AutoModelForImageClassification, type="image"
)
