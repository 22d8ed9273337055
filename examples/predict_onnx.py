"""Labels of a picture, from a file that scripts/export_onnx.py made; needs onnxruntime and Pillow alone.

python examples/predict_onnx.py model.onnx painting.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
tasks, how = (json.loads(session.get_modelmeta().custom_metadata_map[key]) for key in ("tasks", "preprocessing"))
picture = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGBA")  # the right way up; 8 bits a colour
picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
edges = [how["resize"].get("shortest_edge", 0) * side // min(picture.size) for side in picture.size]
width, height = how["resize"].get("width", edges[0]), how["resize"].get("height", edges[1])
left, top = (width - how["crop"]["width"]) // 2, (height - how["crop"]["height"]) // 2
picture = picture.resize((width, height), Image.Resampling[how["resample"]])
picture = picture.crop((left, top, left + how["crop"]["width"], top + how["crop"]["height"]))
pixels = (np.asarray(picture) * how["rescale_factor"] - how["mean"]) / how["std"]  # (H, W, 3)
outputs = session.run(None, {"pixel_values": pixels.astype(np.float32).transpose(2, 0, 1)[None]})
for task, (scores,) in zip(tasks, outputs, strict=False):  # the last output is the embedding
    ranked = np.argsort(-scores)
    chosen = ranked[(scores > task["threshold"])[ranked]] if "threshold" in task else ranked[:1]
    print(f"{task['name']}:", ", ".join(f"{task['labels'][i]} {scores[i]:.3f}" for i in chosen))
