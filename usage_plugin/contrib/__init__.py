"""Plugins that come with the package and are off until the YAML names them: `plugins: [{name: chroma}]`.

They use the hooks as a third party's do, and need extras that are not installed otherwise. One module or package each.
"""
