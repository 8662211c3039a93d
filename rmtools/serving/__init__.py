"""Policies behind HTTP servers."""
