"""What a run is put together from: optimiser, average, forward pass, graphs, states."""
