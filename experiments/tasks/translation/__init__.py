"""Translation of sentences: an encoder-decoder, measured by BLEU."""
