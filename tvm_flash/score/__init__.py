"""A score_mod or mask_mod, as the user wrote it, becomes a program."""
