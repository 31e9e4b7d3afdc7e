"""Network namespaces: the container's, and those of the guest's own."""

from __future__ import annotations

from detbox.machine.userspaces import TOP, UserSpace


class Network:
    """One network namespace.

    ``owner``: whose root may change it.  ``settings``: whether it has been given detbox's.  ``routes``: whether its
    loopback device was up, and has the routes, when that was last looked at.
    """

    __slots__ = ("owner", "settings", "routes")

    def __init__(self, owner: UserSpace) -> None:
        self.owner = owner
        self.settings = False
        self.routes = False


#: The container's.
NETWORK = Network(TOP)
