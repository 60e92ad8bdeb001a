"""From raw documents to curated ones: steps on datatrove, which `python data/curate.py` runs in their order."""
