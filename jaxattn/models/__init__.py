"""A GPT, generating text with it, and parameters from and to other libraries."""
