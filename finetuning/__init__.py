"""Teaching a model that is trained already: conversations and their templates, preferences, and rewards."""
