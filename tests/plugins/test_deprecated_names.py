"""Names of the plugin interface that were renamed go on working, with a warning, for one minor version."""

from __future__ import annotations

import pytest

from usage_plugin.plugins import interface


def test_surroundings_is_backend_context_with_a_warning():
    """A plugin that imports the old name gets the same type, and the warning names the new one."""
    with pytest.warns(DeprecationWarning, match="import BackendContext"):
        found = interface.Surroundings
    assert found is interface.BackendContext


def test_a_misspelt_name_is_still_an_error():
    """The old name is an exception: no other name of the module is made up."""
    with pytest.raises(AttributeError, match="Surounding"):
        _ = interface.Surounding
