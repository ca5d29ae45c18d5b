"""Teachers that fill stores, students that learn from them, and what both write."""
