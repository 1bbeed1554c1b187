"""Privacy: erasure of a person's records, and the secret behind pseudonyms."""
