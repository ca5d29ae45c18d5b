"""Beton, mask and store joined into batches."""
