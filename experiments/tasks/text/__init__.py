"""What the tasks on text share: corpora, vocabularies, packs, losses."""
