"""The command line: one short file per verb; nothing heavy is imported before a verb runs."""
