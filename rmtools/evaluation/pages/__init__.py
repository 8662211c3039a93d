"""The pages of the evaluations, one file each, and what they share."""
