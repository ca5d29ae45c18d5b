"""The page that `fastkd report` writes: what the runs show in words, in figures, in tables, and how each was made."""
