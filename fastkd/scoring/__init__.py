"""Scores of samples by networks, by stores, and while training."""
