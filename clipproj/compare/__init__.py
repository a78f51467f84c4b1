"""Methods side by side: every one on every class, with the same measures."""
