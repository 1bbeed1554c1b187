"""Analysis: patterns, forecasts, percentiles and simulations over the history."""
