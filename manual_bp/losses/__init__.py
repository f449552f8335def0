"""Losses, a file each: the folder's listing is the table of contents."""
