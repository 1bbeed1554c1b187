"""Notifications: subscribers of events, and the counters and notes that operators read."""
