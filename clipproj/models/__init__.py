"""Models: their towers, heads, words and images."""
