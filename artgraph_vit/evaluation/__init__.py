"""What a model is worth: metrics, tuned decisions, results, figures and intervals."""
