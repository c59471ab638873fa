"""Running a model layer by layer from its files: one decoder layer in memory, hidden states in between."""
