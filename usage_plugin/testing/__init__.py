"""Help for tests, ours and those of plugin authors; installed with the package. The package proper never imports it."""
