"""The errors that a plugin may raise, for authors; see `netsvc.base.errors`."""

from netsvc.base.errors import PluginError, StartError, UserError

__all__ = ["PluginError", "StartError", "UserError"]
