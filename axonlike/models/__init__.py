"""Well-known models, as pipes of the catalogue, each with its mapping of weights."""
