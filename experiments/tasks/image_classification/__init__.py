"""Images, a network, cross-entropy and accuracy."""
