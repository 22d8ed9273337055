"""What travels to the Hub with the weights: these files import only each other, torch, transformers and Pillow."""
