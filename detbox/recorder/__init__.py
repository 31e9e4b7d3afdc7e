"""The ordered log of what a run did: written while it runs, read and compared afterwards."""
