"""Process requests and their records, from admission to history. Depends on the domain only."""
