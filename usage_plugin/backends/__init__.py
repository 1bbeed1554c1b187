"""The built-in storage backends, registered through the same hook as third-party ones."""
