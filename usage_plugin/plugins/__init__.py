"""The extension points, on pluggy: hooks register typed objects, the objects act.

A plugin is a module with hook implementations: a file that the YAML names, or an installed one with an entry point in
the group `usage_plugin`:

    from usage_plugin.plugins import hookimpl

    @hookimpl
    def usage_register_storage_backends():
        return [MyBackend()]

`hookspecs` defines every hook, and `interface` the types of the registered objects. Inside, `discovery` and
`file_loader` load plugins, `manager` validates and registers them, and `identity_resolvers` isolates resolvers.
"""

import pluggy

PROJECT = "usage_plugin"

hookimpl = pluggy.HookimplMarker(PROJECT)

MARK = f"{PROJECT}_impl"
"""The attribute by which pluggy marks an implementation of a hook."""
