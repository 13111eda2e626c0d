"""Commands for use from a checkout, and files that start them on clusters."""
