"""`usage-plugin export`: the history written out for other programs, however long it is.

`columns` defines the columns of a record, `formats` writes records, and `destination` puts the file in place when it is
complete. `command` streams the history through all three. The export of one person is `usage_plugin.cli.erasure`.
"""
