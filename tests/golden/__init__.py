"""Specs with the digests and plans that they must have for ever."""
