"""A trained model at work: predictions, search, ONNX, the page."""
