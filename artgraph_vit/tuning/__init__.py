"""From validation scores to better decisions: temperatures, thresholds and the logit adjustment after training.

Works on tensors of logits and labels; training/tuning.py collects them and puts the result into a model's config.
"""
