"""From samples to batches: which samples a step sees (`order`), read ahead of it (`loader`), in the
loop of a caller's own (`stream`)."""
