"""Language models: text to streams, the network, its training task, its step graph."""
