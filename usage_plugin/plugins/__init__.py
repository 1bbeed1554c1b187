"""The extension points, on pluggy: hooks register typed objects, the objects act.

A plugin is a module (or a package with the entry-point group `usage_plugin`) with hook implementations:

    from usage_plugin.plugins import hookimpl

    @hookimpl
    def usage_register_storage_backends():
        return [MyBackend()]

`hookspecs` lists every hook, `interface` what the registered objects must do.
"""

import pluggy

PROJECT = "usage_plugin"

hookimpl = pluggy.HookimplMarker(PROJECT)
