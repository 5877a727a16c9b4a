"""Certificates: how often fooling the judge or the checks gets a failing trace paid, and how much that is right is."""
