"""The audit: who can be found in a model, by how much, and is the promise kept."""
