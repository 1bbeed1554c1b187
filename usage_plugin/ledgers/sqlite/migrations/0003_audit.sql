-- Who forgot or exported a person, and why. `subject` is a pseudonym, never the name; `counts` is JSON.
CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    counts TEXT NOT NULL
);
