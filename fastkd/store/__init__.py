"""Teacher logits on disk: row codecs and the HDF5 store."""
