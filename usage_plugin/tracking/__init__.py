"""What happens to a request and its record, in the order in which it happens; knows the domain only."""
