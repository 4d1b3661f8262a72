"""Eight and four bits: rounding weights, rewriting step graphs, and measuring what it costs."""
