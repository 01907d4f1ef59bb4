"""Language modelling: a causal decoder, measured by its perplexity."""
