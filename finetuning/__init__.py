"""Teaching a model that is trained already: conversations and their templates, and preferences."""
