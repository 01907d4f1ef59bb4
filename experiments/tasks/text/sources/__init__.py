"""Where corpora come from: a module each, which reads raw texts and says what they are."""
