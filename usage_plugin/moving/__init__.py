"""Move a ledger and its history to another place, of the same kind or of another.

`ledger_copy` makes the records of two ledgers equal, `history_copy` those of two stores. Both compare first, and write
only the differences. So a run that was killed is repeated, and the check at the end is a comparison that finds nothing.
`mark` is the note by which a ledger that was moved, or is not complete yet, refuses to be used. It depends on the ports
only, on no backend; `runtime.ledger_move` has the order of the steps.
"""
