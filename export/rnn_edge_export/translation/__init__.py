"""Translation: sentence pairs to batches, the encoder-decoder, its training task, its two graphs."""
