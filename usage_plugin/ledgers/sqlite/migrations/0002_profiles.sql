-- What is known of users. `profile` is JSON; `number` says when it was last changed, in the order of `profile_changes`.
CREATE TABLE profiles (
    user TEXT NOT NULL PRIMARY KEY,
    number INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    profile TEXT NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX profiles_by_number ON profiles (number);

-- One row: how often a profile was put or dropped.
CREATE TABLE profile_changes (
    number INTEGER NOT NULL
);
INSERT INTO profile_changes (number) VALUES (0);
