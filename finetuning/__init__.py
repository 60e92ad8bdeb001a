"""Teaching a model that is trained already: conversations, their templates, and the datasets that are made of them."""
