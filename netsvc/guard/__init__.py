"""The guard: the limits around every listener, whatever protocol it speaks."""

from netsvc.guard.guard import Connection, Guard, GuardedFactory, guarded_factory

__all__ = ["Connection", "Guard", "GuardedFactory", "guarded_factory"]
