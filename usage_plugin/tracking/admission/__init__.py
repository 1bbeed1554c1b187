"""Admission: which requests start, what they hold on which account, and how they are settled."""
