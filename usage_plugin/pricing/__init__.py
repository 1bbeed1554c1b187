"""Pricing: model names to price sheets, and usage as providers report it to a cost."""
