"""Plugins that come with the package and are off until the YAML names them: `plugins: [{name: chroma}]`.

They use the same hooks as third-party plugins, and may require an extra. Each is one module or package.
"""
