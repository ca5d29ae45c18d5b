"""Frozen networks that fill, check and time stores."""
