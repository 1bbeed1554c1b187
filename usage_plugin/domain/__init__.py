"""What usage, money, windows and limits are. Standard library only; knows nobody else in the package."""
