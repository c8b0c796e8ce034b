"""Token store to batches: order, mixture, rows, prefetch."""
