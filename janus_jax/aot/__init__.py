"""Programs compiled ahead of time, for machines that are not here: what they take, move and may reach."""
