"""`usage-plugin export`: the history written out for other programs, however long it is.

`columns` says what a record is made of, `formats` writes records, `target` puts them in place when they are complete,
`command` has the stream run through all three. What is kept of one person is handed out by `usage_plugin.cli.persons`.
"""
