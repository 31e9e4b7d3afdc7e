"""Makes ``python -m detbox`` the same as ``detbox``."""

from detbox.cli.main import program

if __name__ == "__main__":
    program()
