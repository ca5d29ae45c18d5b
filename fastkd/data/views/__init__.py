"""Seeded views: drawn by hash, cut into pixels."""
