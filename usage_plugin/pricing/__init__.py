"""Pricing: map model names to price sheets, and a provider's reported usage to a cost."""
