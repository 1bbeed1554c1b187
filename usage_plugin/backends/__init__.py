"""Storage backends, each registered through the same hook as a third party's."""
