"""Moving in: the data of the previous usage tracker, and LiteLLM's own spend logs.

`migrate` goes through a directory of the previous tracker: `sources` finds what is in it and `reading` reads it as a
stream into the `draft`, a file on the disk that decides what is right and in which order it goes into the store.
`old_limits` writes the old limits as ordinary ones. `spend_logs` makes usage events of LiteLLM's rows. `automatic` lets
a running proxy migrate in another process. Everything here is repeatable: killed and run again, or run twice, it gives
what one run gives. Knows the ports only, no backend.
"""
