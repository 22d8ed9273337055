"""What a run tells people: results, figures, model card, and the push to the Hub."""
