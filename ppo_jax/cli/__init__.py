"""The commands: what reads words from a person."""
