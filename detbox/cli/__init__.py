"""The command line: one module per verb, each with its parser, its help and its body."""

from detbox import bundle

bundle.use()
