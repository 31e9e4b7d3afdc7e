"""Copies of a program's code that count how often its loops turn."""
