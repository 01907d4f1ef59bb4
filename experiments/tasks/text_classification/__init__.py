"""Classification of sentences and of pairs of them, by a pretrained network."""
