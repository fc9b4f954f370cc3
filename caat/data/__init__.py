"""From text to tokens to batches. Independent of any model; heavy imports are deferred until needed."""
