"""From source images to batches of seeded views: sources, betons, views, decoding, orders, the loader."""
