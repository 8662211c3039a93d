"""Enumerate a policy's steps, and write a language model out as a finite model."""
