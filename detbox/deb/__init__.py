"""Debian packages: sources, build roots, builds, their comparison, and surveys of many packages."""
