"""The extension points, on pluggy: hooks register typed objects, the objects act.

A plugin is a module with hook implementations: a file that the YAML names, or an installed one with an entry point in
the group `usage_plugin`:

    from usage_plugin.plugins import hookimpl

    @hookimpl
    def usage_register_storage_backends():
        return [MyBackend()]

`hookspecs` lists every hook, `interface` what the registered objects must do. Inside, `loading` and `one_file` find
plugins, `manager` checks them and collects what they register, `resolving` keeps resolvers from doing harm.
"""

import pluggy

PROJECT = "usage_plugin"

hookimpl = pluggy.HookimplMarker(PROJECT)

MARK = f"{PROJECT}_impl"
"""The attribute in which pluggy keeps that a function implements a hook."""
