"""What comes with a release: whether its packages have known weaknesses, and the list of what is in it."""
