"""FFCV's file: read, written, identified."""
