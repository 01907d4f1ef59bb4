"""Classification of sentences and pairs of them, by a network that somebody pretrained."""
