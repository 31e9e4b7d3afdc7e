"""detbox on a host that gives the running thread its processor late, as the supervisor sees it: it asks what a thread
does that has made no call for 1 ms instead of 20, and looks for spins as often.  No result may depend on that."""

from detbox.cli.main import program
from detbox.spin import pace
from detbox.supervisor import loop, ticking

ticking.TICK_MS = loop.TICK_MS = 1
pace._FIRST_DELAY, pace._LONGEST_DELAY, pace._PATIENCE = 0.0005, 0.05, 2

if __name__ == "__main__":
    program()
