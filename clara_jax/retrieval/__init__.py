"""Documents that were compressed once, kept and found again."""
