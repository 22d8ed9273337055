"""What a run tells the world: the model card, and the push to the Hub."""
